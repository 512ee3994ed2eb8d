//! Exactness of i8, the accumulator of f16, the saturation of i4.

use rknn_sys::MatmulType;

use super::{source, types_of, Bench, Check, Seen};
use crate::chip::Chip;
use crate::probe::matrix::{Matrix, Random};
use crate::probe::rig::{Layouts, Rig};

const ADVICE: &str =
    "results of this type cannot be trusted: update librknnrt to 2.3.2, and please send the report";

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    let mut checks = vec![
        Check::new("numbers.i8", "i8 sums are exact in 32 bits", source::OPEN, ADVICE, int8),
        Check::new("numbers.f16", "f16 products are summed in f32", source::OPEN, ADVICE, float16),
    ];
    if types_of(chip).contains(&MatmulType::I4) {
        let believed = "i4 sums are wide and saturate to 16 bits once, at the end";
        checks.push(Check::new("numbers.i4", believed, source::OPEN, ADVICE, int4));
    }
    checks
}

fn product(bench: &Bench, dtype: MatmulType, a: &Matrix, b: &Matrix) -> Result<(), super::Stop> {
    let believed = bench.believed(dtype)?;
    let spec = Layouts::NORM.spec(dtype, a.rows, a.columns, b.columns);
    let mut rig = Rig::new(bench.library, &bench.keeper()?, spec, bench.core(0))?;
    Ok(rig.product(a, b, Layouts::NORM.places(&believed))?)
}

/// Sums of about 2²⁶ whose low bits vary: no float of 24 bits holds them.
fn int8(bench: &Bench) -> Seen {
    let believed = bench.believed(MatmulType::I8)?;
    let mut random = Random::new(21);
    let a = Matrix::of(2, 4096, |row, _| if row == 0 { -128 } else { random.within(101, 127) });
    let b = Matrix::of(4096, believed.n_align * 2, |_, _| random.within(-128, -101));
    product(bench, MatmulType::I8, &a, &b)?;
    Ok("sums of 2^25 and more are exact".to_owned())
}

/// 2048 + 4095 · 1/64: an f16 accumulator would lose every one of the small terms.
fn float16(bench: &Bench) -> Seen {
    let believed = bench.believed(MatmulType::F16)?;
    let a = Matrix::of(1, 4096, |_, _| 64);
    let b = Matrix::of(4096, believed.n_align * 2, |row, _| if row == 0 { 2048 * 64 } else { 1 });
    product(bench, MatmulType::F16, &a, &b)?;
    Ok("2048 + 4095/64 = 2111.984375".to_owned())
}

/// Columns that end above the range, below it, and within it after having been far above.
fn int4(bench: &Bench) -> Seen {
    let believed = bench.believed(MatmulType::I4)?;
    let a = Matrix::of(1, 2048, |_, _| 7);
    let b = Matrix::of(2048, believed.n_align * 2, |row, column| match column % 3 {
        0 => 7,
        1 => -8,
        _ => {
            if row < 1024 {
                7
            } else {
                -8
            }
        }
    });
    product(bench, MatmulType::I4, &a, &b)?;
    Ok("100352 gives 32767, -114688 gives -32768, 50176 - 57344 gives -7168".to_owned())
}
