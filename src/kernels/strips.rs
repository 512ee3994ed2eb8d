//! Rows of native A as one thread sees them.

use std::marker::PhantomData;
use std::ops::Range;

/// The same elements of each of A's blocks: what some rows occupy in native A, a strip of neighbours a block of k.
///
/// Threads that pack different rows have strips of their own over the same memory.
pub struct Strips<'a, T> {
    base: *mut T,
    count: usize,
    /// Elements of a strip, and from one strip to the next.
    len: usize,
    apart: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: strips are disjoint parts of a slice, of which nobody else has any: like a `&mut [T]`.
unsafe impl<T: Send> Send for Strips<'_, T> {}

impl<'a, T> Strips<'a, T> {
    /// Elements `range` of each block of `block` elements of `a`.
    ///
    /// # Panics
    /// When `a` is not whole blocks, or the range is not within one.
    pub fn new(a: &'a mut [T], block: usize, range: Range<usize>) -> Self {
        // SAFETY: nobody else has the slice meanwhile.
        unsafe { Self::shared(a.as_mut_ptr(), a.len(), block, range) }
    }

    /// As [`Self::new`], of the `len` elements from `base` on.
    ///
    /// # Safety
    /// They are valid for 'a, and nobody else touches those in the strips meanwhile.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub unsafe fn shared(base: *mut T, len: usize, block: usize, range: Range<usize>) -> Self {
        assert!(block > 0 && len % block == 0, "{len} elements in blocks of {block}");
        assert!(range.start <= range.end && range.end <= block, "{range:?} of a block of {block}");
        // SAFETY: within the first block, or at its end.
        let base = unsafe { base.add(range.start.min(len)) };
        Self { base, count: len / block, len: range.len(), apart: block, memory: PhantomData }
    }

    /// How many there are.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The strip of a block.
    ///
    /// # Panics
    /// When there is no such block.
    #[inline(always)]
    pub fn get(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.count, "strip {index} of {}", self.count);
        // SAFETY: within the slice, by the lengths that `shared` checked; borrowed from these strips.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(index * self.apart), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_are_the_same_places_of_all_blocks() {
        let mut a: Vec<usize> = (0..24).collect();
        let mut strips = Strips::new(&mut a, 8, 2..5);
        assert_eq!(strips.count(), 3);
        for index in 0..3 {
            assert_eq!(strips.get(index), [8 * index + 2, 8 * index + 3, 8 * index + 4]);
        }
        assert_eq!(Strips::new(&mut [0u8; 0], 4, 1..2).count(), 0);
    }

    #[test]
    #[should_panic(expected = "strip 3 of 3")]
    fn there_are_no_strips_beyond_the_last_block() {
        Strips::new(&mut [0u8; 24], 8, 0..8).get(3);
    }
}
