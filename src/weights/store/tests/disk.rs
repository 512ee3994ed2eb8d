//! What disks and folders do to the store, and how it stays within its bounds.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::space::{Space, GIB};
use super::super::{Contents, Error, Store};
use super::{fingerprint, names, plenty, store, Owned};

#[test]
fn a_folder_that_cannot_be_written_to_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    // Below a file, a file, and a folder where not even root makes files.
    for folder in [file.join("weights"), file, PathBuf::from("/proc")] {
        let error = Store::open(&folder).unwrap_err();
        assert!(matches!(error, Error::Folder { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(folder.to_str().unwrap()) && text.contains("RKNPU_CACHE"), "{text}");
    }
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(locked.join("probe"), "").is_err() {
        assert!(matches!(Store::open(&locked), Err(Error::Folder { .. })));
    }
}

#[test]
fn a_disk_that_fills_up_is_said_once_and_leaves_nothing_behind() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    let full = |file: &mut fs::File| {
        file.write_all(b"RKNPUWGT and some more")?;
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    };
    let error = store.save_by(name, 100, full).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Write { .. }), "{text}");
    assert!(text.contains(&name.to_string()) && text.contains("No space left"), "{text}");
    assert!(names(&store).is_empty() && !store.saves());
    // From now on nothing is tried or said.
    weight.save(&store, name).unwrap();
    assert!(names(&store).is_empty());
}

#[test]
fn every_failing_write_of_an_entry_is_an_error() {
    /// Takes so many bytes and no more.
    struct Small(usize);
    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let weight = Owned::small(1);
    let parts: Vec<&[u8]> = weight.parts.iter().map(Vec::as_slice).collect();
    let contents = Contents { scales: &weight.scales, metadata: &weight.metadata, parts: &parts };
    let bytes = contents.file_bytes() as usize;
    for room in 0..bytes {
        assert!(contents.write(fingerprint("some"), &mut Small(room)).is_err(), "{room} of {bytes}");
    }
    contents.write(fingerprint("some"), &mut Small(bytes)).unwrap();
}

#[test]
fn too_little_room_on_the_disk_is_an_error_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let scarce = |_: &Path| Ok(Space { total: 50 * GIB, free: 5 * GIB + 100 });
    let store = Store::open_measured(dir.path(), scarce).unwrap();
    let written = Cell::new(false);
    let write = |_: &mut fs::File| {
        written.set(true);
        Ok(())
    };
    let error = store.save_by(fingerprint("some"), 101, write).unwrap_err();
    assert!(matches!(error, Error::Full { wanted: 101, left: 100, .. }), "{error}");
    assert!(!written.get() && !store.saves());
    let store = Store::open_measured(dir.path(), scarce).unwrap();
    store.save_by(fingerprint("some"), 100, write).unwrap();
    assert!(written.get() && store.saves());
}

#[test]
fn what_dead_processes_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let hours = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
    let put = |name: &str, modified: SystemTime| {
        fs::File::create(dir.path().join(name)).unwrap().set_modified(modified).unwrap();
    };
    put("0123.1-0.rknpu-partial", hours(25));
    put("0123.2-0.rknpu-partial", hours(1));
    put("0123.3-0.rknpu-partial", SystemTime::now() + Duration::from_secs(1000));
    // None of ours.
    put("letter.partial", hours(1000));
    fs::create_dir(dir.path().join("folder.rknpu-partial")).unwrap();
    let store = Store::open_measured(dir.path(), plenty).unwrap();
    let expected =
        ["0123.2-0.rknpu-partial", "0123.3-0.rknpu-partial", "folder.rknpu-partial", "letter.partial"];
    assert_eq!(names(&store), expected);
}

/// A disk on which the store may have 1000 bytes.
fn tight(folder: &Path) -> io::Result<Space> {
    let bytes = |item: io::Result<fs::DirEntry>| item.unwrap().metadata().unwrap().len();
    let used: u64 = fs::read_dir(folder)?.map(bytes).sum();
    Ok(Space { total: 20 * GIB, free: 2 * GIB + 1000 - used })
}

#[test]
fn the_least_recently_used_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open_measured(dir.path(), tight).unwrap();
    // 300 bytes each, saved long ago in this order by other processes.
    let weight = Owned::new(1, "", &[176], 1);
    let all = ["a", "b", "c", "d", "e"].map(fingerprint);
    for (age, name) in (1..=3).rev().zip(&all) {
        weight.save(&open(), *name).unwrap();
        let file = fs::File::open(open().path(*name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age * 1000)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 300);
    }
    let exist = |store: &Store| all.map(|name| store.path(name).exists());
    // A file that is none of ours takes no part.
    fs::File::create(dir.path().join("foreign.rknpu-weight"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(weight.load(&open(), all[0]), Some(weight.clone()), "used again by another process");
    let store = open();
    weight.save(&store, all[3]).unwrap();
    assert_eq!(exist(&store), [true, false, true, true, false], "b was used longest ago");
    assert!(dir.path().join("foreign.rknpu-weight").exists());
    // c is in use now, so that a goes, though it was used later.
    assert!(weight.load(&store, all[2]).is_some());
    fs::File::open(store.path(all[2])).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    weight.save(&store, all[4]).unwrap();
    assert_eq!(exist(&store), [false, false, true, true, true]);
    // All that is left is in use: nothing goes, and it is said.
    let error = weight.save(&store, all[0]).unwrap_err();
    assert!(matches!(error, Error::Full { wanted: 300, left: 100, .. }), "{error}");
    assert_eq!(exist(&store), [false, false, true, true, true]);
    // A weight that never fits makes no room in vain, either.
    let large = Owned::new(1, "", &[2000], 1);
    assert!(matches!(large.save(&open(), all[1]), Err(Error::Full { .. })));
    assert_eq!(exist(&store), [false, false, true, true, true]);
}
