//! Where a product of few rows is done: on the NPU, or by our kernels on the CPU, over the same bytes; or by the
//! host's kernels over a copy of its own, which has fewer bytes where the file's weights have few bits.
//!
//! All are bound by the weight's bytes. The NPU has a fixed cost a run and a thread to wake, the CPU's big cores have
//! about the same rate and no such cost; with more rows the CPU runs out of arithmetic first. What is believed is
//! corrected by what is measured, where the NPU is real: an emulated one takes the time of the emulation. Products of
//! f16, whose sums depend on their order, are routed by belief alone, so that they are the same in every run.

use crate::chip::Timing;
use crate::names::value_of;
use crate::plan::WeightPlan;

/// The most rows that the CPU is considered for.
pub const ROWS_MAX: usize = 16;
/// Waking a core's thread and the caller again, ns (source: `docs/facts.md`).
const WAKE_NS: f64 = 100_000.0;
/// Sharing work out over the CPU's threads, ns: a guess.
const SHARE_NS: f64 = 10_000.0;
/// Products of one row and one weight that the CPU's big cores do in a ns: a guess, of about 11 a cycle on each of four.
const CPU_PRODUCTS: f64 = 100.0;
/// Having the host's CPU backend compute a graph of one node, ns: a guess.
const HOST_NS: f64 = 15_000.0;
/// As [`CPU_PRODUCTS`], by the host's kernels, which take blocks of few bits apart as they go: a guess.
const HOST_PRODUCTS: f64 = 60.0;
/// How fast what is measured replaces what was believed.
const GAIN: f64 = 0.05;
/// One measurement counts for no more than this factor: the first product makes contexts.
const SURPRISE_MAX: f64 = 4.0;

/// `RKNPU_DECODE`: who does products of few rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Decode {
    /// Who is believed to be faster.
    #[default]
    Auto,
    /// Our kernels on the CPU, whatever they can.
    Cpu,
    /// The NPU.
    Npu,
}

impl Decode {
    /// The values, for error messages.
    pub const ALLOWED: &'static str = "auto, cpu or npu";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(&[("auto", Self::Auto), ("cpu", Self::Cpu), ("npu", Self::Npu)], name)
    }
}

/// A product of few rows, as far as it matters who does it.
#[derive(Clone, Copy)]
pub struct Few<'a> {
    /// How its weight is cut.
    pub plan: &'a WeightPlan,
    /// What the chip takes for what.
    pub timing: &'a Timing,
    /// Its rows.
    pub rows: usize,
    /// Whether NPU and CPU give the same result.
    pub exact: bool,
}

/// By how much times have differed from what was believed of them.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    decode: Decode,
    /// Whether measurements tell something.
    learns: bool,
    npu: f64,
    cpu: f64,
    host: f64,
}

impl Route {
    /// What the user wants; `learns` where the NPU is real.
    pub fn new(decode: Decode, learns: bool) -> Self {
        Self { decode, learns, npu: 1.0, cpu: 1.0, host: 1.0 }
    }

    /// Whether the CPU is to do a product of `rows` rows that takes the NPU `npu_ns` by the formula; `exact` where the
    /// result is the same whoever does it.
    pub fn is_cpu(&self, plan: &WeightPlan, timing: &Timing, rows: usize, npu_ns: f64, exact: bool) -> bool {
        let (npu, cpu) = if exact { (self.npu, self.cpu) } else { (1.0, 1.0) };
        match self.decode {
            Decode::Cpu => true,
            Decode::Npu => false,
            Decode::Auto => cpu * cpu_ns(plan, timing, rows) < npu * (npu_ns + WAKE_NS),
        }
    }

    /// Whether the host is to do a product of `rows` rows with its copy of the weight, of `bytes` bytes, where the others
    /// take `npu_ns` by the formula, and `cpu_can`. Never where the user named who is to do it.
    pub fn is_host(&self, product: &Few, npu_ns: f64, cpu_can: bool, bytes: usize) -> bool {
        let Few { plan, timing, rows, exact } = *product;
        let (npu, cpu, host) = if exact { (self.npu, self.cpu, self.host) } else { (1.0, 1.0, 1.0) };
        let host = host * host_ns(plan, timing, rows, bytes);
        self.decode == Decode::Auto
            && host < npu * (npu_ns + WAKE_NS)
            && (!cpu_can || host < cpu * cpu_ns(plan, timing, rows))
    }

    /// Notes that the host took `ns` for a product of `rows` rows and a copy of `bytes` bytes.
    pub fn host_took(&mut self, plan: &WeightPlan, timing: &Timing, rows: usize, bytes: usize, ns: f64) {
        if self.learns {
            learn(&mut self.host, ns / host_ns(plan, timing, rows, bytes));
        }
    }

    /// Notes that the CPU took `ns` for a product of `rows` rows.
    pub fn cpu_took(&mut self, plan: &WeightPlan, timing: &Timing, rows: usize, ns: f64) {
        if self.learns {
            learn(&mut self.cpu, ns / cpu_ns(plan, timing, rows));
        }
    }

