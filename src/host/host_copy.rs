//! Second copies of weights, for the host's own CPU kernels: which weights get one, and how many fit.
//!
//! A converted weight of a four-bit file has more bytes than the file, and few rows are bound by bytes. The host's
//! kernels read the file's own bits, so they may be faster there, at the price of a copy in the layout that they like
//! best. Their results are the host's, not ours: this is the one way that changes a bit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use ggml_sys::RowReader;

use super::machine;
use crate::engine::{Activations, Decode};
use crate::log;
use crate::names::value_of;
use crate::observe::{Held, Stats};
use crate::weights::Source;

/// Sources of as many bits a weight or more have no second copy: a converted copy is no larger.
const BITS_MAX: f64 = 8.0;

/// `RKNPU_KEEP`: what is kept of a weight besides the original.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// The NPU's copy, and the host's where that helps and fits in half of the free memory.
    #[default]
    Auto,
    /// Both copies, whatever they take.
    Both,
    /// The NPU's copy alone.
    Npu,
}

impl Keep {
    /// The values, for error messages.
    pub const ALLOWED: &'static str = "auto, both or npu";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(&[("auto", Self::Auto), ("both", Self::Both), ("npu", Self::Npu)], name)
    }

    /// What this comes to: nobody asks for the host's copy where `decode` names another way, and by itself an emulated
    /// NPU, whose times say nothing, makes none, so that its results are the same in every run.
    pub fn effective(self, decode: Decode, emulated: bool) -> Self {
        match self {
            _ if decode != Decode::Auto => Self::Npu,
            Self::Auto if emulated => Self::Npu,
            keep => keep,
        }
    }
}

/// A weight as the host's kernels want it.
pub trait HostCopy: Send + Sync {
    /// Bytes that the copy reads for a product.
    fn bytes(&self) -> usize;

    /// Whether these are the original's, which then have to stay.
    fn is_original(&self) -> bool;

    /// Rows × N results, one row after the other, into `out`; false when the host failed, `out` is then unspecified.
    fn multiply(&self, activations: &Activations, out: &mut [f32]) -> bool;
}

/// Who makes such copies.
pub trait HostKernels: Send + Sync {
    /// The copy of a weight; `None` when the host cannot have one.
    fn copy(&self, weight: &Source) -> Option<Box<dyn HostCopy>>;

    /// What they take on `threads` threads; `None` when there are none.
    fn costs(&self, threads: usize) -> Option<HostCosts>;
}

/// ns of the host's kernels for a multiplication or an addition.
#[derive(Debug, Clone, Copy)]
pub struct HostCosts {
    /// Of attention with f16 keys and values.
    pub attention_ns: f64,
    /// Of a product of f32 rows by an f16 matrix.
    pub product_ns: f64,
}

/// A host whose kernels are out of reach.
pub struct NoKernels;

impl HostKernels for NoKernels {
    fn copy(&self, _weight: &Source) -> Option<Box<dyn HostCopy>> {
        None
    }

    fn costs(&self, _threads: usize) -> Option<HostCosts> {
        None
    }
}

/// The copies of a process.
pub struct HostCopies {
    kernels: &'static dyn HostKernels,
    keep: Keep,
    /// Bytes that all copies may have together.
    budget: AtomicUsize,
    /// A model came since the budget was reckoned.
    is_new: AtomicBool,
    is_full_said: AtomicBool,
    stats: Arc<Stats>,
}

/// A copy, counted as long as it is held.
pub struct Kept {
    /// The copy.
    pub copy: Box<dyn HostCopy>,
    _held: Held,
}

impl HostCopies {
    /// No copies yet; `keep` as [`Keep::effective`] gives it.
    pub fn new(kernels: &'static dyn HostKernels, keep: Keep, stats: &Arc<Stats>) -> Self {
        Self {
            kernels,
            keep,
            budget: AtomicUsize::new(0),
            is_new: AtomicBool::new(true),
            is_full_said: AtomicBool::new(false),
            stats: stats.clone(),
        }
    }

    /// Notes that a model is being loaded: what is free is asked again before the next copy.
    pub fn a_model_comes(&self) {
        self.is_new.store(true, Relaxed);
    }

    /// The copy of a weight whose converted copy has `converted` bytes, if it is to have one.
    pub fn of(&self, weight: &Source, converted: usize) -> Option<Kept> {
        let bits = weight.bits_per_weight();
        if self.keep == Keep::Npu || !weight.reader.is_quantized() || bits >= BITS_MAX {
            return None;
        }
        let bytes = weight.data.len();
        if self.keep == Keep::Auto && (bytes >= converted || !self.fits(bytes)) {
            return None;
        }
        let copy = self.kernels.copy(weight)?;
        let held = Held::host_copy(&self.stats, copy.bytes());
        Some(Kept { copy, _held: held })
    }

    /// Whether a weight of so many `elements` in `bytes` bytes is sure to get one. Those of `auto` fit by themselves.
    pub fn are_all_made(&self, reader: &RowReader, elements: usize, bytes: usize) -> bool {
        self.keep == Keep::Both && reader.is_quantized() && (bytes as f64) * 8.0 < BITS_MAX * elements as f64
    }

