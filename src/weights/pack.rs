//! Rows of a weight into the parts of B: native blocks or row-major.

use rayon::prelude::*;
use rknn_sys::Layout;

use super::rows::{Column, RowRoom};
use super::Source;
use crate::kernels::fast::place_column;
use crate::kernels::int4::scalar::{nibble, set_nibble};
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::Rotation;
use crate::plan::{Slice, WeightPlan};

/// Why a weight has no form on the NPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Infinities or NaNs: only the CPU's arithmetic is defined for them.
    #[error("it holds infinities or NaNs")]
    NotFinite,
}

/// How the columns of a slice are converted, and how they are to lie.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    /// How the weight was cut.
    pub plan: &'a WeightPlan,
    /// What its rows, and those of its activations, are rotated by.
    pub rotation: Option<&'a Rotation>,
    /// Native or row-major (K×N).
    pub layout: Layout,
    /// How four-bit scales are found.
    pub calibration: Calibration,
}

/// Converts the columns of one slice: each segment's part into its slice of `parts`, each segment's scales into its
/// slice of `scales`.
///
/// A part is `plan.part_bytes(slice, segment)` bytes, aligned to 2; scales are `slice.len` a segment, with weight ≈
/// scale · stored; padding is zero. Gives the largest sum of magnitudes of a column in a segment, for four bits.
/// Blocks of native columns are spread over the current rayon pool; row-major parts, whose columns interleave, are
/// done by the caller.
///
/// # Errors
/// [`PackError::NotFinite`]; the parts are then unspecified.
pub fn pack(
    source: &Source,
    form: Form,
    slice: &Slice,
    parts: &mut [&mut [u8]],
    scales: &mut [&mut [f32]],
) -> Result<u32, PackError> {
    match form.layout {
        Layout::Native => pack_native(source, form, slice, parts, scales),
        Layout::Norm => pack_rows(source, form, slice, parts, scales),
    }
}

/// Native columns that lie together, of every segment.
#[derive(Default)]
struct Group<'a> {
    parts: Vec<&'a mut [u8]>,
    scales: Vec<&'a mut [f32]>,
}

fn pack_native(
    source: &Source,
    form: Form,
    slice: &Slice,
    parts: &mut [&mut [u8]],
    scales: &mut [&mut [f32]],
) -> Result<u32, PackError> {
    let (plan, element) = (form.plan, form.plan.dtype.b());
    let (block_n, block_k) = (plan.limits.b_block_n, plan.limits.b_block_k);
    let mut groups: Vec<Group> = Vec::new();
    groups.resize_with(slice.padded / block_n, Group::default);
    for ((segment, part), scales) in plan.segments.iter().zip(parts).zip(scales) {
        let bytes = element.bytes(segment.padded * block_n);
        // The last group or groups may have no column of the matrix: they get zeros and no scales.
        let scales = scales.chunks_mut(block_n).map(Some).chain(std::iter::repeat_with(|| None));
        for ((group, part), scales) in groups.iter_mut().zip(part.chunks_exact_mut(bytes)).zip(scales) {
            group.parts.push(part);
            group.scales.push(scales.unwrap_or_default());
        }
    }
    let convert = |room: &mut RowRoom, (index, mut group): (usize, Group)| {
        let columns = group.scales.first().map_or(0, |scales| scales.len());
        if columns < block_n {
            group.parts.iter_mut().for_each(|part| part.fill(0));
        }
        let mut largest = 0;
        for column in 0..columns {
            room.load(source, slice.start + index * block_n + column, form.rotation)?;
            for (g, segment) in plan.segments.iter().enumerate() {
                let (scale, values, sum) = room.column(segment, element);
                group.scales[g][column] = scale;
                largest = largest.max(sum);
                let part = &mut *group.parts[g];
                match values {
                    Column::I8(values) => {
                        place_column(values, column, block_n, block_k, bytemuck::cast_slice_mut(part));
                    }
                    Column::F16(values) => {
                        place_column(values, column, block_n, block_k, bytemuck::cast_slice_mut(part));
                    }
                    // Pairs along k share a byte, so that bytes lie as elements would, half as many.
                    Column::I4(bytes) => place_column(bytes, column, block_n, block_k / 2, part),
                }
            }
        }
        Ok(largest)
    };
    let groups = groups.into_par_iter().enumerate();
    groups.map_init(|| RowRoom::new(form.calibration), convert).try_reduce(|| 0, |a, b| Ok(a.max(b)))
}

