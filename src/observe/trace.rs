//! What happened when, as a Chrome trace (`chrome://tracing`, Perfetto): the file that `RKNPU_TRACE` names.
//!
//! A lane for each core of the NPU, one for the CPU's stages, and one for the time between products, in which the host
//! works. Nothing is recorded, and no time taken, unless a file is named.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use parking_lot::Mutex;

/// Where something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The CPU's share of a product.
    Cpu,
    /// Between products.
    Host,
    /// A core of the NPU.
    Core(usize),
}

impl Lane {
    fn number(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Host => 1,
            Self::Core(core) => 2 + core,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Cpu => "CPU stages".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Core(core) => format!("NPU core {core}"),
        }
    }
}

struct Span {
    lane: Lane,
    name: String,
    start_ns: u64,
    ns: u64,
}

/// The most spans that are kept: some hundred megabytes of JSON.
const SPANS_MAX: usize = 1 << 20;

/// Spans of time, if they are wanted.
#[derive(Default)]
pub struct Trace {
    origin: OnceLock<Instant>,
    spans: Mutex<Vec<Span>>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Trace {
    /// Records from now on.
    pub fn start(&self) {
        let _ = self.origin.set(Instant::now());
    }

    /// Whether it records.
    pub fn is_on(&self) -> bool {
        self.origin.get().is_some()
    }

    /// Notes what has gone on in `lane` from `started` until now; `name` is only asked when it is wanted.
    pub fn span(&self, lane: Lane, started: Instant, name: impl FnOnce() -> String) {
        if self.is_on() {
            self.push(lane, started, Instant::now(), name());
        }
    }

    /// Notes that nothing of ours went on in `lane` for some time.
    pub fn gap(&self, lane: Lane, from: Instant, until: Instant) {
        if self.is_on() {
            self.push(lane, from, until, "gap".to_owned());
        }
    }

    fn push(&self, lane: Lane, from: Instant, until: Instant, name: String) {
        let Some(origin) = self.origin.get() else { return };
        let mut spans = self.spans.lock();
        if spans.len() < SPANS_MAX {
            let ns = |time: Instant| time.saturating_duration_since(*origin).as_nanos() as u64;
            spans.push(Span { lane, name, start_ns: ns(from), ns: ns(until) - ns(from) });
        }
    }

    /// The trace in Chrome's JSON format, times in µs.
    pub fn json(&self) -> String {
        let spans = self.spans.lock();
        let mut out = String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
        let mut named = [false; 16];
        let mut separator = "\n";
        for Span { lane, name, start_ns, ns } in spans.iter() {
            let tid = lane.number();
            if let Some(named) = named.get_mut(tid).filter(|named| !**named) {
                *named = true;
                // Writing to a string never fails.
                let _ = write!(
                    out,
                    "{separator}{{\"ph\":\"M\",\"pid\":1,\"tid\":{tid},\"name\":\"thread_name\",\"args\":{{\"name\":\"{}\"}}}}",
                    lane.name()
                );
                separator = ",\n";
            }
            let name = serde_json::Value::from(name.as_str());
            let micros = |ns: u64| ns as f64 / 1000.0;
            let _ = write!(
                out,
                "{separator}{{\"ph\":\"X\",\"pid\":1,\"tid\":{tid},\"ts\":{:.3},\"dur\":{:.3},\"name\":{name}}}",
                micros(*start_ns),
                micros(*ns)
            );
        }
        out += "\n]}\n";
        out
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_json_with_named_lanes() {
        let trace = Trace::default();
        trace.span(Lane::Cpu, Instant::now(), || unreachable!("nobody wants it"));
        trace.start();
        trace.span(Lane::Core(2), Instant::now(), || "M=1 \"q\"".to_owned());
        trace.span(Lane::Cpu, Instant::now(), || "pack".to_owned());
        let json: serde_json::Value = serde_json::from_str(&trace.json()).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 4);
        assert_eq!(events[0]["args"]["name"], "NPU core 2");
        assert_eq!((&events[1]["name"], &events[1]["tid"]), (&"M=1 \"q\"".into(), &4.into()));
        assert_eq!(events[3]["ph"], "X");
    }
}
