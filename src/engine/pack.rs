//! Rows into A: each is rotated, scaled and packed while it is in the cache, spread over the CPU's threads when there
//! are many.

use std::cell::RefCell;
use std::ops::Range;

use rknn_sys::Element;

use super::prepare::{chunk, RowRoom, Source};
use crate::kernels::fast::{self, F16Scratch};
use crate::kernels::int4;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::kernels::{Rows, Strips};
use crate::plan::Segment;
use crate::policy::Pipeline;
use crate::pool::{Divided, Pool};

/// Rows that a thread takes at a time, so that they stay in its cache: four fill the cache lines of A.
const ROWS: Range<usize> = 4..16;
/// Elements of them.
const ELEMENTS: usize = 32 * 1024;

thread_local! {
    /// A thread's room for rows on their way.
    static ROOM: RefCell<(RowRoom, F16Scratch)> = RefCell::default();
}

/// Where the rows of one segment go in a memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The segment.
    pub segment: usize,
    /// Which rows.
    pub rows: Range<usize>,
    /// The bytes of A in the memory.
    pub bytes: Range<usize>,
    /// M of A, each plane's rows counted.
    pub m: usize,
    /// The row of A that the first of them becomes.
    pub first: usize,
}

/// Rows that are packed together.
pub struct Filling<'a> {
    /// How they are stored.
    pub pipeline: Pipeline,
    /// Elements of a native block; `None` for row-major A.
    pub block: Option<usize>,
    /// The K segments.
    pub segments: &'a [Segment],
    /// The rows.
    pub rows: Range<usize>,
    /// Rows that there are scales for.
    pub all_rows: usize,
    /// Where they go: a row's segment to one place, or to one for each core that multiplies it.
    pub targets: &'a [Target],
}

impl Filling<'_> {
    /// The elements of the rows that go anywhere.
    pub fn columns(&self) -> Range<usize> {
        let segments = || self.targets.iter().map(|target| &self.segments[target.segment]);
        let start = segments().map(|segment| segment.start).min().unwrap_or(0);
        start..segments().map(|segment| segment.start + segment.len).max().unwrap_or(start)
    }

    /// Scales the rows of each target and packs them into `memory`. A scale a row and segment is left in `scales`, those
    /// of a segment together.
    ///
    /// `None` for a block that there is no kernel for.
    pub fn fill(&self, pool: &Pool, source: &Source, scales: &mut [f32], memory: &mut [u8]) -> Option<()> {
        let kernel = kernel(self.pipeline, self.block)?;
        let (scales, memory) = (Divided::new(scales), Divided::new(memory));
        let (k, skipped) = (self.columns().len(), source.first_column());
        let most = (ELEMENTS / k.max(1) / ROWS.start * ROWS.start).clamp(ROWS.start, ROWS.end);
        let size = chunk(self.rows.len(), pool.threads()).min(most);
        let work = |index: usize| {
            let start = self.rows.start + index * size;
            let rows = start..self.rows.end.min(start + size);
            ROOM.with_borrow_mut(|(room, halves)| {
                // SAFETY: each index comes once, and so does each row.
                let (data, stride) = unsafe { source.rows(rows.clone(), room) };
                for target in self.targets {
                    let piece = (rows.clone(), data, stride, skipped);
                    // SAFETY: as above: all targets of a row are this thread's.
                    unsafe { self.put(kernel, target, piece, (&scales, &memory), halves) };
                }
            });
        };
        let count = self.rows.len().div_ceil(size.max(1));
        pool.run_if_many(self.rows.len() * k * source.passes(), count, work);
        Some(())
    }

    /// Scales those of some rows that go to a target, and packs them: `data` begins with the column `first` of the first of
    /// `rows`, which are `stride` apart, and has all columns of the target's segment.
    ///
    /// # Safety
    /// No other thread has a row of that segment.
    pub unsafe fn put(
        &self,
        kernel: Kernel,
        target: &Target,
        (rows, data, stride, first): (Range<usize>, &[f32], usize, usize),
        (scales, memory): (&Divided<f32>, &Divided<u8>),
        halves: &mut F16Scratch,
    ) {
        let of = rows.start.max(target.rows.start)..rows.end.min(target.rows.end);
        if of.is_empty() {
            return;
        }
        let segment = &self.segments[target.segment];
        let data = &data[(of.start - rows.start) * stride + segment.start - first..];
        let at = target.segment * self.all_rows;
        // SAFETY: a row's scale of a segment, which no other thread has.
        let scales = unsafe { scales.part(at + of.start..at + of.end) };
        for (row, scale) in scales.iter_mut().enumerate() {
            *scale = scale_of(self.pipeline, &data[row * stride..][..segment.len]);
        }
        let view = Rows { data, stride, rows: of.len(), k: segment.len, scales };
        let first = target.first + of.start - target.rows.start;
        let (bytes, rows) = (target.bytes.clone(), first..first + of.len());
        kernel(&view, &Area { memory, bytes, m: target.m, rows }, halves);
    }
}