fn pack_rows(
    source: &Source,
    form: Form,
    slice: &Slice,
    parts: &mut [&mut [u8]],
    scales: &mut [&mut [f32]],
) -> Result<u32, PackError> {
    let mut room = RowRoom::new(form.calibration);
    let mut largest = 0;
    parts.iter_mut().for_each(|part| part.fill(0));
    for column in 0..slice.len {
        room.load(source, slice.start + column, form.rotation)?;
        for ((segment, part), scales) in form.plan.segments.iter().zip(&mut *parts).zip(&mut *scales) {
            let (scale, values, sum) = room.column(segment, form.plan.dtype.b());
            scales[column] = scale;
            largest = largest.max(sum);
            match values {
                Column::I8(values) => {
                    place_row_major(values, column, slice.padded, bytemuck::cast_slice_mut(part));
                }
                Column::F16(values) => {
                    place_row_major(values, column, slice.padded, bytemuck::cast_slice_mut(part));
                }
                Column::I4(bytes) => {
                    for k in 0..segment.len {
                        set_nibble(part, k * slice.padded + column, nibble(bytes, k));
                    }
                }
            }
        }
    }
    Ok(largest)
}

/// Puts a column into row-major B with rows of `padded` elements.
fn place_row_major<T: Copy>(values: &[T], column: usize, padded: usize, out: &mut [T]) {
    for (row, value) in out.chunks_exact_mut(padded).zip(values) {
        row[column] = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;
    use crate::kernels::rotate::Recipe;
    use crate::kernels::scalar::b_index;
    use ggml_sys::RowReader;
    use half::f16;
    use proptest::prelude::*;
    use rknn_sys::{Element, MatmulType};

    /// All parts and scales of a weight, slice by slice.
    type Packed = (Vec<Vec<Vec<u8>>>, Vec<Vec<Vec<f32>>>, u32);

    fn pack_all(source: &Source, form: Form) -> Result<Packed, PackError> {
        let plan = form.plan;
        let (mut all_parts, mut all_scales, mut largest) = (Vec::new(), Vec::new(), 0);
        for slice in &plan.slices {
            let mut parts: Vec<Vec<u16>> = plan
                .segments
                .iter()
                .map(|segment| vec![0xaaaa; plan.part_bytes(slice, segment).div_ceil(2)])
                .collect();
            let mut scales = vec![vec![f32::NAN; slice.len]; plan.segments.len()];
            let mut part_bytes: Vec<&mut [u8]> = parts
                .iter_mut()
                .zip(&plan.segments)
                .map(|(part, segment)| {
                    &mut bytemuck::cast_slice_mut::<u16, u8>(part)[..plan.part_bytes(slice, segment)]
                })
                .collect();
            let mut scale_slices: Vec<&mut [f32]> = scales.iter_mut().map(Vec::as_mut_slice).collect();
            largest = largest.max(pack(source, form, slice, &mut part_bytes, &mut scale_slices)?);
            all_parts.push(part_bytes.iter().map(|part| part.to_vec()).collect());
            all_scales.push(scales);
        }
        Ok((all_parts, all_scales, largest))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        /// Every element of the matrix is found where the index formula says, times its column's scale, within
        /// half a step; everything else is zero.
        #[test]
        fn parts_hold_the_matrix(
            chip in 0..CHIPS.len(), dtype in 0..MatmulType::ALL.len(), native: bool, rotated: bool, padded: bool,
            k in 1usize..300, n in 1usize..150, slack in 0usize..3, seed: u32, magnitude in -30i32..30,
        ) {
            let (chip, dtype) = (&CHIPS[chip], MatmulType::ALL[dtype]);
            let rotation = rotated.then(|| Rotation::new(&Recipe { padded, ..Recipe::of(k) })).flatten();
            let width = rotation.as_ref().map_or(k, Rotation::width);
            let Some(plan) = WeightPlan::new(chip, chip.cores, dtype, (width, n), 128) else { return Ok(()) };
            let mut state = seed;
            let stride = k + slack;
            let matrix: Vec<f32> = (0..n * stride).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / 8388608.0 - 1.0) * 2f32.powi(magnitude)
            }).collect();
            let data: Vec<u8> = matrix.iter().flat_map(|value| value.to_ne_bytes()).collect();
            // What is stored is the rotated matrix; the rotation has tests of its own.
            let rows: Vec<Vec<f32>> = matrix.chunks(stride).map(|row| {
                let mut out = row[..k].to_vec();
                if let Some(rotation) = &rotation {
                    out = vec![0.0; width];
                    rotation.apply(&row[..k], &mut out, &mut vec![0.0; width]);
                }
                out
            }).collect();
            let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: stride * 4 };
            let layout = if native { Layout::Native } else { Layout::Norm };
            let (parts, scales, largest) =
                pack_all(&source, Form { plan: &plan, rotation: rotation.as_ref(), layout, calibration: Calibration::default() }).unwrap();
            let mut sums = 0;
            for (s, slice) in plan.slices.iter().enumerate() {
                for (g, segment) in plan.segments.iter().enumerate() {
                    let part = &parts[s][g];
                    for column in 0..slice.padded {
                        let limits = &plan.limits;
                        let row = (column < slice.len)
                            .then(|| &rows[slice.start + column][segment.start..segment.start + segment.len]);
                        let mut sum = 0;
                        for i in 0..segment.padded {
                            let at = if native { b_index(i, column, segment.padded, limits.b_block_n, limits.b_block_k) } else { i * slice.padded + column };
                            let stored = match dtype.b() {
                                Element::I4 => f32::from(nibble(part, at)),
                                Element::I8 => f32::from(part[at] as i8),
                                _ => f16::from_ne_bytes([part[at * 2], part[at * 2 + 1]]).to_f32(),
                            };
                            sum += stored.abs() as u32;
                            match row.and_then(|row| row.get(i)) {
                                None => prop_assert_eq!(stored, 0.0, "padding"),
                                Some(value) => {
                                    let scale = scales[s][g][column];
                                    let half_step = match dtype.b() {
                                        // What lies beyond the levels is clamped.
                                        Element::I4 if stored == -8.0 || stored == 7.0 => f32::INFINITY,
                                        Element::I4 | Element::I8 => scale.abs() * 0.5001,
                                        _ => (value.abs() / 2048.0).max(scale * 2f32.powi(-25)) * 1.0001,
                                    };
                                    prop_assert!((stored * scale - value).abs() <= half_step, "{value} as {stored} · {scale}");
                                }
                            }
                        }
                        sums = sums.max(sum);
                    }
                }
            }
            prop_assert_eq!(largest, if dtype.b() == Element::I4 { sums } else { 0 });
        }
    }

    #[test]
    fn a_weight_with_a_nan_is_refused() {
        let mut data: Vec<u8> = [1.0f32; 64].iter().flat_map(|value| value.to_ne_bytes()).collect();
        data[40..44].copy_from_slice(&f32::NAN.to_ne_bytes());
        let source = Source { data: &data, reader: RowReader::f32(), k: 32, n: 2, row_stride: 128 };
        let rotation = Rotation::new(&Recipe::of(32));
        for dtype in [MatmulType::I8, MatmulType::F16, MatmulType::I4] {
            let plan = WeightPlan::new(&CHIPS[0], 3, dtype, (32, 2), 32).unwrap();
            for layout in [Layout::Native, Layout::Norm] {
                for rotation in [None, rotation.as_ref()] {
                    let form = Form { plan: &plan, rotation, layout, calibration: Calibration::KlDivergence };
                    assert_eq!(pack_all(&source, form).err(), Some(PackError::NotFinite));
                }
            }
        }
    }
}
