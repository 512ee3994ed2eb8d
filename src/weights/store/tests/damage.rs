//! Files that are not what was saved: none is used, and none stays.

use std::fs;
use std::io;
use std::os::unix::fs::{symlink, PermissionsExt as _};

use super::super::digest::{Digest, LEAF};
use super::super::entry::discard;
use super::super::{Damaged, Entry, Error, Fingerprint, Shape, Store};
use super::{fingerprint, names, store, Owned};

/// Puts `bytes` in the place of an entry and asserts that it is not used, and gone.
fn assert_refused(store: &Store, weight: &Owned, name: Fingerprint, bytes: &[u8], what: &str) {
    let path = store.path(name);
    fs::write(&path, bytes).unwrap();
    assert!(weight.load(store, name).is_none(), "{what}");
    assert!(!path.exists(), "{what}: it stays");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    let good = fs::read(store.path(name)).unwrap();
    for at in 0..good.len() {
        for flip in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            assert_refused(&store, &weight, name, &bad, &format!("byte {at} ^ {flip}"));
        }
    }
    // It was the flips.
    fs::write(store.path(name), &good).unwrap();
    assert_eq!(weight.load(&store, name), Some(weight));
}

#[test]
fn flipped_bytes_in_large_parts_are_noticed() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::new(3, "", &[2 * LEAF + 5, LEAF], 1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    let good = fs::read(store.path(name)).unwrap();
    let first = good.len() - 3 * LEAF - 5;
    for at in
        [first, first + LEAF - 1, first + LEAF, first + 2 * LEAF + 4, first + 2 * LEAF + 5, good.len() - 1]
    {
        let mut bad = good.clone();
        bad[at] ^= 4;
        assert_refused(&store, &weight, name, &bad, &format!("byte {at}"));
    }
    // Two leaves that are right, in the wrong order.
    let mut bad = good.clone();
    bad[first..first + 2 * LEAF].rotate_left(LEAF);
    assert_refused(&store, &weight, name, &bad, "leaves swapped");
}

#[test]
fn every_wrong_length_is_noticed() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    let good = fs::read(store.path(name)).unwrap();
    for bytes in 0..good.len() {
        assert_refused(&store, &weight, name, &good[..bytes], &format!("{bytes} bytes"));
    }
    assert_refused(&store, &weight, name, &[&good[..], &[0]].concat(), "one byte more");
    assert_refused(&store, &weight, name, &[&good[..], &good[..]].concat(), "twice");
}

/// The file of `weight` with `edit` done to its first bytes, and a header checksum that is right all the same.
fn forged(store: &Store, weight: &Owned, edit: impl Fn(&mut [u8])) -> Vec<u8> {
    let name = fingerprint("some");
    weight.save(store, name).unwrap();
    let mut file = fs::read(store.path(name)).unwrap();
    let covered = 80 + 24 * weight.parts.len();
    edit(&mut file[..covered]);
    let sum = Digest::of(&file[..covered]).to_bytes();
    file[covered..covered + 16].copy_from_slice(&sum);
    file
}

#[test]
fn whole_files_of_another_kind_are_refused() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    let open = |file: &[u8]| {
        fs::write(store.path(name), file).unwrap();
        let lengths: Vec<usize> = weight.parts.iter().map(Vec::len).collect();
        Entry::open(&store.path(name), name, &Shape { scales: 5, parts: &lengths })
    };
    assert!(matches!(open(&forged(&store, &weight, |_| {})), Ok(Some(_))), "the forger's tools work");
    let version = forged(&store, &weight, |header| header[8] = 2);
    assert!(matches!(open(&version), Err(Damaged::Version { found: 2 })));
    // An older version's file may be shorter than our header.
    assert!(matches!(open(&version[..20]), Err(Damaged::Version { found: 2 })));
    let magic = forged(&store, &weight, |header| header[0] = b'r');
    assert!(matches!(open(&magic), Err(Damaged::NotOurs)));
    let stranger = forged(&store, &weight, |header| header[16] ^= 1);
    assert!(matches!(open(&stranger), Err(Damaged::Fingerprint)));
    let parts = forged(&store, &weight, |header| header[12] = 2);
    assert!(matches!(open(&parts), Err(Damaged::Shape)));
    let scales = forged(&store, &weight, |header| header[32] = 6);
    assert!(matches!(open(&scales), Err(Damaged::Shape)));
    let part = forged(&store, &weight, |header| header[80] = 41);
    assert!(matches!(open(&part), Err(Damaged::Shape)));
    // Lengths that overflow, or ask for more memory than there is.
    for metadata in [u64::MAX, u64::MAX - 200, 1 << 60] {
        let file = forged(&store, &weight, |header| header[40..48].copy_from_slice(&metadata.to_le_bytes()));
        assert!(matches!(open(&file), Err(Damaged::Length { .. })), "{metadata}");
    }
    for file in [version, magic, stranger, parts, scales, part] {
        assert_refused(&store, &weight, name, &file, "forged");
    }
}

