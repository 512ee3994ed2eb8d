//! Rows of any ggml type as f32, by the host's own dequantisers.

use std::ffi::{c_void, CStr};

use crate::sys;

/// Reads rows of one ggml type. Cheap to copy; safe, because it checks the lengths that the host's code trusts.
#[derive(Clone, Copy)]
pub struct RowReader {
    ggml_type: i32,
    name: &'static str,
    block: usize,
    block_bytes: usize,
    quantized: bool,
    to_float: sys::ggml_to_float_t,
}

impl RowReader {
    /// `None` when the type cannot be read as f32 (integers, types that were removed).
    pub(crate) fn new(ggml_type: i32, traits: &'static sys::ggml_type_traits) -> Option<Self> {
        let is_f32 = ggml_type as u32 == sys::GGML_HOST_TYPE_F32;
        let block = usize::try_from(traits.blck_size).ok().filter(|block| *block > 0)?;
        if traits.type_size == 0 || (traits.to_float.is_none() && !is_f32) {
            return None;
        }
        let name = if traits.type_name.is_null() {
            "?"
        } else {
            // SAFETY: a static string of the host.
            unsafe { CStr::from_ptr(traits.type_name) }.to_str().unwrap_or("?")
        };
        Some(Self {
            ggml_type,
            name,
            block,
            block_bytes: traits.type_size,
            quantized: traits.is_quantized,
            to_float: if is_f32 { None } else { traits.to_float },
        })
    }

    /// A reader of plain f32 rows, for tests without a host.
    pub fn f32() -> Self {
        let ggml_type = sys::GGML_HOST_TYPE_F32 as i32;
        Self { ggml_type, name: "f32", block: 1, block_bytes: 4, quantized: false, to_float: None }
    }

    /// A reader of quantised blocks of which only the size matters, for tests without a host; it reads NaNs.
    pub fn blocks(name: &'static str, block: usize, block_bytes: usize) -> Self {
        unsafe extern "C" fn nothing(_bytes: *const c_void, out: *mut f32, count: i64) {
            for index in 0..usize::try_from(count).unwrap_or(0) {
                // SAFETY: `read` passes room for `count` floats.
                unsafe { out.add(index).write(f32::NAN) };
            }
        }
        Self { ggml_type: -1, name, block, block_bytes, quantized: true, to_float: Some(nothing) }
    }

    /// The type's number in the GGUF format.
    pub fn ggml_type(&self) -> i32 {
        self.ggml_type
    }

    /// The type's name, for example "q4_K".
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the type is a block-quantised one.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// Bytes of the smallest unit: one element, or one block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Bytes of a row of `k` elements; `None` when `k` is no multiple of the block.
    pub fn row_bytes(&self, k: usize) -> Option<usize> {
        (k % self.block == 0).then_some(k / self.block)?.checked_mul(self.block_bytes)
    }

    /// Writes the row `bytes` to `out` as f32.
    ///
    /// # Panics
    /// When `bytes` is not exactly the row of `out.len()` elements.
    pub fn read(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.row_bytes(out.len()),
            Some(bytes.len()),
            "a row of {} {} elements",
            out.len(),
            self.name
        );
        match self.to_float {
            // SAFETY: the host's dequantiser reads one row of `out.len()` elements, whose size was checked
            // above, and writes as many floats; it has no other effect.
            Some(to_float) => unsafe {
                to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64);
            },
            None => {
                for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn twice(x: *const std::ffi::c_void, y: *mut f32, k: i64) {
        for i in 0..k as usize {
            // SAFETY: the reader hands over k bytes and k floats here.
            unsafe { *y.add(i) = f32::from(*x.cast::<u8>().add(i)) * 2.0 };
        }
    }

    fn traits(to_float: sys::ggml_to_float_t) -> &'static sys::ggml_type_traits {
        Box::leak(Box::new(sys::ggml_type_traits {
            type_name: c"test".as_ptr(),
            blck_size: 4,
            blck_size_interleave: 0,
            type_size: 4,
            is_quantized: true,
            to_float,
            from_float_ref: None,
        }))
    }

    #[test]
    fn rows_go_through_the_hosts_dequantiser() {
        let reader = RowReader::new(99, traits(Some(twice))).unwrap();
        let mut out = [0.0; 4];
        reader.read(&[1, 2, 3, 4], &mut out);
        assert_eq!(out, [2.0, 4.0, 6.0, 8.0]);
        assert_eq!((reader.row_bytes(8), reader.row_bytes(6)), (Some(8), None));
        assert!(RowReader::new(24, traits(None)).is_none(), "an integer type cannot be read");
    }

    #[test]
    fn f32_rows_are_copied() {
        let mut out = [0.0; 2];
        RowReader::f32().read(&[0, 0, 128, 63, 0, 0, 0, 64], &mut out);
        assert_eq!(out, [1.0, 2.0]);
    }
}
