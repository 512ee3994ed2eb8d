//! Pinning contexts to cores.

use rknn_sys::{Context, MatmulType};

use super::{source, Bench, Check, Seen, Stop};
use crate::chip::Chip;
use crate::probe::matrix::Random;
use crate::probe::rig::{Layouts, Rig};

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
    let believed = "a mask of several cores is refused, or taken without wrong numbers";
    let advice = "harmless to the plugin, which pins a context to one core: please send the report";
    checks.push(Check::new("core.masks", believed, source::REPORTS, advice, masks));
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
    let spec = Layouts::NORM.spec(dtype, 3, k, n);
    let pinned = (bench.chip.cores > 1).then_some(core);
    let mut rig = Rig::new(bench.library, &bench.keeper()?, spec, pinned)?;
    let mut random = Random::new(31 + core as u64);
    let (a, b) = random.operands(dtype, 3, k, n);
    Ok(rig.product(&a, &b, Layouts::NORM.places(&believed))?)
}

/// Two cores, three, and the header's "all".
const MASKS: [i32; 3] = [3, 7, 0xffff];

fn masks(bench: &Bench) -> Seen {
    let dtype = match bench.believed(MatmulType::I8) {
        Ok(_) => MatmulType::I8,
        Err(_) => MatmulType::F16,
    };
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 4, believed.n_align * 6);
    let mut random = Random::new(37);
    let (a, b) = random.operands(dtype, 3, k, n);
    let (mut refused, mut taken) = (Vec::new(), Vec::new());
    for mask in MASKS {
        let mut rig = Rig::new(bench.library, &bench.keeper()?, Layouts::NORM.spec(dtype, 3, k, n), None)?;
        let name = format!("{mask:#x}");
        let was = if rig.context.set_core_mask(mask).is_err() {
            // The context must have stayed good.
            if let Some(core) = bench.core(0) {
                rig.context.set_core(core)?;
            }
            refused.push(name.clone());
            "refused"
        } else {
            // What a core does wrong is told by its own check.
            if bench.cores() < bench.chip.cores {
                return Err(Stop::Unknown(format!("{name} is taken, but not every core works")));
            }
            taken.push(name.clone());
            "taken"
        };
        rig.product(&a, &b, Layouts::NORM.places(&believed))
            .map_err(|trouble| Stop::Fail(format!("{name} is {was}, then: {trouble}")))?;
    }
    Ok(match (refused.join(", "), taken.join(", ")) {
        (refused, taken) if taken.is_empty() => format!("{refused} refused"),
        (refused, taken) if refused.is_empty() => format!("{taken} taken, right numbers"),
        (refused, taken) => format!("{refused} refused; {taken} taken, right numbers"),
    })
}

fn beyond(bench: &Bench) -> Seen {
    if bench.chip.cores == 1 {
        return Err(Stop::Unknown("not asked: with one core nothing is pinned".to_owned()));
    }
    let believed = bench.believed(MatmulType::I8)?;
    let spec = Layouts::NORM.spec(MatmulType::I8, 1, believed.k_align * 4, believed.n_align * 4);
    let mut context = Context::create(bench.library, spec)?;
    match context.set_core(bench.chip.cores) {
        Err(_) => Ok(format!("core {} is refused", bench.chip.cores)),
        Ok(()) => Err(Stop::Fail(format!("core {} is taken", bench.chip.cores))),
    }
}
