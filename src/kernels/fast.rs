//! The kernels in the form that vectorises: fixed inner blocks, no branches, integer tricks instead of calls.
//!
//! Memory traffic of one tile (bytes): packing reads 4·M·K and writes M·K (i8) or 2·M·K (f16); unpacking reads
//! and writes 4·M·N. At 10 GB/s, 128 rows of 2048×2048 take about 0.13 ms to pack and 0.21 ms to unpack.
//! `cargo bench --bench kernels` measures all of them beside memcpy.

use super::halves::to_halves;
#[cfg(target_arch = "x86_64")]
use super::lanes::Avx2;
use super::lanes::Lanes;
#[cfg(target_arch = "aarch64")]
use super::lanes::Neon;
use super::{Results, Rows, Strips, Sum};

/// Builds `$body` for the target's baseline and, on x86-64, for AVX2 as well, and calls the best that the CPU has.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<const $g:ident: usize>)? ($($arg:ident: $kind:ty),* $(,)?) $(-> $ret:ty)? = $body:expr) => {
        $(#[$doc])*
        $vis fn $name $(<const $g: usize>)? ($($arg: $kind),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2 $(<const $g: usize>)? ($($arg: $kind),*) $(-> $ret)? {
                    ($body)($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the CPU has what the function was built for.
                    return unsafe { avx2 $(::<$g>)? ($($arg),*) };
                }
            }
            ($body)($($arg),*)
        }
    };
}

pub(super) use vectorised;

/// Adding and subtracting this rounds a float below 2²² to the nearest integer, ties to even, and leaves it in
/// the low bits of the sum.
pub(super) const ROUND: f32 = 12_582_912.0;
pub(super) const SIGN_OFF: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

/// The largest magnitude of `row`; NaN when one of its elements is not finite.
pub fn amax(row: &[f32]) -> f32 {
    // Magnitudes compare as integers, with infinities and NaNs above all numbers.
    let bits = largest(row);
    if bits >= INFINITY {
        f32::NAN
    } else {
        f32::from_bits(bits)
    }
}

