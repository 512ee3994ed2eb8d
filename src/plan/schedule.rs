//! How a product is run: what each core takes, in how many steps.
//!
//! A *step* is one run on each core. Three ways to cut it:
//!
//! * [`Cut::Columns`]: all cores read the same rows, each has its share of the columns;
//! * [`Cut::Segments`]: each core has a segment of its own, of all rows and columns: fewer and fuller runs, and a row's piece
//!   of a segment is read by one core;
//! * [`Cut::Rows`]: each core has rows of its own, and all columns: for weights too narrow to share.
//!
//! A step by columns may take a *group* of segments at once. B is then read as one stack of these segments' columns,
//! with the rows' pieces of those segments that a core's columns are of stacked as rows of its A: a run multiplies each piece
//! with each segment's columns, and only the products that belong together are read back. Few rows are bound by B's bytes, so
//! that what is computed in vain costs little, and a run costs as much as half a megabyte of B.
//!
//! A *batch* is the steps of some rows whose results are read together: each row of the output is then written once for
//! all of their segments. While the NPU runs a batch, the CPU packs the next one and reads the one before. Wide outputs
//! are computed in *parts*, columns after columns: B is read once all the same, more segments fit into a batch, and
//! fewer results are still to be read when the NPU is done.
//!
//! What is best is searched by [`super::search`].

use std::ops::Range;

use super::rows::round_up_by_an_eighth;
use super::weight::Stacked;
use super::WeightPlan;
use crate::chip::CORES_MAX;

/// The most steps of a batch.
pub const BATCH_MAX: usize = 8;

/// What the cores share out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Columns of this many segments at once.
    Columns(usize),
    /// As many segments, one a core. What is left of a step of one segment is shared by columns.
    Segments(usize),
    /// Rows.
    Rows,
}

/// What may be done with a weight's memory, and how many cores there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Cores that work.
    pub cores: usize,
    /// Rows of A for a row of activations.
    pub planes: usize,
    /// Any range of columns of the stack can be bound; otherwise the plan's parts alone.
    pub windows: bool,
}

/// How a product of some number of rows is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What the cores share out.
    pub cut: Cut,
    /// Rows of a step, of all cores together.
    pub tile: usize,
    /// Parts of the columns, one after the other; 1 unless a core has columns of one segment at a time.
    pub parts: usize,
    /// Steps of a batch, at most.
    pub batch: usize,
    /// The modelled time of all of its runs, ns.
    pub ns: f64,
}

/// One run on each core that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its segments: one, or a group.
    pub segments: Range<usize>,
    /// Its columns of each segment, those of padding counted.
    pub columns: Range<usize>,
    /// Its place among the product's steps of the same columns; all that have the same one read the same rows of A.
    pub index: usize,
}

/// Steps of the same rows, whose results are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its segments.
    pub segments: Range<usize>,
    /// Its columns of each segment, those of padding counted.
    pub columns: Range<usize>,
    /// The place of its first step, see [`Step::index`].
    pub first: usize,
    /// Segments of a step.
    group: usize,
}

impl Batch {
    /// The elements of a row that it reads.
    pub fn k(&self, plan: &WeightPlan) -> Range<usize> {
        let segments = &plan.segments[self.segments.clone()];
        let end = segments.last().map_or(0, |segment| segment.start + segment.len);
        segments.first().map_or(end, |segment| segment.start)..end
    }

    /// Its steps, each as a batch.
    pub fn by_steps(&self) -> impl Iterator<Item = Self> + '_ {
        self.steps().map(|Step { segments, index, .. }| Self {
            segments,
            first: index,
            rows: self.rows.clone(),
            columns: self.columns.clone(),
            group: self.group,
        })
    }

    /// Its steps, in the order in which they are run.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.segments.clone().step_by(self.group).enumerate().map(|(at, segment)| {
            let segments = segment..self.segments.end.min(segment + self.group);
            Step { rows: self.rows.clone(), segments, columns: self.columns.clone(), index: self.first + at }
        })
    }
}

/// What one core does in a step: C (`m`×`columns`) = A · B.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreRun {
    /// The core.
    pub core: usize,
    /// Rows, counted from the step's first.
    pub rows: Range<usize>,
    /// M of the run, planes and padding counted.
    pub m: usize,
    /// Columns of the stack.
    pub columns: Range<usize>,
    /// The segments whose rows are in A, one after the other.
    pub stacked: Stacked,
}

/// Products in a run's C that belong together: a segment's pieces of rows times that segment's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The segment.
    pub segment: usize,
    /// First row in C.
    pub c_row: usize,
    /// First column in C.
    pub c_column: usize,
    /// Columns of the matrix.
    pub columns: Range<usize>,
}

impl CoreRun {
    /// Bytes of C.
    pub fn c_bytes(&self, plan: &WeightPlan) -> usize {
        plan.dtype.c().bytes(self.m * self.columns.len())
    }

    /// What it computes of the columns `of` of its stack, as a run of a stack of these alone, and the first of its own
    /// columns that does; `None` if it has none of them.
    pub fn within(&self, of: &Range<usize>) -> Option<(Self, usize)> {
        let (start, end) = (self.columns.start.max(of.start), self.columns.end.min(of.end));
        let columns = start.saturating_sub(of.start)..end.saturating_sub(of.start);
        (start < end).then(|| (Self { columns, ..self.clone() }, start - self.columns.start))
    }

