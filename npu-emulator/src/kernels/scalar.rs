//! The reference: each sum in order of K, as one would write it down.

use half::f16;

use super::Panel;

/// See [`super::i8_panel`].
///
/// # Safety
/// As there; lengths are checked by the caller.
pub(super) unsafe fn i8_panel(a: &[i16], rows: usize, panel: &Panel<'_>, out: &mut [i32]) {
    let k = panel.k();
    for m in 0..rows {
        for c in 0..panel.columns {
            let mut sum = 0i32;
            // SAFETY: the readable bytes are the caller's contract.
            unsafe {
                each(panel, c, 1, |at, byte| {
                    sum += i32::from(a[m * k + at]) * i32::from(byte.cast::<i8>().read())
                })
            };
            out[m * panel.columns + c] = sum;
        }
    }
}

/// See [`super::f16_panel`].
///
/// # Safety
/// As there; lengths are checked by the caller.
pub(super) unsafe fn f16_panel(a: &[f32], rows: usize, panel: &Panel<'_>, out: &mut [f32]) {
    let k = panel.k();
    for m in 0..rows {
        for c in 0..panel.columns {
            let mut sum = 0f32;
            // SAFETY: the readable bytes are the caller's contract; halves are read unaligned.
            unsafe {
                each(panel, c, 2, |at, bytes| {
                    sum += a[m * k + at] * f16::from_bits(bytes.cast::<u16>().read_unaligned()).to_f32();
                })
            };
            out[m * panel.columns + c] = sum;
        }
    }
}

/// Calls `visit(k, element)` for column `c`, elements being `size` bytes.
///
/// # Safety
/// The panel is readable at that element size.
unsafe fn each(panel: &Panel<'_>, c: usize, size: usize, mut visit: impl FnMut(usize, *const u8)) {
    let mut at = 0;
    for segment in panel.segments {
        for block in 0..segment.k_blocks {
            for inner in 0..panel.block_k {
                let element = (block * panel.columns + c) * panel.block_k + inner;
                // SAFETY: the element lies within the segment.
                visit(at, unsafe { segment.base.add(element * size) });
                at += 1;
            }
        }
    }
}

/// See [`super::unpack_i4`].
///
/// # Safety
/// As there.
pub(super) unsafe fn unpack_i4(source: *const u8, out: &mut [i8]) {
    for (at, pair) in out.chunks_exact_mut(2).enumerate() {
        // SAFETY: half as many bytes as elements are readable.
        let byte = unsafe { source.add(at).read() };
        pair[0] = (byte << 4) as i8 >> 4;
        pair[1] = byte as i8 >> 4;
    }
}

/// See [`super::widen_f16`].
///
/// # Safety
/// As there.
pub(super) unsafe fn widen_f16(source: *const u8, out: &mut [f32]) {
    for (at, value) in out.iter_mut().enumerate() {
        // SAFETY: two bytes for each element are readable.
        *value = f16::from_bits(unsafe { source.cast::<u16>().add(at).read_unaligned() }).to_f32();
    }
}

/// See [`super::halve_i8`].
///
/// # Safety
/// As there.
pub(super) unsafe fn halve_i8(source: *const i8, out: &mut [u16]) {
    for (at, value) in out.iter_mut().enumerate() {
        // SAFETY: a byte for each element is readable.
        *value = f16::from_f32(f32::from(unsafe { source.add(at).read() })).to_bits();
    }
}
