//! What the plugin asks of a device before it trusts it: small products against the exact oracle.
//!
//! About ten contexts of small shapes on a sound board, and one a core for each further type of the chip's: 15 to
//! 30 ms by the published costs; a sick one may ask for up to [`CONTEXTS_MAX`]. What could not be asked any more
//! counts as not working.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rknn_sys::{Context, Library, MatmulType};

use super::layout::Believed;
use super::matrix::Random;
use super::rig::{keeper, Layouts, Rig};
use super::views::all_at_once;
use crate::chip::{Chip, CORES_MAX};
use crate::mode::Mode;

/// The most contexts that a probe makes.
pub const CONTEXTS_MAX: u32 = 24;
/// Rows of the products: not 1, which hides the layouts of A and C.
const ROWS: usize = 5;
/// How often all cores run at once on views.
const ROUNDS: usize = 8;
/// K and N of the products on views, in alignments: long enough to overlap.
const VIEW_BLOCKS: usize = 12;
/// The types that every chip has: the mode is chosen for them.
const TYPES: [MatmulType; 2] = [MatmulType::I8, MatmulType::F16];
/// Rows of the products that are timed, and their K and N in alignments: of a prompt, where arithmetic counts.
const TIMED_ROWS: usize = 256;
const TIMED_BLOCKS: usize = 32;
/// How often they run; the fastest counts.
const TIMED_RUNS: usize = 3;
/// Two times that differ by less are the same.
const AS_FAST: f64 = 1.05;
/// The best first; a row-major B costs a conversion at each bind, row-major A and C less.
const MODES: [Layouts; 4] = [
    Layouts::NATIVE,
    Layouts { native_b: true, native_ac: false },
    Layouts { native_b: false, native_ac: true },
    Layouts::NORM,
];

/// Finds out what works. Never panics and never logs: a library that fails everywhere gives [`Mode::NONE`].
pub fn quick(library: &Library, chip: &Chip) -> Mode {
    let Ok(keeper) = keeper(library, chip) else { return Mode::NONE };
    let cores = chip.cores.clamp(1, CORES_MAX);
    Quick { library, chip, keeper, cores, left: Cell::new(CONTEXTS_MAX - 1), answers: RefCell::default() }
        .findings()
}

/// One question: a type, in a mode, on a core.
type Question = (MatmulType, Layouts, usize);

struct Quick<'a> {
    library: &'a Library,
    chip: &'a Chip,
    keeper: Arc<Context>,
    cores: usize,
    left: Cell<u32>,
    answers: RefCell<Vec<(Question, bool)>>,
}

