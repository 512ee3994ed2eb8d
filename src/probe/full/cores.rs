//! Pinning contexts to cores.

use rknn_sys::{Context, MatmulType};

use super::{source, Bench, Check, Seen, Stop};
use crate::chip::Chip;
use crate::probe::matrix::Random;
use crate::probe::rig::{Mode, Rig};

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    let advice = "the plugin leaves this core out; if the driver is older than 0.9.6, update the kernel";
    let mut checks: Vec<Check> = (0..chip.cores)
        .map(|core| {
            let believed = format!("a context pinned to core {core} gives right numbers");
            Check::new(format!("core.{core}"), believed, source::HEADER, advice, move |bench| {
                one(bench, core)
            })
        })
        .collect();
    let believed = format!("there are {} cores and no more", chip.cores);
    let advice = "the board has more cores than our table: please send the report";
    checks.push(Check::new("core.none", believed, source::HEADER, advice, beyond));
    checks
}

fn one(bench: &Bench, core: usize) -> Seen {
    let mut seen = Err(Stop::Unknown("neither i8 nor f16 is taken here".to_owned()));
    for dtype in [MatmulType::I8, MatmulType::F16] {
        match product(bench, dtype, core) {
            Err(Stop::Unknown(_)) => {}
            other => {
                other?;
                seen = Ok(());
            }
        }
    }
    seen?;
    Ok(if bench.chip.cores > 1 { "right numbers" } else { "right numbers, without pinning" }.to_owned())
}

/// Whether a row-major product of either type is right on `core`.
pub(super) fn is_right(bench: &Bench, core: usize) -> bool {
    [MatmulType::I8, MatmulType::F16].into_iter().any(|dtype| product(bench, dtype, core).is_ok())
}

fn product(bench: &Bench, dtype: MatmulType, core: usize) -> Result<(), Stop> {
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 4, believed.n_align * 6);
    let spec = Mode::NORM.spec(dtype, 3, k, n);
    let pinned = (bench.chip.cores > 1).then_some(core);
    let mut rig = Rig::new(bench.library, &bench.keeper()?, spec, pinned)?;
    let mut random = Random::new(31 + core as u64);
    let (a, b) = (random.matrix(dtype, 3, k), random.matrix(dtype, k, n));
    Ok(rig.product(&a, &b, Mode::NORM.places(&believed))?)
}

fn beyond(bench: &Bench) -> Seen {
    if bench.chip.cores == 1 {
        return Err(Stop::Unknown("not asked: with one core nothing is pinned".to_owned()));
    }
    let believed = bench.believed(MatmulType::I8)?;
    let spec = Mode::NORM.spec(MatmulType::I8, 1, believed.k_align * 4, believed.n_align * 4);
    let mut context = Context::create(bench.library, spec)?;
    match context.set_core(bench.chip.cores) {
        Err(_) => Ok(format!("core {} is refused", bench.chip.cores)),
        Ok(()) => Err(Stop::Fail(format!("core {} is taken", bench.chip.cores))),
    }
}
