//! Memories of activations and results: two slots of each, so that the CPU works on one while the NPU has the other; and two
//! of activations that are made of results.
//! A memory grows to the largest use so far and is then kept; contexts keep what they have bound.

use std::ops::Range;
use std::sync::Arc;

use rknn_sys::{Binding, Context, Memory, Window};

use super::Error;
use crate::observe::{Held, Stats};

/// Slots of activations, and of each core's results.
pub const SLOTS: usize = 2;
/// Slots of activations that are packed as they are made: as many more, which come after the others.
pub const SLOTS_AHEAD: Range<usize> = SLOTS..2 * SLOTS;
/// Memories are multiples of this.
const PAGE: usize = 4096;
/// The most windows into one memory; prompts of many lengths would otherwise pile them up.
const WINDOWS_MAX: usize = 1024;

/// A memory that grows, with windows into it.
#[derive(Default)]
struct Region {
    memory: Option<(Memory, Held)>,
    windows: Vec<(Range<usize>, Window)>,
}

impl Region {
    const LOST: Error = Error::Lost { what: "memory of a slot" };

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
        self.memory.as_mut().map(|(memory, _)| memory).ok_or(Self::LOST)
    }

    /// The window at `range`, and the memory; made when it is first asked for.
    fn window(&mut self, range: &Range<usize>) -> Result<(&Window, &mut Memory), Error> {
        let (memory, _) = self.memory.as_mut().ok_or(Self::LOST)?;
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

/// Where a piece of activations or results lies: the `index`-th piece of a slot whose pieces are `stride` bytes apart.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub slot: usize,
    pub index: usize,
    pub stride: usize,
    pub bytes: usize,
}

impl Piece {
    fn range(&self) -> Range<usize> {
        self.index * self.stride..self.index * self.stride + self.bytes
    }
}

/// Slots of pieces.
pub struct Slots {
    keeper: Arc<Context>,
    stats: Arc<Stats>,
    /// Whether parts of a memory can be bound; otherwise each piece has a memory of its own.
    windows: bool,
    slots: [Vec<Region>; SLOTS_AHEAD.end],
}

/// The memories of a slot, in somebody's hands.
pub struct Lent(Vec<Region>);

impl Lent {
    /// The one memory of a slot of windows.
    pub fn memory(&mut self) -> Result<&mut [u8], Error> {
        Ok(self.0.first_mut().ok_or(Region::LOST)?.memory()?.as_mut_slice())
    }
}

impl Slots {
    /// Nothing yet; `windows` as in [`crate::plan::Means`].
    pub fn new(keeper: &Arc<Context>, windows: bool, stats: &Arc<Stats>) -> Self {
        Self { keeper: keeper.clone(), stats: stats.clone(), windows, slots: Default::default() }
    }

    /// Room for `count` pieces of `stride` bytes in a slot.
    pub fn reserve(&mut self, slot: usize, count: usize, stride: usize) -> Result<(), Error> {
        let regions = &mut self.slots[slot];
        let (wanted, bytes) = if self.windows { (1, count * stride) } else { (count, stride) };
        if regions.len() < wanted {
            regions.resize_with(wanted, Region::default);
        }
        regions[..wanted].iter_mut().try_for_each(|region| region.reserve(&self.keeper, &self.stats, bytes))
    }

    /// The memory that a piece is in, and where in it.
    fn region(&mut self, piece: &Piece) -> (&mut Region, Range<usize>) {
        let regions = &mut self.slots[piece.slot];
        if self.windows {
            (&mut regions[0], piece.range())
        } else {
            (&mut regions[piece.index], 0..piece.bytes)
        }
    }

    /// The memory that a piece is in, to write, and where the piece is.
    pub fn place(&mut self, piece: &Piece) -> Result<(&mut [u8], Range<usize>), Error> {
        let (region, range) = self.region(piece);
        Ok((region.memory()?.as_mut_slice(), range))
    }

    /// Hands out a slot, to be written while others are read. It comes back by [`Self::take_back`].
    pub fn lend(&mut self, slot: usize) -> Lent {
        Lent(std::mem::take(&mut self.slots[slot]))
    }

    /// Takes back what [`Self::lend`] gave of that slot.
    pub fn take_back(&mut self, slot: usize, Lent(regions): Lent) {
        self.slots[slot] = regions;
    }

    /// What a context binds to read or write a piece.
    pub fn bind(&mut self, piece: &Piece) -> Result<Binding, Error> {
        let windows = self.windows;
        let (region, range) = self.region(piece);
        Ok(if windows { region.window(&range)?.0.binding() } else { region.memory()?.binding() })
    }

    /// Makes a piece visible to the NPU.
    pub fn sync_to_device(&mut self, piece: &Piece) -> Result<(), Error> {
        let windows = self.windows;
        let (region, range) = self.region(piece);
        if windows {
            return Ok(region.window(&range)?.0.sync_to_device()?);
        }
        Ok(region.memory()?.sync_to_device()?)
    }

    /// Makes visible what the NPU wrote there.
    pub fn sync_from_device(&mut self, piece: &Piece) -> Result<(), Error> {
        let windows = self.windows;
        let (region, range) = self.region(piece);
        if windows {
            let (window, memory) = region.window(&range)?;
            return Ok(memory.sync_window_from_device(window)?);
        }
        Ok(region.memory()?.sync_from_device()?)
    }

    /// What is in a piece.
    pub fn read(&self, piece: &Piece) -> &[u8] {
        let regions = &self.slots[piece.slot];
        let (region, range) =
            if self.windows { (&regions[0], piece.range()) } else { (&regions[piece.index], 0..piece.bytes) };
        region.memory.as_ref().map_or(&[], |(memory, _)| &memory.as_slice()[range])
    }
}

/// The activations' memories, which the cores share, and each core's results.
pub struct Scratch {
    pub a: Slots,
    pub c: Vec<Slots>,
}

impl Scratch {
    /// For `cores` cores; `windows` as in [`crate::plan::Means`].
    pub fn new(keeper: &Arc<Context>, cores: usize, windows: bool, stats: &Arc<Stats>) -> Self {
        let slots = || Slots::new(keeper, windows, stats);
        Self { a: slots(), c: (0..cores).map(|_| slots()).collect() }
    }

    /// Whether the pieces of a slot are in one memory.
    pub fn is_one_memory(&self) -> bool {
        self.a.windows
    }
}
