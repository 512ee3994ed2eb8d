//! What a weight is to become: a pipeline and what is done to its rows before they are rounded.

use super::Pipeline;

/// Whether rows are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rotate {
    /// Where it makes the error smaller.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always, where a rotation of that length exists.
    Full,
    /// Into the next power of two: more bytes, and a smaller error.
    Padded,
}

/// A pipeline with its rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// Whether rows are rotated.
    pub rotate: Rotate,
}

/// What the choice of a pipeline aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Goal {
    /// The level of the host's CPU.
    #[default]
    Accurate,
    /// Four bits for files of four and five.
    Lean,
    /// The cheapest within a bound.
    Fast,
}

/// How one weight's pipeline is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// By the user.
    Fixed(Scheme),
    /// By the error.
    Choose(Goal),
}
