//! What we believe of the NPU and its library, put to the test on the very machine.
//!
//! * [`quick`]: what the plugin asks before it trusts a device; small shapes, at most 50 ms on a board;
//! * [`full`]: every fact that we rely on, a check each, with what was found; for the doctor, not the plugin;
//! * [`layout`]: where each element lies, as formulas of the probe's own;
//! * [`matrix`]: random matrices and the exact oracle;
//! * [`rig`]: one context with its memories;
//! * [`views`]: products on parts of one allocation, all at once.
//!
//! Nothing here shares code with [`crate::kernels`], [`crate::weights`] or [`crate::engine`]: what checks them must
//! not repeat their slips. Nothing here logs or panics: findings are data. The plugin uses [`quick`] alone.

pub mod full;
pub mod layout;
pub mod matrix;
pub mod quick;
pub mod rig;
pub mod views;

pub use quick::quick;