#[test]
fn another_weights_file_under_this_name_is_refused() {
    let (_dir, store) = store();
    let (weight, name, other) = (Owned::small(1), fingerprint("some"), fingerprint("other"));
    weight.save(&store, other).unwrap();
    let file = fs::read(store.path(other)).unwrap();
    assert_refused(&store, &weight, name, &file, "of another fingerprint");
    assert_eq!(weight.load(&store, other), Some(weight), "the other one is as good as before");
}

#[test]
fn a_file_of_another_shape_is_refused() {
    for other in [
        Owned::new(6, "", &[40, 0, 17], 1),
        Owned::new(5, "", &[40, 17], 1),
        Owned::new(5, "", &[17, 0, 40], 1),
        Owned::new(5, "", &[40, 0, 17, 0], 1),
    ] {
        let (_dir, store) = store();
        let name = fingerprint("some");
        other.save(&store, name).unwrap();
        assert_eq!(Owned::small(1).load(&store, name), None);
        assert!(!store.path(name).exists());
    }
}

#[test]
fn what_is_no_plain_file_is_refused() {
    let (dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    let path = store.path(name);
    symlink(&path, &path).unwrap();
    assert_eq!(weight.load(&store, name), None, "a link to itself");
    assert!(fs::symlink_metadata(&path).is_err());

    // A link to what would be a good entry: the link goes, the file stays.
    weight.save(&store, name).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(weight.load(&store, name), None, "a link");
    assert!(fs::symlink_metadata(&path).is_err() && elsewhere.exists());

    fs::create_dir(&path).unwrap();
    assert_eq!(weight.load(&store, name), None, "an empty folder");
    assert!(!path.exists());
    fs::create_dir_all(path.join("full")).unwrap();
    assert_eq!(weight.load(&store, name), None, "a folder");
    assert!(matches!(weight.save(&store, name), Err(Error::Write { .. })), "which cannot be replaced");
    assert_eq!(names(&store), [format!("{name}.rknpu-weight")], "no partial stays");
}

#[test]
fn a_pipe_is_not_waited_for() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    if std::process::Command::new("mkfifo")
        .arg(store.path(name))
        .status()
        .is_ok_and(|status| status.success())
    {
        assert_eq!(weight.load(&store, name), None);
        assert!(!store.path(name).exists());
    }
}

#[test]
fn an_unreadable_file_is_refused() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    fs::set_permissions(store.path(name), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(store.path(name)).is_ok() {
        return; // Root reads everything.
    }
    assert_eq!(weight.load(&store, name), None);
    assert!(!store.path(name).exists());
}

#[test]
fn a_file_is_not_blamed_for_a_process_out_of_descriptors() {
    let (_dir, store) = store();
    let path = store.path(fingerprint("some"));
    fs::write(&path, "something").unwrap();
    discard(&path, &Damaged::Unreadable(io::Error::from_raw_os_error(libc::EMFILE)));
    assert!(path.exists());
    discard(&path, &Damaged::Unreadable(io::Error::from_raw_os_error(libc::EIO)));
    assert!(!path.exists());
}

/// Under an emulator of user programs the kernel's word on what is mapped may be made up.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "qemu-user says that pages are there which are not")]
fn a_file_cut_off_while_it_is_mapped_is_an_error_and_no_signal() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::new(3, "", &[3 * LEAF], 1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    let entry = store.load(name, &Shape { scales: 3, parts: &[3 * LEAF] }).unwrap();
    let mut out = vec![0; 3 * LEAF];
    entry.copy_part(0, &mut out).unwrap();
    fs::OpenOptions::new().write(true).open(store.path(name)).unwrap().set_len(LEAF as u64).unwrap();
    assert!(matches!(entry.copy_part(0, &mut out), Err(Damaged::Unreadable(_))));
    assert!(!store.path(name).exists());
}
