//! What the plugin tells people: log lines, counters and the report at exit. Knows no device and no host.

mod choices;
pub mod log;
mod quoted;
mod report;
mod stats;

pub use choices::{Choice, Choices};
pub use quoted::quoted;
pub use report::Report;
pub use stats::{Held, Stats};
