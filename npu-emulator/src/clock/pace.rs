//! Paced runs: with `RKNPU_EMU_PACE=1` a run computes nothing and instead takes its modelled time in real time, so that a
//! program's wall clock has its own real time and the NPU's modelled time on one clock.
//!
//! The rules are those of [`super::timeline`]: a core serves one run at a time (the caller holds it), and while n cores
//! move data at once the traffic of each is slower. C keeps the bytes that it had, zeros most often: **results are not
//! computed**. Syncs copy nothing, since nobody reads the other side. Creating and binding cost what they cost the CPU
//! here, nothing modelled. A run never takes less than its modelled time; by how much it takes more depends on the machine's
//! timers, and on who else wants its processors: an NPU waits for none of them. So threads that have runs go before all
//! ordinary ones from then on, where the system allows that (`CAP_SYS_NICE`, or a limit of real-time priorities): but the
//! program's first thread, which has other things to do, too.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::cost::{Cost, Timing};
use crate::chip::MOST_CORES;

/// The environment variable, read once: anything but nothing and `0` paces runs.
pub const PACE_VARIABLE: &str = "RKNPU_EMU_PACE";

/// How long before its end a run stops sleeping and spins instead: about what a timer is late, for a thread that goes before
/// others, and for one among them. Yielding would give the CPU to whoever polls, for milliseconds.
const TAIL_AHEAD: Duration = Duration::from_micros(10);
const TAIL: Duration = Duration::from_micros(40);

/// Whether runs are paced.
pub fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os(PACE_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0"))
}

/// What is left of the runs that are under way.
#[derive(Debug, Clone, Default)]
struct Runs([Option<Cost>; MOST_CORES]);

impl Runs {
    fn left(&self) -> impl Iterator<Item = &Cost> {
        self.0.iter().flatten().filter(|left| !left.is_done())
    }

    /// ns to the next change of anything, and by how much traffic is slower until then.
    fn next(&self, timing: &Timing) -> (f64, f64) {
        let slowdown = timing.slowdown(self.left().filter(|left| left.moves_data()).count());
        (self.left().map(|left| left.next(slowdown)).fold(f64::INFINITY, f64::min), slowdown)
    }

    fn step(&mut self, ns: f64, slowdown: f64) {
        let left = self.0.iter_mut().flatten().filter(|left| !left.is_done());
        left.for_each(|left| left.advance(ns, slowdown));
    }

    /// Lets `ns` pass.
    fn advance(&mut self, timing: &Timing, mut ns: f64) {
        while ns > 0.0 && self.left().next().is_some() {
            let (next, slowdown) = self.next(timing);
            let step = next.min(ns);
            self.step(step, slowdown);
            ns -= step;
        }
    }

    /// ns until the run on `core` is done, if no other begins.
    fn end_ns(&self, timing: &Timing, core: usize) -> f64 {
        let (mut runs, mut ns) = (self.clone(), 0.0);
        while runs.0[core].is_some_and(|left| !left.is_done()) {
            let (next, slowdown) = runs.next(timing);
            runs.step(next, slowdown);
            ns += next;
        }
        ns
    }
}

/// The runs under way as of an instant, and how long each core was held so far.
struct Board {
    runs: Runs,
    at: Option<Instant>,
    busy: [Duration; MOST_CORES],
}

static BOARD: Mutex<Board> =
    Mutex::new(Board { runs: Runs([None; MOST_CORES]), at: None, busy: [Duration::ZERO; MOST_CORES] });

impl Board {
    fn advance(&mut self, timing: &Timing, now: Instant) {
        // Instants that other threads took may be a little later than `now`.
        if let Some(passed) = self.at.map(|at| now.saturating_duration_since(at)) {
            self.runs.advance(timing, passed.as_nanos() as f64);
        }
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }
}