/// The largest of the magnitudes' bits, by the best instructions that there are. Compilers left to themselves make
/// vectors of elements that are far apart of it, and gather them one by one.
fn largest(row: &[f32]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(row: &[f32]) -> u32 {
            // SAFETY: the machine has AVX2 and FMA, says the caller.
            unsafe { largest_by::<Avx2>(row) }
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has what the function was built for.
            return unsafe { avx2(row) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: NEON is part of the target.
    unsafe {
        largest_by::<Neon>(row)
    }
    #[cfg(not(target_arch = "aarch64"))]
    // SAFETY: no instructions are asked for.
    unsafe {
        largest_by::<f32>(row)
    }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn largest_by<V: Lanes>(row: &[f32]) -> u32 {
    // Four at a time, so that none waits for the one before.
    const APART: usize = 4;
    let zeros = [0.0; 8];
    // SAFETY: no vector has more floats than that.
    let mut most = [unsafe { V::load(zeros.as_ptr()) }; APART];
    let mut blocks = row.chunks_exact(APART * V::N);
    for block in &mut blocks {
        for (i, most) in most.iter_mut().enumerate() {
            // SAFETY: within the block.
            *most = most.larger(unsafe { V::load(block.as_ptr().add(i * V::N)) });
        }
    }
    let most = most[0].larger(most[1]).larger(most[2].larger(most[3]));
    let mut lanes = zeros;
    // SAFETY: no vector has more floats than that.
    unsafe { most.store(lanes.as_mut_ptr()) };
    let bits = lanes.iter().chain(blocks.remainder()).map(|value| value.to_bits() & SIGN_OFF);
    bits.max().unwrap_or(0)
}

vectorised! {
    /// Quantises `values` by `inverse_scale` to −127..=127.
    pub fn quantize(values: &[f32], inverse_scale: f32, out: &mut [i8]) = quantize_body
}

#[inline(always)]
fn quantize_body(values: &[f32], inverse_scale: f32, out: &mut [i8]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = quantize_one(*value, inverse_scale) as i8;
    }
}

/// In −127..=127.
#[inline(always)]
fn quantize_one(value: f32, inverse_scale: f32) -> i32 {
    // A NaN becomes some number here; the NaN scale of its row makes the results NaN.
    round_within(value * inverse_scale, -127, 127)
}

/// The nearest integer, ties to even, within `low..=high`, for a number below 2²¹ in magnitude; else one of both.
#[inline(always)]
pub(super) fn round_within(value: f32, low: i32, high: i32) -> i32 {
    rounded_bits(value, low, high) - ROUND.to_bits() as i32
}

/// The same as a float, which is less work than to make one of the integer.
#[inline(always)]
pub(super) fn round_within_as_float(value: f32, low: i32, high: i32) -> f32 {
    f32::from_bits(rounded_bits(value, low, high) as u32) - ROUND
}

/// The bits of [`ROUND`] and the rounded number.
#[inline(always)]
fn rounded_bits(value: f32, low: i32, high: i32) -> i32 {
    // Clamped as integers, which positive floats compare like, and negative ones are below: compilers make branches
    // of a clamp of floats on aarch64.
    let zero = const { ROUND.to_bits() as i32 };
    ((value + ROUND).to_bits() as i32).clamp(zero + low, zero + high)
}

vectorised! {
    /// Quantises rows into blocks of native A, see [`super::scalar::pack_a`]: strips of `BLOCK` elements a row.
    ///
    /// Beyond a row's elements zeros are put.
    pub fn pack_a_i8<const BLOCK: usize>(rows: &Rows, a: &mut Strips<i8>) = pack_a_i8_body::<BLOCK>
}

/// Rows whose blocks of `bytes` bytes fill a cache line: packed together, so that a line is written once.
pub(super) const fn rows_a_line(bytes: usize) -> usize {
    assert!(bytes >= 4 && bytes <= 64, "no block of a chip");
    64 / bytes
}

/// The reciprocals of up to 16 scales. Divided once: a division takes as long as a block.
#[inline(always)]
pub(super) fn inverses(scales: &[f32]) -> [f32; 16] {
    let mut inverses = [0.0; 16];
    for (inverse, scale) in inverses.iter_mut().zip(scales) {
        *inverse = 1.0 / scale;
    }
    inverses
}

#[inline(always)]
fn pack_a_i8_body<const BLOCK: usize>(rows: &Rows, a: &mut Strips<i8>) {
    let step = const { rows_a_line(BLOCK) };
    for first in (0..rows.rows).step_by(step) {
        let group = first..rows.rows.min(first + step);
        let inverses = inverses(&rows.scales[group.clone()]);
        for index in 0..a.count() {
            let start = (index * BLOCK).min(rows.k);
            let places = a.get(index)[group.start * BLOCK..group.end * BLOCK].chunks_exact_mut(BLOCK);
            for ((row, inverse), place) in group.clone().zip(inverses).zip(places) {
                let values = &rows.row(row)[start..];
                let place: &mut [i8; BLOCK] = place.try_into().expect("a whole block");
                if let Some(values) = values.first_chunk::<BLOCK>() {
                    // A block by itself: what is written is known to be none of what is read, and becomes vectors. Not of bytes
                    // yet, eight of which compilers take for one number.
                    let mut block = [0; BLOCK];
                    for i in 0..BLOCK {
                        block[i] = quantize_one(values[i], inverse);
                    }
                    for i in 0..BLOCK {
                        place[i] = block[i] as i8;
                    }
                } else {
                    place.fill(0);
                    quantize_body(values, inverse, place);
                }
            }
        }
    }
}

/// Rounds rows, scaled, into blocks of native A as f16 bits; otherwise as [`pack_a_i8`].
pub fn pack_a_f16<const BLOCK: usize>(rows: &Rows, a: &mut Strips<u16>, scratch: &mut F16Scratch) {
    let step = const { rows_a_line(BLOCK * 2) };
    let all = scratch.room(step * rows.k);
    for first in (0..rows.rows).step_by(step) {
        let group = first..rows.rows.min(first + step);
        for (row, halves) in group.clone().zip(all.chunks_exact_mut(rows.k.max(1))) {
            to_halves(rows.row(row), 1.0 / rows.scales[row], halves);
        }
        for index in 0..a.count() {
            let start = (index * BLOCK).min(rows.k);
            let places = a.get(index)[group.start * BLOCK..group.end * BLOCK].chunks_exact_mut(BLOCK);
            for (row, place) in places.enumerate() {
                let halves = &all[row * rows.k..][start..rows.k];
                let place: &mut [u16; BLOCK] = place.try_into().expect("a whole block");
                if let Some(halves) = halves.first_chunk() {
                    *place = *halves;
                } else {
                    place.fill(0);
                    place[..halves.len()].copy_from_slice(halves);
                }
            }
        }
    }
}

/// Room for rows on their way to f16.
#[derive(Default)]
pub struct F16Scratch(Vec<u16>);

impl F16Scratch {
    /// `values · factor` as f16 bits. Allocates only when a row is longer than all before.
    pub fn convert(&mut self, values: &[f32], factor: f32) -> &[u16] {
        let halves = self.room(values.len());
        to_halves(values, factor, halves);
        halves
    }

    fn room(&mut self, len: usize) -> &mut [u16] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }
}

vectorised! {
    /// Quantises rows into these rows of row-major A, all of `a`; zeros are put beyond a row's elements.
    pub fn pack_rows_i8(rows: &Rows, a: &mut [i8]) = pack_rows_i8_body
}

#[inline(always)]
fn pack_rows_i8_body(rows: &Rows, a: &mut [i8]) {
    for (row, place) in a.chunks_exact_mut(a.len() / rows.rows).enumerate() {
        place[rows.k..].fill(0);
        quantize_body(rows.row(row), 1.0 / rows.scales[row], place);
    }
}

/// Rounds rows, scaled, into row-major A as f16 bits; otherwise as [`pack_rows_i8`].
pub fn pack_rows_f16(rows: &Rows, a: &mut [u16], scratch: &mut F16Scratch) {
    for (row, place) in a.chunks_exact_mut(a.len() / rows.rows).enumerate() {
        place[..rows.k].copy_from_slice(scratch.convert(rows.row(row), 1.0 / rows.scales[row]));
        place[rows.k..].fill(0);
    }
}

vectorised! {
    /// Rows of results out of native i32 C, see [`super::scalar::unpack_c`].
    pub fn unpack_c_i32(c: &[i32], results: &Results, out: &mut [f32]) = unpack_c
}

vectorised! {
    /// Rows of results out of native f32 C, see [`super::scalar::unpack_c`].
    pub fn unpack_c_f32(c: &[f32], results: &Results, out: &mut [f32]) = unpack_c
}

vectorised! {
    /// Rows of results out of row-major i32 C.
    pub fn unpack_rows_i32(c: &[i32], results: &Results, out: &mut [f32]) = unpack_whole_rows::<i32, 1>
}

vectorised! {
    /// Rows of results out of row-major f32 C.
    pub fn unpack_rows_f32(c: &[f32], results: &Results, out: &mut [f32]) = unpack_whole_rows::<f32, 1>
}

/// Rows of results out of row-major C, of one plane or of two: the low one from M/2 on.
#[inline(always)]
pub(super) fn unpack_whole_rows<T: Sum, const PLANES: usize>(c: &[T], results: &Results, out: &mut [f32]) {
    let Results { m, row_start, rows, columns, row_scales, column_scales, accumulate, stride } = *results;
    let padded = c.len() / m;
    let low = if PLANES == 2 { m / 2 * padded } else { 0 };
    for row in 0..rows {
        let at = (row_start + row) * padded;
        let (high, low) = (&c[at..][..columns], &c[at + low..][..columns]);
        let out = &mut out[row * stride..][..columns];
        for (((out, high), low), scale) in out.iter_mut().zip(high).zip(low).zip(column_scales) {
            let scaled = high.to_f32::<PLANES>(*low) * scale * row_scales[row];
            *out = if accumulate { *out + scaled } else { scaled };
        }
    }
}

#[inline(always)]
fn unpack_c<T: Sum>(c: &[T], results: &Results, out: &mut [f32]) {
    unpack_blocks::<T, 4, 1>(c, results, out);
}

/// Rows of results out of native C (N/`BLOCK`, M, `BLOCK`), of one plane or of two: the low one from M/2 on.
#[inline(always)]
pub(super) fn unpack_blocks<T: Sum, const BLOCK: usize, const PLANES: usize>(
    c: &[T],
    results: &Results,
    out: &mut [f32],
) {
    if results.accumulate {
        unpack_columns::<T, BLOCK, PLANES, true>(c, results, out);
    } else {
        unpack_columns::<T, BLOCK, PLANES, false>(c, results, out);
    }
}

/// Columns of a strip: a cache line of the output, which is so written once, as a whole.
const STRIP: usize = 16;

#[inline(always)]
fn unpack_columns<T: Sum, const BLOCK: usize, const PLANES: usize, const ACCUMULATE: bool>(
    c: &[T],
    results: &Results,
    out: &mut [f32],
) {
    let Results { m, row_start, rows, columns, row_scales, column_scales, stride, .. } = *results;
    let low = if PLANES == 2 { m / 2 } else { 0 };
    // The rows' elements of a block of columns, row by row, and those of its low plane: neighbours, so that a strip is read in a
    // few streams.
    let piece = |block: usize| {
        let at = block * m + row_start;
        [at, at + low].map(|at| bytemuck::cast_slice::<T, [T; BLOCK]>(&c[at * BLOCK..][..rows * BLOCK]))
    };
    for (index, column_scales) in column_scales[..columns].chunks(STRIP).enumerate() {
        let start = index * STRIP;
        let out = &mut out[start..];
        // By value, so that they stay in registers.
        let Ok(column_scales) = <[f32; STRIP]>::try_from(column_scales) else {
            for (row, out) in out.chunks_mut(stride).take(rows).enumerate() {
                for (i, (out, scale)) in out.iter_mut().zip(column_scales).enumerate() {
                    let [high, low] = piece((start + i) / BLOCK).map(|piece| piece[row][i % BLOCK]);
                    put::<ACCUMULATE>(out, high.to_f32::<PLANES>(low) * scale * row_scales[row]);
                }
            }
            break;
        };
        let mut pieces = [piece(start / BLOCK); 4];
        for (block, piece_of) in pieces.iter_mut().enumerate().take(STRIP / BLOCK) {
            // Cut to as many rows as it has: compilers do not know that, and would look for each row whether it is there. Here, and
            // not where it is made: they lose sight of it else.
            *piece_of = piece(start / BLOCK + block).map(|piece| &piece[..rows]);
        }
        let ahead = (start + STRIP) / BLOCK..(start + 2 * STRIP) / BLOCK;
        let row_scales = &row_scales[..rows];
        for row in 0..rows {
            if row % const { rows_a_line(BLOCK * size_of::<T>()) } == 0 {
                // The same rows of the next strip, which begins in another page: nobody else foresees that.
                for block in ahead.clone() {
                    let at = (block * m + row_start + row) * BLOCK;
                    prefetch(c, at);
                    if PLANES == 2 {
                        prefetch(c, at + low * BLOCK);
                    }
                }
            }
            let out: &mut [f32; STRIP] =
                (&mut out[row * stride..][..STRIP]).try_into().expect("a strip's columns");
            for (block, [high, low]) in pieces.iter().enumerate().take(STRIP / BLOCK) {
                let high = &high[row];
                let low = if PLANES == 2 { &low[row] } else { high };
                for i in 0..BLOCK {
                    let sum = high[i].to_f32::<PLANES>(low[i]) * column_scales[block * BLOCK + i];
                    put::<ACCUMULATE>(&mut out[block * BLOCK + i], sum * row_scales[row]);
                }
            }
        }
    }
}

/// Has the cache line of an element fetched, if there is one: it is about to be read.
#[inline(always)]
fn prefetch<T>(values: &[T], index: usize) {
    let at = values.as_ptr().wrapping_add(index);
    // SAFETY: a hint, which reads nothing, whatever the address is.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch(at.cast::<i8>(), std::arch::x86_64::_MM_HINT_T0);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

#[inline(always)]
fn put<const ACCUMULATE: bool>(out: &mut f32, value: f32) {
    *out = if ACCUMULATE { *out + value } else { value };
}

/// Puts one column of B (a row of the weight: `values` along k) into a native block column.
///
/// `group` is the (K/`block_k`, `block_n`, `block_k`) part of B that holds `column` (0..`block_n`); beyond
/// `values` zeros are put.
pub fn place_column<T: Copy + Default>(
    values: &[T],
    column: usize,
    block_n: usize,
    block_k: usize,
    group: &mut [T],
) {
    let mut pieces = values.chunks(block_k);
    for block in group.chunks_exact_mut(block_n * block_k) {
        let place = &mut block[column * block_k..][..block_k];
        let piece = pieces.next().unwrap_or_default();
        place[..piece.len()].copy_from_slice(piece);
        place[piece.len()..].fill(T::default());
    }
}

#[cfg(test)]
mod tests;