    /// Notes that the NPU took `ns` for what takes it `npu_ns` by the formula.
    pub fn npu_took(&mut self, npu_ns: f64, ns: f64) {
        if self.learns {
            learn(&mut self.npu, ns / (npu_ns + WAKE_NS));
        }
    }
}

/// What our kernels on the CPU are believed to take, ns.
fn cpu_ns(plan: &WeightPlan, timing: &Timing, rows: usize) -> f64 {
    let bytes = plan.stack_bytes() as f64 / timing.cpu_rate;
    let products = rows as f64 * (plan.k * plan.n) as f64 / CPU_PRODUCTS;
    SHARE_NS + bytes.max(products)
}

/// What the host's kernels are believed to take over a copy of `bytes` bytes, ns.
fn host_ns(plan: &WeightPlan, timing: &Timing, rows: usize, bytes: usize) -> f64 {
    let bytes = bytes as f64 / timing.cpu_rate;
    let products = rows as f64 * (plan.k * plan.n) as f64 / HOST_PRODUCTS;
    HOST_NS + bytes.max(products)
}

fn learn(factor: &mut f64, measured: f64) {
    let measured = measured.clamp(*factor / SURPRISE_MAX, *factor * SURPRISE_MAX);
    *factor += GAIN * (measured - *factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::Chip;
    use crate::plan::{Means, Schedule};
    use rknn_sys::MatmulType;

    fn plan(chip: &Chip, k: usize, n: usize) -> (WeightPlan, f64) {
        let means = Means { cores: 3, planes: 1, windows: true };
        let plan = WeightPlan::fastest(chip, means, MatmulType::I8, (k, n), usize::MAX).unwrap();
        let ns = Schedule::best(&plan, &chip.timing, means, 1).ns;
        (plan, ns)
    }

    #[test]
    fn small_weights_go_to_the_cpu_and_a_vocabulary_to_the_npu() {
        let chip = Chip::by_name("rk3588").unwrap();
        let route = Route::new(Decode::Auto, true);
        let (small, ns) = plan(chip, 1536, 1536);
        assert!(route.is_cpu(&small, &chip.timing, 1, ns, true));
        let (large, ns) = plan(chip, 1536, 151_936);
        assert!(!route.is_cpu(&large, &chip.timing, 1, ns, true));
        for (decode, cpu) in [(Decode::Cpu, true), (Decode::Npu, false)] {
            assert_eq!(Route::new(decode, true).is_cpu(&large, &chip.timing, 16, ns, true), cpu);
        }
    }

    #[test]
    fn what_is_measured_counts_where_results_do_not_depend_on_it() {
        let chip = Chip::by_name("rk3588").unwrap();
        let mut route = Route::new(Decode::Auto, true);
        let (small, ns) = plan(chip, 1536, 1536);
        for _ in 0..200 {
            route.cpu_took(&small, &chip.timing, 1, 1e6);
        }
        assert!(!route.is_cpu(&small, &chip.timing, 1, ns, true), "{route:?}");
        assert!(route.is_cpu(&small, &chip.timing, 1, ns, false), "f16 stays where it is");
        for _ in 0..200 {
            route.npu_took(ns, 1e7);
        }
        assert!(route.is_cpu(&small, &chip.timing, 1, ns, true), "{route:?}");
        let mut emulated = Route::new(Decode::Auto, false);
        emulated.cpu_took(&small, &chip.timing, 1, 1e9);
        assert!(emulated.is_cpu(&small, &chip.timing, 1, ns, true));
    }

    #[test]
    fn a_copy_of_fewer_bytes_goes_to_the_host_unless_it_is_slow_or_not_asked() {
        let chip = Chip::by_name("rk3588").unwrap();
        let (plan, ns) = plan(chip, 2048, 8192);
        let (timing, four_bits) = (&chip.timing, 2048 * 8192 * 9 / 16);
        let few = |rows| Few { plan: &plan, timing, rows, exact: true };
        let mut route = Route::new(Decode::Auto, true);
        assert!(route.is_host(&few(1), ns, true, four_bits));
        assert!(!route.is_host(&few(1), ns, true, 2048 * 8192 * 17 / 16), "more bytes than ours");
        assert!(!route.is_host(&few(16), ns, true, four_bits), "arithmetic decides");
        for decode in [Decode::Cpu, Decode::Npu] {
            assert!(!Route::new(decode, true).is_host(&few(1), ns, true, four_bits), "{decode:?}");
        }
        for _ in 0..200 {
            route.host_took(&plan, timing, 1, four_bits, 5e6);
        }
        assert!(!route.is_host(&few(1), ns, true, four_bits), "{route:?}");
        assert!(route.is_host(&Few { exact: false, ..few(1) }, ns, true, four_bits), "by belief alone");
    }

    #[test]
    fn values_have_names() {
        assert_eq!(Decode::by_name("CPU"), Some(Decode::Cpu));
        assert_eq!(Decode::by_name("gpu"), None);
    }
}