/// Takes the time of a run of `cost` on `core`, which the caller holds.
///
/// Ends of other runs are foreseen, and another run that begins only makes this one later: so it is enough to look
/// again at the end that was foreseen.
pub fn run(timing: &Timing, core: usize, cost: Cost) {
    let tail = if is_punctual() { TAIL_AHEAD } else { TAIL };
    let begin = Instant::now();
    let mut board = BOARD.lock();
    board.advance(timing, begin);
    board.runs.0[core] = Some(cost);
    loop {
        let ns = board.runs.end_ns(timing, core);
        if ns <= 0.0 {
            break;
        }
        // What rounding takes off must not make a run shorter.
        let end = board.at.unwrap_or(begin) + Duration::from_nanos(ns.ceil() as u64);
        drop(board);
        sleep_until(end, tail);
        board = BOARD.lock();
        board.advance(timing, Instant::now());
    }
    board.runs.0[core] = None;
    board.busy[core] += begin.elapsed();
}

/// Sleeps for most of the time and spins for the rest.
fn sleep_until(end: Instant, tail: Duration) {
    loop {
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left if left > tail => thread::sleep(left - tail),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Has this thread's timers end when they are asked to, not up to 50 µs later, and the thread go before ordinary ones, once;
/// whether it does.
fn is_punctual() -> bool {
    thread_local!(static AHEAD: bool = {
        // SAFETY: takes plain numbers, and changes this thread's timers only.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
        // SAFETY: both take nothing.
        let is_first = unsafe { libc::gettid() == libc::getpid() };
        let lowest = libc::sched_param { sched_priority: 1 };
        // SAFETY: the struct is readable; 0 is this thread.
        !is_first && unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) } == 0
    });
    // A thread that is ending does without.
    AHEAD.try_with(|ahead| *ahead).unwrap_or(false)
}

/// How long each core was held by paced runs, in real ns; `None` when runs are not paced.
pub fn busy_ns() -> Option<[u64; MOST_CORES]> {
    is_on().then(|| BOARD.lock().busy.map(|busy| busy.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half arithmetic and fixed time, in ns; `memory_ns` of traffic.
    fn cost(fixed_ns: f64, compute_ns: f64, memory_ns: f64) -> Cost {
        Cost { fixed_ns, compute_ns, memory_ns, bytes: 0.0 }
    }

    #[test]
    fn traffic_of_several_cores_is_slower_and_speeds_up_when_one_ends() {
        let timing = Timing::of(c"rk3588");
        let mut runs = Runs::default();
        runs.0[0] = Some(cost(10.0, 50.0, 100.0));
        assert_eq!(runs.end_ns(timing, 0), 110.0);
        runs.0[1] = Some(cost(10.0, 0.0, 200.0));
        // Two cores draw 22.6 of 27.3 GB/s: no one is slower. Three would have 33.9.
        assert_eq!(runs.end_ns(timing, 1), 210.0);
        runs.0[2] = Some(cost(10.0, 0.0, 100.0));
        let slow = timing.slowdown(3);
        assert!((runs.end_ns(timing, 0) - (10.0 + 100.0 * slow)).abs() < 0.01);
        assert!((runs.end_ns(timing, 1) - (110.0 + 100.0 * slow)).abs() < 0.01);
        // In two steps, across changes, it is the same.
        runs.advance(timing, 60.0);
        runs.advance(timing, 60.0);
        assert!((runs.end_ns(timing, 1) - (100.0 * slow - 10.0)).abs() < 0.01);
        runs.advance(timing, 1000.0);
        assert_eq!([0, 1, 2].map(|core| runs.end_ns(timing, core)), [0.0; 3]);
    }

    #[test]
    fn a_run_takes_no_less_than_its_time() {
        let timing = Timing::of(c"rk3588");
        let begin = Instant::now();
        run(timing, 0, cost(33_000.0, 900_000.0, 100_000.0));
        assert!(begin.elapsed() >= Duration::from_nanos(933_000));
    }
}
