//! What the plugin tells people: log lines, counters and the report at exit. Knows no device and no host.

mod activity;
mod choices;
mod graphs;
pub mod log;
mod quoted;
mod report;
mod stages;
mod stats;
mod table;
mod trace;

pub use choices::{Choice, Choices};
pub use quoted::quoted;
pub use report::Report;
pub use stages::Stage;
pub use stats::{Done, Held, Stats};
pub use table::lines as stats_table;
pub use trace::Lane;
