//! How long the NPU was at work: time in which at least one core ran.

use std::time::Instant;

use parking_lot::Mutex;

/// Time in which something ran, however many at once.
#[derive(Debug, Default)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: usize,
    since: Option<Instant>,
    ns: u64,
}

impl Activity {
    /// A run begins.
    pub fn begin(&self) -> Instant {
        let now = Instant::now();
        let mut state = self.0.lock();
        if state.running == 0 {
            state.since = Some(now);
        }
        state.running += 1;
        now
    }

    /// A run ends.
    pub fn end(&self) {
        let mut state = self.0.lock();
        state.running = state.running.saturating_sub(1);
        if state.running == 0 {
            state.ns += state.since.take().map_or(0, |since| since.elapsed().as_nanos() as u64);
        }
    }

    /// ns so far, what still runs not counted.
    pub fn ns(&self) -> u64 {
        self.0.lock().ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn runs_at_once_count_once() {
        let activity = Activity::default();
        let started = activity.begin();
        activity.begin();
        std::thread::sleep(Duration::from_millis(5));
        activity.end();
        assert_eq!(activity.ns(), 0, "one still runs");
        activity.end();
        let ns = activity.ns();
        assert!(ns >= 5_000_000 && u128::from(ns) <= started.elapsed().as_nanos());
    }
}