    fn fits(&self, bytes: usize) -> bool {
        let held = self.stats.kept_bytes.now() as usize;
        if self.is_new.swap(false, Relaxed) {
            // What is held already is not free, and would be without it.
            self.budget.store(budget(machine::memory().0, held), Relaxed);
            self.is_full_said.store(false, Relaxed);
        }
        let budget = self.budget.load(Relaxed);
        let fits = held.saturating_add(bytes) <= budget;
        if !fits && !self.is_full_said.swap(true, Relaxed) {
            log!(
                Info,
                "copies of weights for the host's kernels end at {held} bytes, half of the free memory is {budget}; \
                 RKNPU_KEEP=both makes all"
            );
        }
        fits
    }
}

/// Half of what is free or held by copies.
fn budget(free: usize, held: usize) -> usize {
    free.saturating_add(held) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_names() {
        for (name, keep) in [("AUTO", Keep::Auto), ("both", Keep::Both), ("npu", Keep::Npu)] {
            assert_eq!(Keep::by_name(name), Some(keep));
        }
        assert_eq!(Keep::by_name("cpu"), None);
    }

    #[test]
    fn a_forced_route_and_an_emulated_npu_make_no_copies_by_themselves() {
        for decode in [Decode::Cpu, Decode::Npu] {
            assert_eq!(Keep::Both.effective(decode, false), Keep::Npu);
        }
        assert_eq!(Keep::Auto.effective(Decode::Auto, true), Keep::Npu);
        assert_eq!(Keep::Auto.effective(Decode::Auto, false), Keep::Auto);
        assert_eq!(Keep::Both.effective(Decode::Auto, true), Keep::Both);
        assert_eq!(Keep::Npu.effective(Decode::Auto, false), Keep::Npu);
    }

    struct Anything;
    struct Some8(usize);

    impl HostCopy for Some8 {
        fn bytes(&self) -> usize {
            self.0
        }
        fn is_original(&self) -> bool {
            false
        }
        fn multiply(&self, _activations: &Activations, _out: &mut [f32]) -> bool {
            true
        }
    }

    impl HostKernels for Anything {
        fn copy(&self, weight: &Source) -> Option<Box<dyn HostCopy>> {
            Some(Box::new(Some8(weight.data.len())))
        }

        fn costs(&self, _threads: usize) -> Option<HostCosts> {
            None
        }
    }

    /// Rows of 32 weights in `block_bytes` bytes.
    fn source(data: &[u8], block_bytes: usize) -> Source<'_> {
        let reader = RowReader::blocks("test", 32, block_bytes);
        Source { data, reader, k: 32, n: data.len() / block_bytes, row_stride: block_bytes }
    }

    fn copies(keep: Keep) -> HostCopies {
        HostCopies::new(&Anything, keep, &Arc::default())
    }

    #[test]
    fn only_weights_below_eight_bits_have_a_second_copy() {
        let data = vec![0; 34 * 8];
        for keep in [Keep::Auto, Keep::Both] {
            assert!(copies(keep).of(&source(&data[..18 * 8], 18), 32 * 8).is_some(), "4.5 bits, {keep:?}");
            assert!(copies(keep).of(&source(&data, 34), 32 * 16).is_none(), "8.5 bits, {keep:?}");
        }
        assert!(copies(Keep::Npu).of(&source(&data[..18 * 8], 18), 32 * 8).is_none());
        // Where the converted copy has no more bytes, it is the one to read.
        assert!(copies(Keep::Auto).of(&source(&data[..18 * 8], 18), 16 * 8).is_none());
        assert!(copies(Keep::Both).of(&source(&data[..18 * 8], 18), 16 * 8).is_some());
        let reader = RowReader::blocks("test", 32, 18);
        assert!(copies(Keep::Both).are_all_made(&reader, 256, 144));
        assert!(
            !copies(Keep::Both).are_all_made(&reader, 256, 272)
                && !copies(Keep::Auto).are_all_made(&reader, 256, 144)
        );
    }

    #[test]
    fn copies_end_where_half_of_the_free_memory_does() {
        assert_eq!(budget(1000, 0), 500);
        assert_eq!(budget(800, 200), 500, "what is held counts as free");
        let (data, copies) = (vec![0; 18 * 8], copies(Keep::Auto));
        copies.is_new.store(false, Relaxed);
        copies.budget.store(2 * data.len(), Relaxed);
        let of = || copies.of(&source(&data, 18), 32 * 8);
        let (first, second) = (of(), of());
        assert!(first.is_some() && second.is_some() && of().is_none());
        assert_eq!(copies.stats.kept_bytes.now(), 2 * 18 * 8);
        // Room comes back with what is dropped, and with another model that finds more free.
        drop(first);
        assert!(of().is_some());
        copies.a_model_comes();
        assert!(copies.budget.load(Relaxed) < machine::memory().0 / 4);
        assert!(of().is_some());
        assert!(copies.budget.load(Relaxed) >= machine::memory().0 / 4);
    }
}