impl Quick<'_> {
    fn findings(&self) -> Mode {
        let Some(reference) = self.reference() else { return Mode::NONE };
        // On one good core, what differs between modes is the modes.
        let right = |mode: Layouts| TYPES.map(|dtype| self.is_right(dtype, mode, reference));
        let usable = MODES.into_iter().fold([false; 2], |usable, mode| {
            let missing = usable.iter().any(|usable| !usable);
            let found = if missing { right(mode) } else { usable };
            [usable[0] || found[0], usable[1] || found[1]]
        });
        let serves = |mode: &Layouts, types: [bool; 2]| {
            TYPES.iter().zip(types).all(|(dtype, wanted)| !wanted || self.is_right(*dtype, *mode, reference))
        };
        // The first mode that serves all usable types; without one, the best of a single type.
        let choices = [usable, [usable[0], false], [false, usable[1]]];
        let chosen = choices
            .into_iter()
            .filter(|types| types.iter().any(|wanted| *wanted))
            .find_map(|types| MODES.into_iter().find(|mode| serves(mode, types)).map(|mode| (mode, types)));
        let Some((mode, types)) = chosen else { return Mode::NONE };

        let mut cores = [false; CORES_MAX];
        for (core, good) in cores.iter_mut().enumerate().take(self.cores) {
            *good = TYPES.iter().zip(types).all(|(dtype, used)| !used || self.is_right(*dtype, mode, core));
        }
        let dtype = if types[0] { MatmulType::I8 } else { MatmulType::F16 };
        let views = self.run_views(dtype, mode, &cores).is_some();
        let used = |dtype: MatmulType| match TYPES.iter().position(|basic| *basic == dtype) {
            Some(place) => types[place],
            None => {
                // A type that the others' mode or one of their cores does not serve is not worth losing those.
                let mut good = (0..CORES_MAX).filter(|core| cores[*core]).peekable();
                good.peek().is_some() && good.all(|core| self.is_right(dtype, mode, core))
            }
        };
        let types = MatmulType::ALL.map(used);
        let found = Mode { types, ..Mode::NONE };
        let mixed = found.has(MatmulType::F16I8) && found.has(MatmulType::I8);
        Mode {
            types,
            whole_activations_are_free: mixed && self.is_as_fast(mode, reference) == Some(true),
            native_b: mode.native_b,
            native_ac: mode.native_ac,
            views,
            cores,
        }
    }

    /// Whether f16 × i8 takes no longer than i8 × i8 of the same shape, by the device's time or the modelled one.
    fn is_as_fast(&self, mode: Layouts, core: usize) -> Option<bool> {
        let time = |dtype| {
            let believed = Believed::of(self.chip, dtype)?;
            let shape = (believed.k_align * TIMED_BLOCKS, believed.n_align * TIMED_BLOCKS);
            let mut rig = self.rig_of(TIMED_ROWS, dtype, mode, core, shape)?;
            let b = self.keeper.allocate(rig.b_bytes()).ok()?;
            rig.bind_b(&b.binding()).ok()?;
            let once = |rig: &mut Rig| {
                let (start, modelled) = (Instant::now(), self.library.modelled_ns(Some(core)));
                rig.context.run().ok()?;
                let now = self.library.modelled_ns(Some(core));
                Some(match modelled.zip(now) {
                    Some((before, after)) => Duration::from_nanos(after.saturating_sub(before)),
                    None => start.elapsed(),
                })
            };
            // The first run may wake the NPU.
            (0..TIMED_RUNS).map(|_| once(&mut rig)).collect::<Option<Vec<_>>>()?.into_iter().min()
        };
        let (whole, rounded) = (time(MatmulType::F16I8)?, time(MatmulType::I8)?);
        Some(whole.as_secs_f64() <= rounded.as_secs_f64() * AS_FAST)
    }

    /// A core that gives right numbers in some mode: core 0 natively on a sound board, with one question.
    fn reference(&self) -> Option<usize> {
        let of = |dtype| {
            if self.is_right(dtype, Layouts::NATIVE, 0) {
                return Some(0);
            }
            let norm = (0..self.cores).find(|core| self.is_right(dtype, Layouts::NORM, *core));
            norm.or_else(|| (1..self.cores).find(|core| self.is_right(dtype, Layouts::NATIVE, *core)))
        };
        of(MatmulType::I8).or_else(|| of(MatmulType::F16))
    }

    /// A rig of an M = [`ROWS`] product; `None` when it is refused or too many were made.
    fn rig(&self, dtype: MatmulType, mode: Layouts, core: usize, shape: (usize, usize)) -> Option<Rig> {
        self.rig_of(ROWS, dtype, mode, core, shape)
    }

    fn rig_of(
        &self,
        rows: usize,
        dtype: MatmulType,
        mode: Layouts,
        core: usize,
        (k, n): (usize, usize),
    ) -> Option<Rig> {
        self.left.set(self.left.get().checked_sub(1)?);
        // On a chip with one core there is nothing to choose, and its driver may know no masks.
        let core = (self.cores > 1).then_some(core);
        Rig::new(self.library, &self.keeper, mode.spec(dtype, rows, k, n), core).ok()
    }

    /// The answer to one question, asked of the library once.
    fn is_right(&self, dtype: MatmulType, mode: Layouts, core: usize) -> bool {
        let question = (dtype, mode, core);
        let known =
            self.answers.borrow().iter().find(|(asked, _)| *asked == question).map(|(_, right)| *right);
        known.unwrap_or_else(|| {
            let right = self.ask(dtype, mode, core).is_some();
            self.answers.borrow_mut().push((question, right));
            right
        })
    }

    fn ask(&self, dtype: MatmulType, mode: Layouts, core: usize) -> Option<()> {
        let believed = Believed::of(self.chip, dtype)?;
        let (k, n) = (believed.k_align * 4, believed.n_align * 6);
        let mut rig = self.rig(dtype, mode, core, (k, n))?;
        let mut random = Random::new(1 + core as u64);
        let (a, b) = random.operands(dtype, ROWS, k, n);
        rig.product(&a, &b, mode.places(&believed)).ok()
    }

    /// Whether views of one allocation, one a good core and at least two, give right results at once.
    fn run_views(&self, dtype: MatmulType, mode: Layouts, cores: &[bool; CORES_MAX]) -> Option<()> {
        let mut good: Vec<usize> = (0..CORES_MAX).filter(|core| cores[*core]).collect();
        let first = *good.first()?;
        // With one core two contexts of it take turns, so that an offset that is not zero is seen as well.
        if good.len() == 1 {
            good.push(first);
        }
        let believed = Believed::of(self.chip, dtype)?;
        let shape = (believed.k_align * VIEW_BLOCKS, believed.n_align * VIEW_BLOCKS);
        let rigs = good.iter().map(|core| self.rig(dtype, mode, *core, shape)).collect::<Option<Vec<_>>>()?;
        all_at_once(&self.keeper, rigs, dtype, mode.places(&believed), ROUNDS).ok()
    }
}
