//! Modelled time: what the emulated chip would have taken, by a formula that was fitted to published measurements.
//!
//! * [`cost`]: the formula and its constants for each SoC;
//! * [`timeline`]: what waits for what, and how cores share memory;
//! * [`pace`]: `RKNPU_EMU_PACE`, by which runs take their modelled time in real time instead of computing.
//!
//! Here, calls that succeeded are noted in the process's one timeline. But for paced runs, nobody waits for modelled
//! time.

pub mod cost;
pub mod pace;
pub mod timeline;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::chip::Chip;
use crate::context::Context;
use crate::memory::View;
use crate::report::Tally;
use cost::{Shape, Timing};
use timeline::{Kind, Timeline, Touch, Work};

/// The timeline of the process, and what was done in it.
struct Clock {
    timing: &'static Timing,
    line: Timeline,
    tally: Tally,
}

impl Clock {
    fn place(&mut self) {
        let tally = &mut self.tally;
        self.line.place(|placed| tally.add(placed));
        tally.settle();
    }
}

/// `None` without a chip, on which nothing runs.
static CLOCK: LazyLock<Option<Mutex<Clock>>> = LazyLock::new(|| {
    let chip = Chip::chosen()?;
    let timing = Timing::of(chip.name);
    crate::report::at_exit();
    Some(Mutex::new(Clock { timing, line: Timeline::new(timing, chip.cores), tally: Tally::new(chip.cores) }))
});

/// A number of the calling thread's own.
fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local!(static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    // A thread that is ending has lost its number; it stands for itself no longer.
    MINE.try_with(|mine| *mine).unwrap_or(u64::MAX)
}

/// The device addresses of a view.
fn range(view: &View) -> Range<usize> {
    let start = view.device() as usize;
    start..start + view.bytes
}

fn record(work: impl FnOnce(&Timing) -> Work, touch: Touch) {
    let Some(clock) = &*CLOCK else { return };
    let mut clock = clock.lock();
    let work = work(clock.timing);
    clock.line.record(work, &touch);
    if clock.line.is_full() {
        clock.place();
    }
}

/// Notes that the call of that C name succeeded, as far as its time depends on nothing else.
pub fn called(call: &str) {
    if matches!(call, "rknn_matmul_create" | "rknn_matmul_create_dynamic_shape") {
        let touch = Touch { thread: thread(), ..Touch::default() };
        record(|timing| Work::Host(Kind::Create, timing.create_ns), touch);
    }
}

/// Notes a binding to `context` of `view`, of which `converted` bytes were converted.
pub fn bound(context: *const Context, view: &View, converted: usize) {
    let touch = Touch {
        thread: thread(),
        context: Some(context as usize),
        reads: if converted > 0 { vec![range(view)] } else { Vec::new() },
        ..Touch::default()
    };
    record(
        |timing| match converted {
            0 => Work::Host(Kind::Bind, timing.bind_ns),
            _ => Work::Host(Kind::Convert, timing.convert_ns_per_byte * converted as f64),
        },
        touch,
    );
}

/// Notes a sync of `view`; `bytes` is 0 when there was nothing to copy.
pub fn synced(view: &View, to_device: bool, bytes: usize) {
    let mut touch = Touch { thread: thread(), ..Touch::default() };
    (if to_device { &mut touch.writes } else { &mut touch.reads }).push(range(view));
    record(|timing| Work::Host(Kind::Sync, timing.sync_ns.0 + timing.sync_ns.1 * bytes as f64), touch);
}

/// Notes a run of `context`, which is in that I/O domain, on the core that it is pinned to, which read `inputs` and wrote `output`.
pub fn ran<'a>(
    (context, domain): (*const Context, usize),
    shape: Shape,
    core: Option<usize>,
    inputs: impl IntoIterator<Item = &'a View>,
    output: &View,
) {
    let touch = Touch {
        thread: thread(),
        context: Some(context as usize),
        reads: inputs.into_iter().map(range).collect(),
        writes: vec![range(output)],
    };
    if let Some(clock) = &*CLOCK {
        clock.lock().tally.ran_in(domain);
    }
    record(|_| Work::Run(shape, core), touch);
}

/// Forgets a context, whose address may be another's from now on.
pub fn ended(context: *const Context) {
    if let Some(clock) = &*CLOCK {
        clock.lock().line.forget_context(context as usize);
    }
}

/// Forgets the device memory at these addresses: it is about to be unmapped.
pub fn freed(start: usize, bytes: usize) {
    if let Some(clock) = &*CLOCK {
        clock.lock().line.forget(&(start..start + bytes));
    }
}

/// The ns at which `core` ended its last run, or, with `None`, at which everything was done. `None` for a core that
/// the chip lacks, and without a chip.
pub fn now_ns(core: Option<usize>) -> Option<u64> {
    let mut clock = CLOCK.as_ref()?.lock();
    clock.place();
    let ns = match core {
        Some(core) => *clock.line.cores().get(core)?,
        None => clock.line.latest(),
    };
    Some(ns.round() as u64)
}

/// Everything so far as JSON, see [`crate::report`]. `None` without a chip.
pub fn report() -> Option<String> {
    let mut clock = CLOCK.as_ref()?.lock();
    clock.place();
    Some(clock.tally.json(clock.timing, &clock.line, pace::busy_ns()))
}
