//! Every fact that we rely on, as a check: a name, what we believe and where from, and a function that finds out.
//!
//! * [`types`][]: which matmul types the library takes;
//! * [`shapes`][]: alignments of K and N, the longest K, dynamic shapes;
//! * [`layouts`][]: native A, B and C, element by element;
//! * [`numbers`][]: exactness, accumulation, saturation;
//! * [`memory`][]: coherence, what a bind freezes, file descriptors, offset views, domains;
//! * [`cores`][]: pinning;
//! * [`costs`][]: what calls and runs take; no part of the contract.
//!
//! For the doctor and the conformance suite: the plugin must not use this module.

pub mod cores;
pub mod costs;
pub mod layouts;
pub mod memory;
pub mod numbers;
pub mod shapes;
pub mod types;

use std::cell::OnceCell;
use std::sync::Arc;

use rknn_sys::{Context, Error, Library, MatmulType, Version};
use serde::{Deserialize, Serialize};

use super::layout::Believed;
use super::rig::{keeper, Trouble};
use crate::chip::Chip;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "found", rename_all = "lowercase")]
pub enum Outcome {
    /// It is as believed; what was seen.
    Pass(String),
    /// It is not; what was found instead.
    Fail(String),
    /// It could not be told; why.
    Unknown(String),
}

impl Outcome {
    /// What was found, or why nothing was.
    pub fn found(&self) -> &str {
        match self {
            Self::Pass(text) | Self::Fail(text) | Self::Unknown(text) => text,
        }
    }
}

/// A finding that ends a check early: what went wrong, or why it cannot be told.
pub(crate) enum Stop {
    Fail(String),
    Unknown(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fail(error.to_string())
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Fail(trouble.to_string())
    }
}

/// A check's inner result: what was seen, or why it ended early.
pub(crate) type Seen = Result<String, Stop>;

/// What the results of a check decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The contract between us and the library: numbers, layouts, refusals.
    Contract,
    /// Time, which depends on the machine's state.
    Cost,
}

/// One fact, put to the test.
pub struct Check {
    /// A name that stays: "layout.b.i8".
    pub name: String,
    /// Contract or cost.
    pub kind: Kind,
    /// What is believed, in a few words.
    pub believed: String,
    /// Where the belief comes from.
    pub source: &'static str,
    /// What a user can do when it fails.
    pub advice: &'static str,
    run: Box<dyn Fn(&Bench) -> Seen>,
}

impl Check {
    /// Finds out. Does not panic; what a sick library does to the process is the caller's to contain.
    pub fn run(&self, bench: &Bench) -> Outcome {
        match (self.run)(bench) {
            Ok(seen) => Outcome::Pass(seen),
            Err(Stop::Fail(found)) => Outcome::Fail(found),
            Err(Stop::Unknown(why)) => Outcome::Unknown(why),
        }
    }

    pub(crate) fn new(
        name: impl Into<String>,
        believed: impl Into<String>,
        source: &'static str,
        advice: &'static str,
        run: impl Fn(&Bench) -> Seen + 'static,
    ) -> Self {
        let (name, believed) = (name.into(), believed.into());
        Self { name, kind: Kind::Contract, believed, source, advice, run: Box::new(run) }
    }
}

/// The sources that beliefs name, as in `docs/facts.md`.
pub(crate) mod source {
    pub const HEADER: &str = "the vendor's header and API reference, 2.3.2";
    pub const REPORTS: &str = "public reports (rknn-toolkit2 issues, rk-llama.cpp forks)";
    pub const OPEN: &str = "rknpu2_matmul_open and rocket-userspace";
}

/// What the checks work on.
pub struct Bench<'a> {
    /// The library.
    pub library: &'a Library,
    /// The chip whose facts are believed.
    pub chip: &'a Chip,
    keeper: OnceCell<Arc<Context>>,
    good_cores: OnceCell<Vec<usize>>,
    /// Why the library refuses a type, by the type.
    refused: [OnceCell<Option<String>>; MatmulType::ALL.len()],
}

impl<'a> Bench<'a> {
    /// A bench; nothing is asked of the library yet.
    pub fn new(library: &'a Library, chip: &'a Chip) -> Self {
        Self {
            library,
            chip,
            keeper: OnceCell::new(),
            good_cores: OnceCell::new(),
            refused: Default::default(),
        }
    }

    /// The context that owns the memories of the checks.
    pub(crate) fn keeper(&self) -> Result<Arc<Context>, Error> {
        if let Some(keeper) = self.keeper.get() {
            return Ok(keeper.clone());
        }
        let made = keeper(self.library, self.chip)?;
        Ok(self.keeper.get_or_init(|| made).clone())
    }

    /// The versions of library and driver, asked through a context: it fails where there is no NPU.
    ///
    /// # Errors
    /// The library's refusal of a small context or of the query.
    pub fn versions(&self) -> Result<Version, Error> {
        self.keeper()?.version()
    }

    /// The beliefs of a type, or why its checks cannot run here.
    pub(crate) fn believed(&self, dtype: MatmulType) -> Result<Believed, Stop> {
        let believed = Believed::of(self.chip, dtype)
            .ok_or_else(|| Stop::Unknown(format!("{} has no {}", self.chip.title, type_name(dtype))))?;
        // What is refused is told by the check of the type alone.
        let code = dtype.code();
        let refused = self.refused[dtype as usize]
            .get_or_init(|| self.library.try_type(code, 1, 128, 128).err().map(|error| error.to_string()));
        if refused.is_some() {
            return Err(Stop::Unknown(format!("type {code} is not taken here, see type.{code}")));
        }
        Ok(believed)
    }

    /// A core to pin to, among those that work; `None` on a chip with one.
    pub(crate) fn core(&self, index: usize) -> Option<usize> {
        if self.chip.cores < 2 {
            return None;
        }
        // What a core does wrong is told by the checks of cores alone.
        let good = self.good_cores.get_or_init(|| {
            (0..self.chip.cores).filter(|core| cores::is_right(self, *core)).collect::<Vec<_>>()
        });
        Some(if good.is_empty() { 0 } else { good[index % good.len()] })
    }

    /// The cores that work; 1 when none does, so that what is asked of them is refused by the library itself.
    pub(crate) fn cores(&self) -> usize {
        let _ = self.core(0);
        self.good_cores.get().map_or(1, |good| good.len().max(1))
    }
}

/// "i8", "f16", "i4", "f16i8", "f16i4".
pub fn type_name(dtype: MatmulType) -> &'static str {
    match dtype {
        MatmulType::F16 => "f16",
        MatmulType::I8 => "i8",
        MatmulType::I4 => "i4",
        MatmulType::F16I8 => "f16i8",
        MatmulType::F16I4 => "f16i4",
    }
}

/// The types that have checks of their own on `chip`.
pub(crate) fn types_of(chip: &Chip) -> Vec<MatmulType> {
    MatmulType::ALL.into_iter().filter(|dtype| Believed::of(chip, *dtype).is_some()).collect()
}

/// All checks for `chip`, the cheap and telling ones first.
pub fn checks(chip: &Chip) -> Vec<Check> {
    let groups = [
        types::checks(chip),
        shapes::checks(chip),
        layouts::checks(chip),
        numbers::checks(chip),
        cores::checks(chip),
        memory::checks(chip),
        costs::checks(chip),
    ];
    groups.into_iter().flatten().collect()
}
