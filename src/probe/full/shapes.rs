//! Alignments of K and N, the longest K of a context, and contexts of several M.

use rknn_sys::{Context, DynamicContext, MatmulType, Operand};

use super::{source, type_name, types_of, Bench, Check, Seen, Stop};
use crate::chip::Chip;
use crate::probe::layout::Believed;
use crate::probe::matrix::{compare, Matrix, Random};
use crate::probe::rig::{Layouts, Rig, Trouble};

/// The M of the dynamic context.
const ROWS: [usize; 3] = [1, 8, 33];
const ALIGN_ADVICE: &str = "the plugin pads to our table: please send the report";

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    let mut checks = Vec::new();
    for dtype in types_of(chip) {
        let name = type_name(dtype);
        let Some(believed) = Believed::of(chip, dtype) else { continue };
        for (axis, align) in [("k", believed.k_align), ("n", believed.n_align)] {
            checks.push(Check::new(
                format!("align.{axis}.{name}"),
                format!("{} is a multiple of {align}", axis.to_uppercase()),
                source::HEADER,
                ALIGN_ADVICE,
                move |bench| alignment(bench, dtype, axis == "k"),
            ));
        }
        checks.push(Check::new(
            format!("k.max.{name}"),
            format!("K = {} in one context", chip.k_max),
            source::REPORTS,
            "the plugin cuts K at this length: please send the report",
            move |bench| longest(bench, dtype),
        ));
    }
    checks.push(Check::new(
        "dynamic",
        format!("one context serves M of {ROWS:?}"),
        source::HEADER,
        "update librknnrt to 2.3.2; without it each M takes a context of its own",
        dynamic,
    ));
    checks
}

fn alignment(bench: &Bench, dtype: MatmulType, of_k: bool) -> Seen {
    let believed = bench.believed(dtype)?;
    let align = if of_k { believed.k_align } else { believed.n_align };
    let create = |value: usize| {
        let (k, n) = if of_k { (value, believed.n_align * 4) } else { (believed.k_align * 4, value) };
        Context::create(bench.library, Layouts::NORM.spec(dtype, 1, k, n)).map(drop)
    };
    // An odd multiple, so that a coarser alignment shows.
    let good = align * 3;
    create(good)?;
    for bad in [good - 1, good - align / 2] {
        if create(bad).is_ok() {
            return Err(Stop::Fail(format!("{bad} is taken too")));
        }
    }
    Ok(format!("{good} taken; {} and {} refused", good - 1, good - align / 2))
}

fn longest(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = (bench.chip.k_max, believed.n_align * 2);
    let mut random = Random::new(3);
    // Small elements: the sums of so many must stay exact in f32, and for i4 within 16 bits.
    let bound = match dtype {
        MatmulType::I4 => 1,
        MatmulType::F16I4 => 7,
        _ => 16,
    };
    let mut small = |rows, columns| Matrix::of(rows, columns, |_, _| random.within(-bound, bound));
    let (a, b) = (small(1, k), small(k, n));
    let mut rig =
        Rig::new(bench.library, &bench.keeper()?, Layouts::NORM.spec(dtype, 1, k, n), bench.core(0))?;
    rig.product(&a, &b, Layouts::NORM.places(&believed))?;
    Ok("right numbers".to_owned())
}

fn dynamic(bench: &Bench) -> Seen {
    let dtype = MatmulType::I8;
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 4, believed.n_align * 6);
    let keeper = bench.keeper()?;
    let mut random = Random::new(4);
    let b = random.matrix(dtype.b(), k, n);
    // Native, where the blocks of A and C depend on M, unless a context of one M is wrong: layouts have checks of
    // their own.
    let alone = |mode: Layouts| -> Result<(), Trouble> {
        let mut rig = Rig::new(bench.library, &keeper, mode.spec(dtype, ROWS[1], k, n), bench.core(0))?;
        rig.product(&Random::new(5).matrix(dtype.a(), ROWS[1], k), &b, mode.places(&believed))
    };
    let (mode, how) = if alone(Layouts::NATIVE).is_ok() {
        (Layouts::NATIVE, "native")
    } else {
        (Layouts::NORM, "row-major")
    };
    let [place_a, place_b, place_c] = mode.places(&believed);
    let mut made = DynamicContext::create(bench.library, mode.spec(dtype, ROWS[0], k, n), &ROWS)?;
    let largest = ROWS.into_iter().max().unwrap_or(1);
    let mut memory_a = keeper.allocate(made.largest_bytes(Operand::A).max(largest * k))?;
    let mut memory_b = keeper.allocate(made.largest_bytes(Operand::B).max(k * n))?;
    let mut memory_c = keeper.allocate(made.largest_bytes(Operand::C).max(largest * n * 4))?;
    b.store(dtype.b(), place_b, memory_b.as_mut_slice());
    memory_b.sync_to_device()?;
    // Up and down again: the shapes must not stick.
    for rows in ROWS.into_iter().chain([ROWS[1], ROWS[0]]) {
        made.set_rows(rows)?;
        let context = made.context();
        let a = random.matrix(dtype.a(), rows, k);
        a.store(dtype.a(), place_a, memory_a.as_mut_slice());
        memory_a.sync_to_device()?;
        context.bind(Operand::A, &memory_a.binding())?;
        context.bind(Operand::B, &memory_b.binding())?;
        context.bind(Operand::C, &memory_c.binding())?;
        context.run()?;
        memory_c.sync_from_device()?;
        compare(dtype, &a.times(&b), rows, place_c, memory_c.as_slice())
            .map_err(|wrong| Stop::Fail(format!("M = {rows}: {}", Trouble::Wrong(wrong))))?;
    }
    Ok(format!("right numbers for each M, {how}"))
}