    /// The pieces of a run that is part of `step`, the segments ascending.
    pub fn pieces<'a>(&'a self, plan: &'a WeightPlan, step: &Step) -> impl Iterator<Item = Piece> + 'a {
        let (segments, rows) = (plan.segments.len(), self.rows.len());
        step.segments.clone().filter_map(move |segment| {
            let base = segment * plan.columns;
            let start = self.columns.start.max(base);
            let end = self.columns.end.min(base + plan.n);
            (start < end).then(|| Piece {
                segment,
                c_row: self.stacked.place(segment, segments) * rows,
                c_column: start - self.columns.start,
                columns: start - base..end - base,
            })
        })
    }
}

impl Schedule {
    /// Whether each core has rows of its own in A, of some step: some of all rows, or those of its segments.
    pub fn has_own_rows(&self) -> bool {
        self.cut != Cut::Columns(1)
    }

    /// Whether it has in `step`: one of a single segment has the same rows for all cores that share its columns.
    pub fn has_own_rows_in(&self, step: &Step) -> bool {
        self.cut == Cut::Rows || step.segments.len() > 1
    }

    /// Whether a run has columns of all segments of a stack, one after the other.
    pub(super) fn takes_all(&self, segments: usize) -> bool {
        segments == 1 || self.cut == Cut::Columns(segments)
    }

    /// Segments of a step.
    pub fn group(&self) -> usize {
        match self.cut {
            Cut::Columns(group) | Cut::Segments(group) => group,
            Cut::Rows => 1,
        }
    }

    /// The columns of a part.
    pub(super) fn part(&self, plan: &WeightPlan, part: usize) -> Range<usize> {
        plan.share(plan.columns, part, self.parts)
    }

    /// The batches of `rows` rows, in the order in which they are run: all segments of a part of the columns, and all
    /// parts of a tile, one after the other.
    pub fn batches<'a>(&self, plan: &'a WeightPlan, rows: usize) -> impl Iterator<Item = Batch> + 'a {
        let schedule = *self;
        (0..rows.div_ceil(self.tile)).flat_map(move |tile| {
            (0..schedule.parts).flat_map(move |part| schedule.batches_of(plan, rows, tile, part))
        })
    }

    /// The batches of a part of a tile's columns.
    fn batches_of<'a>(
        &self,
        plan: &'a WeightPlan,
        rows: usize,
        tile: usize,
        part: usize,
    ) -> impl Iterator<Item = Batch> + 'a {
        let (segments, group, size) = (plan.segments.len(), self.group(), self.batch);
        let (rows, columns) = (self.rows(rows, tile), self.part(plan, part));
        let steps = segments.div_ceil(group);
        (0..steps).step_by(size).map(move |at| {
            let segments = at * group..segments.min((at + size) * group);
            Batch { rows: rows.clone(), segments, columns: columns.clone(), first: tile * steps + at, group }
        })
    }

    /// The rows of a tile, of `rows` rows.
    fn rows(&self, rows: usize, tile: usize) -> Range<usize> {
        tile * self.tile..rows.min((tile + 1) * self.tile)
    }

    /// The steps of `rows` rows in the first part of the columns, in the order in which they are run: those of the other
    /// parts read the same rows of A.
    pub fn steps(&self, plan: &WeightPlan, rows: usize) -> impl Iterator<Item = Step> {
        let (segments, group, schedule) = (plan.segments.len(), self.group(), *self);
        let (steps, columns) = (segments.div_ceil(group), self.part(plan, 0));
        (0..rows.div_ceil(self.tile) * steps).map(move |index| {
            let first = index % steps * group;
            let segments = first..segments.min(first + group);
            Step { rows: schedule.rows(rows, index / steps), segments, columns: columns.clone(), index }
        })
    }

    /// What the cores do in a step. A core whose share is empty is left out.
    pub fn runs<'a>(
        &self,
        plan: &'a WeightPlan,
        means: Means,
        step: &Step,
    ) -> impl Iterator<Item = CoreRun> + 'a {
        let (cut, len, segments) = (self.cut, step.rows.len(), step.segments.clone());
        let part = step.columns.clone();
        (0..means.cores.min(CORES_MAX)).filter_map(move |core| {
            let base = segments.start * plan.columns;
            let run = match cut {
                Cut::Segments(_) if segments.len() > 1 => {
                    let segment = segments.clone().nth(core)?;
                    let base = segment * plan.columns;
                    let m = round_up_by_an_eighth(len) * means.planes;
                    let columns = base + part.start..base + part.end;
                    CoreRun { core, rows: 0..len, m, columns, stacked: Stacked::one(segment) }
                }
                Cut::Columns(_) | Cut::Segments(_) => {
                    // Several segments have all columns; one alone may have some of them.
                    let all = if segments.len() > 1 { segments.len() * plan.columns } else { part.len() };
                    let base = if segments.len() > 1 { base } else { base + part.start };
                    let cores = means.cores.min(all / plan.limits.n_align);
                    if core >= cores {
                        return None;
                    }
                    let columns = plan.share(all, core, cores);
                    let columns = base + columns.start..base + columns.end;
                    let stacked = plan.stacked(&columns);
                    // Segments lie one after the other among the rows, so that padding comes after all of them.
                    let m = round_up_by_an_eighth(stacked.count * len) * means.planes;
                    CoreRun { core, rows: 0..len, m, columns, stacked }
                }
                Cut::Rows => {
                    let rows = len.div_ceil(means.cores);
                    // The same M for all, and so contexts of one shape.
                    let m = round_up_by_an_eighth(rows) * means.planes;
                    let rows = (core * rows).min(len)..((core + 1) * rows).min(len);
                    let stacked = Stacked::one(segments.start);
                    CoreRun { core, rows, m, columns: base..base + plan.columns, stacked }
                }
            };
            (!run.rows.is_empty() && !run.columns.is_empty()).then_some(run)
        })
    }
}
