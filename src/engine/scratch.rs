//! Memories of activations and results. Sizes are powers of two, so that a handful of allocations serves all
//! shapes, contexts keep what they have bound, and a sync never flushes more than twice what was written.

use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use rknn_sys::{Context, Memory};

use super::Error;
use crate::observe::{Held, Stats};

const SMALLEST: usize = 4096;

/// Memories by size class.
#[derive(Default)]
struct Classes {
    memories: BTreeMap<usize, (Memory, Held)>,
}

impl Classes {
    fn get(&mut self, keeper: &Arc<Context>, stats: &Arc<Stats>, bytes: usize) -> Result<&mut Memory, Error> {
        let class = bytes.next_power_of_two().max(SMALLEST);
        Ok(&mut match self.memories.entry(class) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert((keeper.allocate(class)?, Held::allocation(stats, class))),
        }
        .0)
    }

    fn existing(&self, bytes: usize) -> Option<&Memory> {
        self.memories.get(&bytes.next_power_of_two().max(SMALLEST)).map(|(memory, _)| memory)
    }
}

/// The activations' memories, shared by the cores, and each core's results.
pub struct Scratch {
    keeper: Arc<Context>,
    stats: Arc<Stats>,
    a: Classes,
    c: Vec<Classes>,
}

impl Scratch {
    pub fn new(keeper: &Arc<Context>, cores: usize, stats: &Arc<Stats>) -> Self {
        Self {
            keeper: keeper.clone(),
            stats: stats.clone(),
            a: Classes::default(),
            c: (0..cores).map(|_| Classes::default()).collect(),
        }
    }

    /// The memory for `bytes` bytes of A.
    pub fn a(&mut self, bytes: usize) -> Result<&mut Memory, Error> {
        self.a.get(&self.keeper, &self.stats, bytes)
    }

    /// The memory for `bytes` bytes of C of `core`.
    pub fn c(&mut self, core: usize, bytes: usize) -> Result<&mut Memory, Error> {
        self.c[core].get(&self.keeper, &self.stats, bytes)
    }

    /// The results that `core` left in the memory that [`Self::c`] gave for as many bytes.
    pub fn results(&self, core: usize, bytes: usize) -> &[u8] {
        self.c[core].existing(bytes).map_or(&[], |memory| &memory.as_slice()[..bytes])
    }
}
