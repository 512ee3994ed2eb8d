//! Tells the user that weights are being converted, when it takes long: the host is silent meanwhile.

use std::time::{Duration, Instant};

use crate::log;

/// How long nothing is said: small models are ready by then.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often something is said then.
const REST: Duration = Duration::from_secs(5);
/// After as long without a conversion the next one is another model's.
const PAUSE: Duration = Duration::from_secs(5);

/// The conversions of a model.
#[derive(Default)]
pub struct Progress {
    spans: Option<Spans>,
}

struct Spans {
    started: Instant,
    last: Instant,
    said: Instant,
    weights: usize,
    bytes: usize,
}

impl Progress {
    /// Notes a conversion that took from `started` until now; says how far it is, now and then.
    pub fn note(&mut self, started: Instant, bytes: usize) {
        if let Some(line) = self.line(started, Instant::now(), bytes) {
            log!(Warn, "{line}");
        }
    }

    fn line(&mut self, started: Instant, now: Instant, bytes: usize) -> Option<String> {
        let fresh = || Spans { started, last: started, said: started, weights: 0, bytes: 0 };
        let spans = match &mut self.spans {
            Some(spans) if started.saturating_duration_since(spans.last) < PAUSE => spans,
            spans => spans.insert(fresh()),
        };
        (spans.last, spans.weights, spans.bytes) = (now, spans.weights + 1, spans.bytes + bytes);
        let taken = now.saturating_duration_since(spans.started);
        if taken < PATIENCE || now.saturating_duration_since(spans.said) < REST {
            return None;
        }
        spans.said = now;
        let seconds = taken.as_secs_f64();
        Some(format!(
            "converting weights for the NPU: {} so far, {:.1} GB in {seconds:.0} s",
            spans.weights,
            spans.bytes as f64 / 1e9
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ones_are_silent_and_long_ones_tell_now_and_then() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let said: Vec<_> = (0..220).filter_map(|i| progress.line(at(i), at(i + 1), 100_000_000)).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "converting weights for the NPU: 150 so far, 15.0 GB in 15 s");
        // Another model, much later.
        assert_eq!(progress.line(at(1000), at(1010), 1), None);
    }
}
