//! The stages of a product on the CPU, and what they took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// What the CPU does for a product, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Rows are compared with those before.
    Compare,
    /// Rows are rotated, scaled, rounded and laid out as A.
    Pack,
    /// Memories are made visible to the other side.
    Sync,
    /// Nothing: the NPU is not done yet.
    Wait,
    /// Attention's scores become weights.
    Weigh,
    /// Results are scaled and laid out as the host's.
    Scale,
    /// An activation times a gate, where that is made by itself and not as the results of both are read.
    Gate,
    /// What the host's graph has between products that follow from each other.
    Link,
    /// The product itself, where the CPU does it.
    Multiply,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Compare,
        Self::Pack,
        Self::Sync,
        Self::Wait,
        Self::Weigh,
        Self::Scale,
        Self::Gate,
        Self::Link,
        Self::Multiply,
    ];

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compare => "compare",
            Self::Pack => "pack",
            Self::Sync => "sync",
            Self::Wait => "wait",
            Self::Weigh => "weigh",
            Self::Scale => "scale",
            Self::Gate => "gate",
            Self::Link => "link",
            Self::Multiply => "multiply",
        }
    }
}

/// ns of the caller's time by stage.
#[derive(Debug, Default)]
pub struct Stages([AtomicU64; Stage::ALL.len()]);

impl Stages {
    /// Adds the time from `started` until now.
    pub fn add(&self, stage: Stage, started: Instant) {
        self.0[stage as usize].fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
    }

    /// ns of a stage so far.
    pub fn ns(&self, stage: Stage) -> u64 {
        self.0[stage as usize].load(Relaxed)
    }
}
