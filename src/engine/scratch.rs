//! Memories of activations and results: two slots of each, so that the CPU works on one while the NPU has the other.
//! A memory grows to the largest use so far and is then kept; contexts keep what they have bound.

use std::ops::Range;
use std::sync::Arc;

use rknn_sys::{Binding, Context, Memory, Window};

use super::Error;
use crate::observe::{Held, Stats};

/// Slots of activations, and of each core's results.
pub const SLOTS: usize = 2;
/// Memories are multiples of this.
const PAGE: usize = 4096;
/// The most windows into one memory; prompts of many lengths would otherwise pile them up.
const WINDOWS_MAX: usize = 256;

/// A memory that grows, with windows into it.
#[derive(Default)]
struct Region {
    memory: Option<(Memory, Held)>,
    windows: Vec<(Range<usize>, Window)>,
}

impl Region {
    /// Sees to it that there are `bytes` bytes. What was in a smaller memory is gone.
    fn reserve(&mut self, keeper: &Arc<Context>, stats: &Arc<Stats>, bytes: usize) -> Result<(), Error> {
        if self.memory.as_ref().is_none_or(|(memory, _)| memory.bytes() < bytes) {
            self.windows.clear();
            // First the old one goes: the two are never held at once.
            self.memory = None;
            // A little more than asked, so that slightly longer prompts find room.
            let bytes = (bytes + bytes / 16).next_multiple_of(PAGE);
            self.memory = Some((keeper.allocate(bytes)?, Held::allocation(stats, bytes)));
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<&mut Memory, Error> {
        self.memory.as_mut().map(|(memory, _)| memory).ok_or(Error::Unusable)
    }

    /// The window at `range`, and the memory; made when it is first asked for.
    fn window(&mut self, range: &Range<usize>) -> Result<(&Window, &mut Memory), Error> {
        let (memory, _) = self.memory.as_mut().ok_or(Error::Unusable)?;
        let place = match self.windows.iter().position(|(known, _)| known == range) {
            Some(place) => place,
            None => {
                if self.windows.len() >= WINDOWS_MAX {
                    self.windows.clear();
                }
                self.windows.push((range.clone(), memory.window(range)?));
                self.windows.len() - 1
            }
        };
        Ok((&self.windows[place].1, memory))
    }
}

/// Where a piece of activations lies: the `index`-th piece of a slot whose pieces are `stride` bytes apart.
#[derive(Debug, Clone, Copy)]
pub struct PieceOfA {
    pub slot: usize,
    pub index: usize,
    pub stride: usize,
    pub bytes: usize,
}

impl PieceOfA {
    fn range(&self) -> Range<usize> {
        self.index * self.stride..self.index * self.stride + self.bytes
    }
}

/// The activations' memories, which the cores share, and each core's results.
pub struct Scratch {
    keeper: Arc<Context>,
    stats: Arc<Stats>,
    /// Whether parts of a memory can be bound; otherwise each piece has a memory of its own.
    windows: bool,
    a: [Vec<Region>; SLOTS],
    c: Vec<[Region; SLOTS]>,
}

impl Scratch {
    /// For `cores` cores; `windows` as in [`crate::plan::Means`].
    pub fn new(keeper: &Arc<Context>, cores: usize, windows: bool, stats: &Arc<Stats>) -> Self {
        Self {
            keeper: keeper.clone(),
            stats: stats.clone(),
            windows,
            a: Default::default(),
            c: (0..cores).map(|_| Default::default()).collect(),
        }
    }

    /// Room for `count` pieces of `stride` bytes in a slot of activations.
    pub fn reserve_a(&mut self, slot: usize, count: usize, stride: usize) -> Result<(), Error> {
        let regions = &mut self.a[slot];
        let (regions_wanted, bytes) = if self.windows { (1, count * stride) } else { (count, stride) };
        if regions.len() < regions_wanted {
            regions.resize_with(regions_wanted, Region::default);
        }
        regions[..regions_wanted]
            .iter_mut()
            .try_for_each(|region| region.reserve(&self.keeper, &self.stats, bytes))
    }

    /// The bytes of a piece, to write.
    pub fn a(&mut self, piece: &PieceOfA) -> Result<&mut [u8], Error> {
        let windows = self.windows;
        let region = &mut self.a[piece.slot][if windows { 0 } else { piece.index }];
        let bytes = region.memory()?.as_mut_slice();
        Ok(if windows { &mut bytes[piece.range()] } else { &mut bytes[..piece.bytes] })
    }

    /// Makes a piece visible to the NPU.
    pub fn sync_a(&mut self, piece: &PieceOfA) -> Result<(), Error> {
        if self.windows {
            return Ok(self.a[piece.slot][0].window(&piece.range())?.0.sync_to_device()?);
        }
        Ok(self.a[piece.slot][piece.index].memory()?.sync_to_device()?)
    }

    /// What a context binds to read a piece.
    pub fn bind_a(&mut self, piece: &PieceOfA) -> Result<Binding, Error> {
        if self.windows {
            return Ok(self.a[piece.slot][0].window(&piece.range())?.0.binding());
        }
        Ok(self.a[piece.slot][piece.index].memory()?.binding())
    }

    /// What a context binds to write `bytes` bytes of results of `core`.
    pub fn bind_c(&mut self, core: usize, slot: usize, bytes: usize) -> Result<Binding, Error> {
        let region = &mut self.c[core][slot];
        region.reserve(&self.keeper, &self.stats, bytes)?;
        if self.windows {
            return Ok(region.window(&(0..bytes))?.0.binding());
        }
        Ok(region.memory()?.binding())
    }

    /// Makes visible what the NPU wrote there.
    pub fn sync_c(&mut self, core: usize, slot: usize, bytes: usize) -> Result<(), Error> {
        let region = &mut self.c[core][slot];
        if self.windows {
            let (window, memory) = region.window(&(0..bytes))?;
            return Ok(memory.sync_window_from_device(window)?);
        }
        Ok(region.memory()?.sync_from_device()?)
    }

    /// The results that `core` left there.
    pub fn results(&self, core: usize, slot: usize, bytes: usize) -> &[u8] {
        self.c[core][slot].memory.as_ref().map_or(&[], |(memory, _)| &memory.as_slice()[..bytes])
    }
}
