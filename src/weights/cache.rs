//! Which tensors of the host have a converted copy on the NPU.
//!
//! A tensor is known by where it lies and how it is seen; a copy is dropped as soon as the host writes to, or
//! frees, any byte of it. Tensors of buffers that the host marked as weights are kept here, and those that only
//! graphs of ours write to, which are watched: everything else may change without notice.

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
    /// Addresses in which there are, or were, tensors that graphs may write to: of a few buffers.
    watched: Vec<Range<usize>>,
}

impl<W> Default for Cache<W> {
    fn default() -> Self {
        Self { entries: HashMap::new(), watched: Vec::new() }
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

    /// Notes that graphs may write to `range`, the whole of a buffer.
    pub fn watch(&mut self, range: Range<usize>) {
        if !self.watched.contains(&range) {
            // Of buffers that have gone, and whose addresses another one has.
            self.watched.retain(|old| old.end <= range.start || range.end <= old.start);
            self.watched.push(range);
        }
    }

    /// Whether what a graph writes to `range` may concern a tensor.
    pub fn is_watched(&self, range: &Range<usize>) -> bool {
        self.watched.iter().any(|watched| watched.start < range.end && range.start < watched.end)
    }

    /// Forgets the copies that are to go, which are then made anew where they are asked for.
    pub fn forget(&mut self, is_to_go: impl Fn(&W) -> bool) {
        self.entries.retain(|_, weight| !weight.as_deref().is_some_and(&is_to_go));
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
        assert!(!cache.is_watched(&(base..base + 1)));
        cache.watch(base..base + 256);
        assert!(cache.is_watched(&(base + 255..base + 300)) && !cache.is_watched(&(base + 256..base + 300)));
        // Another buffer in the place of the first.
        cache.watch(base..base + 128);
        assert!(!cache.is_watched(&(base + 128..base + 256)));
        // The same bytes seen as another matrix are another weight.
        assert_eq!(cache.get(&Key::of(&Source { k: 4, n: 8, row_stride: 16, ..first })), None);
    }
}
