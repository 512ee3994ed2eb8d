//! The store as a whole, on real files.

mod damage;
mod disk;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ggml_sys::RowReader;
use proptest::prelude::*;
use tempfile::TempDir;

use super::digest::LEAF;
use super::space::{Space, GIB};
use super::{Contents, Error, Fingerprint, Shape, Store};
use crate::observe::log::{set_level, Level};
use crate::weights::Source;

/// A disk with room for all, so that the machine's own has no say.
fn plenty(_: &Path) -> io::Result<Space> {
    Ok(Space { total: 1000 * GIB, free: 1000 * GIB })
}

fn store() -> (TempDir, Store) {
    // Thousands of files are damaged below.
    set_level(Level::Error);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_measured(&dir.path().join("weights"), plenty).unwrap();
    (dir, store)
}

/// Some fingerprint, another one for each name.
fn fingerprint(name: &str) -> Fingerprint {
    Fingerprint::of(&Source { data: &[], reader: RowReader::f32(), k: 8, n: 0, row_stride: 32 }, name)
}

/// A weight with its own copy of everything.
#[derive(Debug, Clone, PartialEq)]
struct Owned {
    scales: Vec<f32>,
    metadata: String,
    parts: Vec<Vec<u8>>,
}

impl Owned {
    fn new(scales: usize, metadata: &str, parts: &[usize], seed: u8) -> Self {
        // Without a period, so that no leaf is like another.
        let byte = |part: usize| {
            move |i: usize| (((i + part) as u32).wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed
        };
        Self {
            scales: (0..scales).map(|i| i as f32 * 0.25 - f32::from(seed)).collect(),
            metadata: metadata.to_owned(),
            parts: parts
                .iter()
                .enumerate()
                .map(|(part, bytes)| (0..*bytes).map(byte(part)).collect())
                .collect(),
        }
    }

    fn small(seed: u8) -> Self {
        Self::new(5, "{\"error\":0.01}", &[40, 0, 17], seed)
    }

    fn save(&self, store: &Store, fingerprint: Fingerprint) -> Result<(), Error> {
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        store.save(fingerprint, &Contents { scales: &self.scales, metadata: &self.metadata, parts: &parts })
    }

    /// What the store has under that name, if it is of the shape of `self` and all of it verifies.
    fn load(&self, store: &Store, fingerprint: Fingerprint) -> Option<Self> {
        let lengths: Vec<usize> = self.parts.iter().map(Vec::len).collect();
        let entry = store.load(fingerprint, &Shape { scales: self.scales.len(), parts: &lengths })?;
        let mut parts: Vec<Vec<u8>> = lengths.iter().map(|bytes| vec![0xee; *bytes]).collect();
        for (index, part) in parts.iter_mut().enumerate() {
            entry.copy_part(index, part).ok()?;
        }
        Some(Self { scales: entry.scales().to_vec(), metadata: entry.metadata().to_owned(), parts })
    }
}

fn names(store: &Store) -> Vec<String> {
    let name = |item: io::Result<fs::DirEntry>| item.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(store.folder()).unwrap().map(name).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_saved_is_loaded(
        scales in 0usize..200, metadata in ".{0,60}", seed: u8,
        parts in prop::collection::vec(prop_oneof![0usize..3000, LEAF - 2..LEAF + 3, 2 * LEAF..3 * LEAF], 0..5),
    ) {
        let (_dir, store) = store();
        let weight = Owned::new(scales, &metadata, &parts, seed);
        let name = fingerprint("some");
        weight.save(&store, name).unwrap();
        prop_assert_eq!(names(&store), [format!("{name}.rknpu-weight")]);
        let contents = 80 + 24 * parts.len() + 16 + 4 * scales + parts.iter().sum::<usize>() + metadata.len();
        prop_assert_eq!(fs::metadata(store.path(name)).unwrap().len(), contents as u64, "nothing but the table's");
        prop_assert_eq!(weight.load(&store, name), Some(weight));
    }
}

#[test]
fn the_file_is_as_the_table_says() {
    let (_dir, store) = store();
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    weight.save(&store, name).unwrap();
    let file = fs::read(store.path(name)).unwrap();
    assert_eq!(&file[..8], b"RKNPUWGT");
    assert_eq!(file[8..16], [1, 0, 0, 0, 3, 0, 0, 0]);
    let hex: String = file[16..32].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, name.to_string());
    assert_eq!(file[32..48], [5, 0, 0, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!([file[80], file[104], file[128]], [40, 0, 17]);
    let scales: Vec<u8> = weight.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    assert_eq!(file[168..188], scales);
    assert_eq!(file[188..228], weight.parts[0]);
    assert_eq!(file[228..245], weight.parts[2]);
    assert_eq!(&file[245..], weight.metadata.as_bytes());
}

#[test]
fn a_folder_is_made_for_its_owner_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("deep").join("weights");
    let (weight, name) = (Owned::small(1), fingerprint("some"));
    let store = Store::open_measured(&folder, plenty).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(weight.load(&store, name), None, "nothing yet");
    weight.save(&store, name).unwrap();
    assert_eq!(weight.load(&Store::open(&folder).unwrap(), name), Some(weight));
}

#[test]
fn an_entry_that_is_open_stays_what_it_was() {
    let (_dir, store) = store();
    let (old, name) = (Owned::new(3, "", &[3 * LEAF], 1), fingerprint("some"));
    old.save(&store, name).unwrap();
    let entry = store.load(name, &Shape { scales: 3, parts: &[3 * LEAF] }).unwrap();
    Owned::new(3, "", &[3 * LEAF], 2).save(&store, name).unwrap();
    let mut out = vec![0; 3 * LEAF];
    entry.copy_part(0, &mut out).unwrap();
    assert_eq!(out, old.parts[0]);
}

#[test]
fn threads_and_stores_may_save_and_load_at_once() {
    let (_dir, store) = store();
    let other = Store::open_measured(store.folder(), plenty).unwrap();
    let weights: Vec<Owned> = (0..4).map(|seed| Owned::new(9, "m", &[LEAF + 9, 1000], seed)).collect();
    // All under one name, which is at any time one of them, whole.
    let name = fingerprint("some");
    weights[0].save(&store, name).unwrap();
    std::thread::scope(|scope| {
        for (thread, weight) in weights.iter().enumerate() {
            let store = if thread % 2 == 0 { &store } else { &other };
            let weights = &weights;
            scope.spawn(move || (0..20).for_each(|_| weight.save(store, name).unwrap()));
            scope.spawn(move || {
                for _ in 0..20 {
                    let found = weight.load(store, name).expect("a rename leaves no gap");
                    assert!(weights.contains(&found), "a mixture");
                }
            });
        }
    });
    assert!(weights.contains(&weights[0].load(&store, name).unwrap()));
    assert_eq!(names(&store), [format!("{name}.rknpu-weight")], "no partial stays");
}
