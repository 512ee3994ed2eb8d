//! Native A, B and C, element by element, each told apart from the others; a failure names the layout that fits.

use rknn_sys::{Element, MatmulType};

use super::{source, type_name, types_of, Bench, Check, Seen, Stop};
use crate::chip::Chip;
use crate::probe::layout::{Believed, Place};
use crate::probe::matrix::{Matrix, Random};
use crate::probe::rig::{Layouts, Rig, Trouble};

/// Rows of the products that tell one operand from the others: native A and C of one row are row-major.
const ROWS: usize = 5;
const B_ONLY: Layouts = Layouts { native_b: true, native_ac: false };
const AC_ONLY: Layouts = Layouts { native_b: false, native_ac: true };
const ADVICE: &str = "the plugin goes on with row-major layouts, which are slower: please send the report";

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    let mut checks = Vec::new();
    for dtype in types_of(chip) {
        let Some(believed) = Believed::of(chip, dtype) else { continue };
        let mut add = |operand: &str, what: String, run: fn(&Bench, MatmulType) -> Seen| {
            let name = format!("layout.{operand}.{}", type_name(dtype));
            checks.push(Check::new(name, what, source::HEADER, ADVICE, move |bench| run(bench, dtype)));
        };
        add("norm", "row-major A, B and C give right numbers".to_owned(), normal);
        add("a", format!("native A is {}", believed.a), native_a);
        add("b", format!("native B is {}", believed.b), native_b);
        add("c", format!("native C is {}", believed.c), native_c);
        add("all", "all native, M = 1, 5 and 32, give right numbers".to_owned(), native);
    }
    checks
}

/// K and N of the products: several blocks each way, and whole blocks of every layout that may come in question.
fn shape(believed: &Believed) -> (usize, usize) {
    (believed.k_align * 4, believed.n_align * 6)
}

fn rig(
    bench: &Bench,
    dtype: MatmulType,
    mode: Layouts,
    rows: usize,
    believed: &Believed,
) -> Result<Rig, Stop> {
    let (k, n) = shape(believed);
    Ok(Rig::new(bench.library, &bench.keeper()?, mode.spec(dtype, rows, k, n), bench.core(0))?)
}

fn normal(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = shape(&believed);
    let mut random = Random::new(11);
    for rows in [1, ROWS] {
        let (a, b) = random.operands(dtype, rows, k, n);
        rig(bench, dtype, Layouts::NORM, rows, &believed)?.product(&a, &b, [Place::RowMajor; 3])?;
    }
    Ok("right numbers".to_owned())
}

fn native(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = shape(&believed);
    let mut random = Random::new(12);
    for rows in [1, ROWS, 32] {
        let (a, b) = random.operands(dtype, rows, k, n);
        rig(bench, dtype, Layouts::NATIVE, rows, &believed)?.product(
            &a,
            &b,
            Layouts::NATIVE.places(&believed),
        )?;
    }
    Ok("right numbers".to_owned())
}

/// The places that a native A or C might have, the believed one first.
fn blocked(believed: Place, columns: usize) -> impl Iterator<Item = Place> {
    let others = [2, 4, 8, 16, 32, 64].into_iter().filter(move |block| columns % block == 0);
    let others = others.map(Place::Blocked).chain([Place::RowMajor]).filter(move |place| *place != believed);
    [believed].into_iter().chain(others)
}

/// All columns of B are alike, and so are those of C: whatever C's blocks are, only A's place matters.
fn native_a(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = shape(&believed);
    let mut random = Random::new(13);
    let (a, column) = random.operands(dtype, ROWS, k, 1);
    let b = Matrix::of(k, n, |row, _| column.values[row]);
    let sums = a.times(&b);
    let mut rig = rig(bench, dtype, AC_ONLY, ROWS, &believed)?;
    let _b = rig.put_b(&b, Place::RowMajor)?;
    let mut first = None;
    for place in blocked(believed.a, k) {
        rig.put_a(&a, place)?;
        rig.run()?;
        let fits = blocked(believed.c, n).any(|c| rig.compare(&sums, c).is_ok());
        let judged = if fits { Ok(()) } else { rig.compare(&sums, believed.c) };
        match (judged, &first) {
            (Ok(()), None) => return Ok(format!("{place}")),
            (Ok(()), Some(wrong)) => return Err(Stop::Fail(format!("{wrong}; {place} fits"))),
            (Err(wrong), None) => first = Some(wrong),
            (Err(_), Some(_)) => (),
        }
    }
    Err(no_fit(first))
}

/// A and C are row-major, so that only B's place matters.
fn native_b(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = shape(&believed);
    let mut random = Random::new(14);
    let (a, b) = random.operands(dtype, ROWS, k, n);
    let sums = a.times(&b);
    let mut rig = rig(bench, dtype, B_ONLY, ROWS, &believed)?;
    rig.put_a(&a, Place::RowMajor)?;
    let tiled = [8, 16, 32, 64].into_iter().flat_map(|n| [8, 16, 32, 64].map(|k| Place::Tiled { n, k }));
    let tiled =
        tiled.filter(|place| matches!(place, Place::Tiled { n: bn, k: bk } if n % bn == 0 && k % bk == 0));
    let others = tiled.chain([Place::RowMajor]).filter(|place| *place != believed.b);
    let mut first = None;
    for place in [believed.b].into_iter().chain(others) {
        let _b = rig.put_b(&b, place)?;
        rig.run()?;
        match (rig.compare(&sums, Place::RowMajor), &first) {
            (Ok(()), None) => return Ok(format!("{place}")),
            (Ok(()), Some(wrong)) => return Err(Stop::Fail(format!("{wrong}; {place} fits"))),
            (Err(wrong), None) => first = Some(wrong),
            (Err(_), Some(_)) => (),
        }
    }
    Err(no_fit(first))
}

/// All elements of A are alike, so that wherever they lie only C's place matters.
fn native_c(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = shape(&believed);
    let one = if dtype.a() == Element::F16 { 64 } else { 1 };
    let a = Matrix::of(ROWS, k, |_, _| one);
    let b = Random::new(15).matrix(dtype.b(), k, n);
    let sums = a.times(&b);
    let mut rig = rig(bench, dtype, AC_ONLY, ROWS, &believed)?;
    rig.put_a(&a, believed.a)?;
    let _b = rig.put_b(&b, Place::RowMajor)?;
    rig.run()?;
    let Err(wrong) = rig.compare(&sums, believed.c) else { return Ok(format!("{}", believed.c)) };
    match blocked(believed.c, n).find(|place| rig.compare(&sums, *place).is_ok()) {
        Some(place) => Err(Stop::Fail(format!("{wrong}; {place} fits"))),
        None => Err(no_fit(Some(wrong))),
    }
}

fn no_fit(first: Option<Trouble>) -> Stop {
    let wrong = first.map_or_else(String::new, |wrong| format!("{wrong}; "));
    Stop::Fail(format!("{wrong}no layout that we know fits"))
}
