//! Per-layer quantisation of A, B and C: one scale and one zero point each, as `rknn_matmul_set_quant_params` sets.
//!
//! A number q of an operand stands for scale · q. So a C that is itself quantised, which is the i8 of i8 × i8 → i8,
//! is the exact sum times sA·sB/sC, rounded to the nearest, ties to even (assumed: the manual does not say), and
//! saturated. The scales belong to quantised outputs: a C that is wide, saturating or float holds the bare sums
//! whatever they are.

use std::ptr::NonNull;

use rknn_sys::sys;

use crate::status::{refuse, Result, Status};

/// What was set for one operand, and the copy of it that callers point into.
struct Side {
    scale: f32,
    shown: Shown,
}

/// Scale and zero point at a stable address. We never read them back: the caller may write to them.
struct Shown(NonNull<(f32, i32)>);

// SAFETY: a heap block that only this frees; the caller may use it from any thread.
unsafe impl Send for Shown {}

impl Shown {
    fn new(scale: f32) -> Self {
        Self(NonNull::from(Box::leak(Box::new((scale, 0)))))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // SAFETY: leaked from a box in `new`, freed once, here.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The parameters of a context's three operands; until they are set, scales of 1 and zero points of 0.
pub struct Quantisation([Side; 3]);

impl Default for Quantisation {
    fn default() -> Self {
        Self([(); 3].map(|()| Side { scale: 1.0, shown: Shown::new(1.0) }))
    }
}

/// The operand that the parameters' name is of.
fn operand(params: &sys::rknn_quant_params) -> Result<usize> {
    // As many as tell it from any longer name.
    let name: String =
        params.name.iter().take(8).take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
    match ["A", "B", "C"].iter().position(|operand| *operand == name) {
        Some(operand) => Ok(operand),
        None => refuse(Status::PARAM, format_args!("no operand is called {name:?}")),
    }
}

/// The scale of parameters that are per-layer and symmetric.
///
/// # Errors
/// -5 for another operand than "A", "B" and "C", for null, for other than one scale above 0 and one zero point of 0.
///
/// # Safety
/// The pointers are null or valid for their lengths.
unsafe fn scale_of(params: &sys::rknn_quant_params) -> Result<f32> {
    let name = params.name[0] as u8 as char;
    if (params.scale_len, params.zp_len) != (1, 1) || params.scale.is_null() || params.zp.is_null() {
        return refuse(
            Status::PARAM,
            format_args!(
                "{} scales and {} zero points for {name}: give one of each, per-layer",
                params.scale_len, params.zp_len
            ),
        );
    }
    // SAFETY: not null, and valid for one by contract.
    let (scale, zero) = unsafe { (params.scale.read_unaligned(), params.zp.read_unaligned()) };
    if !(scale > 0.0 && scale.is_finite()) || zero != 0 {
        return refuse(
            Status::PARAM,
            format_args!(
                "scale {scale} and zero point {zero} of {name}: a scale must be above 0, a zero point 0"
            ),
        );
    }
    Ok(scale)
}

impl Quantisation {
    /// Sets what `params` names; what [`Self::get`] showed of that operand before is gone.
    ///
    /// # Errors
    /// -5 for another operand than "A", "B" and "C", for null, for other than one scale above 0 and one zero point
    /// of 0; nothing changes then.
    ///
    /// # Safety
    /// The pointers are null or valid for their lengths.
    pub unsafe fn set(&mut self, params: &sys::rknn_quant_params) -> Result<()> {
        let operand = operand(params)?;
        // SAFETY: by this function's contract.
        let scale = unsafe { scale_of(params)? };
        self.0[operand] = Side { scale, shown: Shown::new(scale) };
        Ok(())
    }

    /// Points `params` at what is set for the operand that it names; its scale. The pointers hold until the next
    /// [`Self::set`] of that operand, or the end.
    ///
    /// # Errors
    /// -5 for another operand than "A", "B" and "C".
    pub fn get(&self, params: &mut sys::rknn_quant_params) -> Result<f32> {
        let Side { scale, shown } = &self.0[operand(params)?];
        let at = shown.0.as_ptr();
        // SAFETY: the block is live; no reference to it is made.
        (params.scale, params.zp) = unsafe { (&raw mut (*at).0, &raw mut (*at).1) };
        (params.scale_len, params.zp_len) = (1, 1);
        Ok(*scale)
    }

    /// sA·sB/sC, by which a quantised C is the sum.
    pub fn ratio(&self) -> f64 {
        let [a, b, c] = [0, 1, 2].map(|operand| f64::from(self.0[operand].scale));
        a * b / c
    }
}
