//! Which tensors of the host have a converted copy on the NPU.
//!
//! A tensor is known by where it lies and how it is seen; a copy is dropped as soon as the host writes to, or
//! frees, any byte of it. Only tensors of buffers that the host marked as weights are kept here: everything else
//! may change without notice.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Source;

/// What tells one weight from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    start: usize,
    bytes: usize,
    ggml_type: i32,
    k: usize,
    n: usize,
    row_stride: usize,
}

impl Key {
    /// The key of a weight by its place in memory.
    pub fn of(source: &Source) -> Self {
        Self {
            start: source.data.as_ptr() as usize,
            bytes: source.data.len(),
            ggml_type: source.reader.ggml_type(),
            k: source.k,
            n: source.n,
            row_stride: source.row_stride,
        }
    }

    fn overlaps(&self, range: &Range<usize>) -> bool {
        self.start < range.end && range.start < self.start + self.bytes
    }
}

/// Converted copies by tensor. `None` marks a weight that stays with the CPU.
pub struct Cache<W> {
    entries: HashMap<Key, Option<Arc<W>>>,
}

impl<W> Default for Cache<W> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<W> Cache<W> {
    /// What is known of `key`: nothing (outer `None`), that the CPU keeps it, or its copy.
    pub fn get(&self, key: &Key) -> Option<Option<Arc<W>>> {
        self.entries.get(key).cloned()
    }

    /// Remembers a copy, or that there will be none.
    pub fn insert(&mut self, key: Key, weight: Option<Arc<W>>) {
        self.entries.insert(key, weight);
    }

    /// Forgets what overlaps the addresses `range`; tells whether anything did.
    pub fn invalidate(&mut self, range: &Range<usize>) -> bool {
        let before = self.entries.len();
        self.entries.retain(|key, _| !key.overlaps(range));
        self.entries.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_sys::RowReader;

    #[test]
    fn a_copy_lives_until_one_of_its_bytes_is_written() {
        let data = vec![0u8; 256];
        let first = Source { data: &data[..128], reader: RowReader::f32(), k: 8, n: 4, row_stride: 32 };
        let second = Source { data: &data[128..], ..first };
        let mut cache = Cache::default();
        cache.insert(Key::of(&first), Some(Arc::new(1)));
        cache.insert(Key::of(&second), None);
        let base = data.as_ptr() as usize;
        assert!(!cache.invalidate(&(base + 256..base + 300)));
        assert_eq!(cache.get(&Key::of(&second)), Some(None));
        assert!(cache.invalidate(&(base + 128..base + 129)));
        assert_eq!(cache.get(&Key::of(&second)), None);
        assert_eq!(cache.get(&Key::of(&first)), Some(Some(Arc::new(1))));
        // The same bytes seen as another matrix are another weight.
        assert_eq!(cache.get(&Key::of(&Source { k: 4, n: 8, row_stride: 16, ..first })), None);
    }
}
