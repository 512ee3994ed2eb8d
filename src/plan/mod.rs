//! From a matmul's shape to what the NPU runs: padding, K segments, shares of the cores, steps of rows.
//!
//! * [`WeightPlan`]: how a weight is cut, once, when it is converted;
//! * [`Schedule`]: how a product of so many rows is run with it, in steps of all cores and batches of steps; `search`: which is best;
//!   [`Joint`]: the best of three that belong together; [`turns`]: in which order they are run; `line`: when results are there;
//! * [`AttentionPlan`]: how the rows and positions of attention are cut;
//! * `cost`: how long a run is believed to take, by which both are chosen;
//! * `rows`: how numbers of rows are rounded.
//!
//! Pure arithmetic, testable with no device. Nothing here may know the host, the vendor's library's calls or
//! where bytes lie; it depends on [`crate::chip`] only.

mod attention;
mod cost;
mod joint;
mod line;
mod rows;
mod schedule;
mod search;
mod weave;
mod weight;

pub use attention::{AttentionPlan, AttentionShape, Stretch};
pub use joint::{Alike, Fed, Joint};
pub use rows::ROWS_MAX;
pub use schedule::{Batch, CoreRun, Cut, Means, Piece, Schedule, Step, BATCH_MAX};
pub use search::{sizes_of_tiles, Planned};
pub use weave::{turns, Turn};
pub use weight::{Segment, Slice, WeightPlan};