/// The scale of a row's segment.
fn scale_of(pipeline: Pipeline, row: &[f32]) -> f32 {
    match pipeline {
        Pipeline::W8A8 => scale_i8(fast::amax(row)),
        Pipeline::W4A8 => int4::scale_planes(fast::amax(row)),
        Pipeline::W4A4 => int4::scale_row(row),
        Pipeline::W4A16 | Pipeline::W8A16 | Pipeline::W16A16 => scale_f16(fast::amax(row)),
    }
}

/// Rows of A that one thread writes.
pub struct Area<'a> {
    /// The memory that A is in.
    pub memory: &'a Divided<'a, u8>,
    /// All of A, `m` rows.
    pub bytes: Range<usize>,
    /// M of A.
    pub m: usize,
    /// The rows.
    pub rows: Range<usize>,
}

impl Area<'_> {
    /// The rows, of which each block of A has `stored` elements a row; of plane `PLANES - 1` at last.
    fn planes<T: bytemuck::Pod, const PLANES: usize>(&self, stored: usize) -> [Strips<'_, T>; PLANES] {
        std::array::from_fn(|plane| {
            let first = self.m / PLANES * plane;
            let rows = (first + self.rows.start) * stored..(first + self.rows.end) * stored;
            let base = self.memory.pointer(&self.bytes).cast::<T>();
            let len = self.bytes.len() / size_of::<T>();
            assert!(base.is_aligned(), "A at {base:p}");
            // SAFETY: A is valid as long as the memory; each row of a segment is packed by one thread.
            unsafe { Strips::shared(base, len, self.m * stored, rows) }
        })
    }

    /// The rows of row-major A.
    fn whole<T: bytemuck::Pod, const PLANES: usize>(&self) -> [Strips<'_, T>; PLANES] {
        self.planes(self.bytes.len() / size_of::<T>() / self.m)
    }
}

/// Packs rows into an area of A.
pub type Kernel = fn(&Rows, &Area, &mut F16Scratch);

/// What packs rows for a pipeline into native blocks of `block` elements, or row-major; `None` if nothing does.
pub fn kernel(pipeline: Pipeline, block: Option<usize>) -> Option<Kernel> {
    Some(match (pipeline.dtype().a(), block, pipeline.planes()) {
        (Element::I8, Some(16), _) => |rows, area, _| {
            let [mut a] = area.planes(16);
            fast::pack_a_i8::<16>(rows, &mut a);
        },
        (Element::I8, Some(8), _) => |rows, area, _| {
            let [mut a] = area.planes(8);
            fast::pack_a_i8::<8>(rows, &mut a);
        },
        (Element::I8, None, _) => |rows, area, _| {
            let [mut a] = area.whole();
            fast::pack_rows_i8(rows, a.get(0));
        },
        (Element::F16, Some(8), _) => |rows, area, halves| {
            let [mut a] = area.planes(8);
            fast::pack_a_f16::<8>(rows, &mut a, halves);
        },
        (Element::F16, Some(4), _) => |rows, area, halves| {
            let [mut a] = area.planes(4);
            fast::pack_a_f16::<4>(rows, &mut a, halves);
        },
        (Element::F16, None, _) => |rows, area, halves| {
            let [mut a] = area.whole();
            fast::pack_rows_f16(rows, a.get(0), halves);
        },
        // Two elements to each byte of A.
        (Element::I4, Some(32), 1) => |rows, area, _| int4::pack_a::<1>(rows, &mut area.planes(16)),
        (Element::I4, Some(32), _) => |rows, area, _| int4::pack_a::<2>(rows, &mut area.planes(16)),
        (Element::I4, None, 1) => |rows, area, _| {
            let mut a = area.whole::<u8, 1>();
            int4::pack_rows(rows, a.each_mut().map(|strips| strips.get(0)));
        },
        (Element::I4, None, _) => |rows, area, _| {
            let mut a = area.whole::<u8, 2>();
            int4::pack_rows(rows, a.each_mut().map(|strips| strips.get(0)));
        },
        _ => return None,
    })
}
