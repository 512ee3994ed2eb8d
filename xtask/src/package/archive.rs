//! A `.tar.gz` with the same bytes for the same files: sorted, owned by root, of one time.

use std::collections::BTreeSet;
use std::path::Path;

use flate2::{Compression, GzBuilder};

use super::contents::Entry;

/// Packs the entries, all below the folder `top`.
///
/// # Errors
/// A name too long for an archive.
pub fn tar_gz(top: &str, entries: &[Entry], time: u64) -> std::io::Result<Vec<u8>> {
    // No time and no name in the head: the one is the files', the other the archive's own.
    let packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(packed);
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));

    let mut folders = BTreeSet::new();
    for entry in &sorted {
        let path = format!("{top}/{}", entry.path);
        folders.extend(Path::new(&path).ancestors().skip(1).map(Path::to_owned));
    }
    for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
        let mut header = header(tar::EntryType::Directory, 0o755, 0, time);
        tar.append_data(&mut header, format!("{}/", folder.display()), std::io::empty())?;
    }
    for entry in sorted {
        let mut header = header(tar::EntryType::Regular, entry.mode, entry.content.len() as u64, time);
        tar.append_data(&mut header, format!("{top}/{}", entry.path), entry.content.as_slice())?;
    }
    tar.into_inner()?.finish()
}

fn header(kind: tar::EntryType, mode: u32, size: u64, time: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn entry(path: &str, mode: u32, content: &str) -> Entry {
        Entry { path: path.to_owned(), mode, content: content.as_bytes().to_vec() }
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_any_order() {
        let (a, b) = (entry("lib/a.so", 0o644, "one"), entry("bin/b", 0o755, "two"));
        let first = tar_gz("top", &[a.clone(), b.clone()], 7).unwrap();
        assert_eq!(tar_gz("top", &[b.clone(), a.clone()], 7).unwrap(), first);
        assert_ne!(tar_gz("top", &[b, a], 8).unwrap(), first);
    }

    #[test]
    fn the_files_come_back_with_mode_owner_and_time() {
        let packed = tar_gz("top", &[entry("bin/b", 0o755, "two"), entry("x", 0o644, "")], 7).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(packed.as_slice()));
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (mut text, path) = (String::new(), entry.path().unwrap().display().to_string());
            entry.read_to_string(&mut text).unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 7));
            seen.push((path, header.mode().unwrap(), text));
        }
        let seen: Vec<_> =
            seen.iter().map(|(path, mode, text)| (path.as_str(), *mode, text.as_str())).collect();
        assert_eq!(
            seen,
            [("top/", 0o755, ""), ("top/bin/", 0o755, ""), ("top/bin/b", 0o755, "two"), ("top/x", 0o644, "")]
        );
    }
}
