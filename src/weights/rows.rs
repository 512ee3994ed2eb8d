//! One row of a weight (an output channel) on its way: read → rotate → quantise, segment by segment.

use half::f16;

use super::{PackError, Source};
use crate::kernels::fast::{self, amax, F16Scratch};
use crate::kernels::int4::{self, Calibration};
use crate::kernels::rotate::Rotation;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::plan::Segment;
use rknn_sys::Element;

/// One thread's room for a row.
#[derive(Default)]
pub struct RowRoom {
    /// The row as it was read.
    read: Vec<f32>,
    /// The row as it is stored: rotated, if it is.
    row: Vec<f32>,
    scratch: Vec<f32>,
    quantized: Vec<i8>,
    nibbles: Vec<u8>,
    halves: F16Scratch,
    calibration: Calibration,
}

/// A converted column of B, along k.
#[derive(Debug, Clone, Copy)]
pub enum Column<'a> {
    /// A byte an element.
    I8(&'a [i8]),
    /// Two bytes an element.
    F16(&'a [u16]),
    /// Two elements a byte, the even one in the low nibble; a last odd one has 0 beside it.
    I4(&'a [u8]),
}

impl RowRoom {
    /// Room for rows whose four-bit scales are found by `calibration`.
    pub fn new(calibration: Calibration) -> Self {
        Self { calibration, ..Self::default() }
    }

    /// Reads row `n` of `source` and rotates it; what [`Self::column`] then converts.
    ///
    /// # Errors
    /// [`PackError::NotFinite`].
    pub fn load(
        &mut self,
        source: &Source,
        n: usize,
        rotation: Option<&Rotation>,
    ) -> Result<&[f32], PackError> {
        self.row.resize(rotation.map_or(source.k, Rotation::width), 0.0);
        match rotation {
            None => source.reader.read(source.row(n), &mut self.row),
            Some(rotation) => {
                self.read.resize(source.k, 0.0);
                self.scratch.resize(rotation.width(), 0.0);
                source.reader.read(source.row(n), &mut self.read);
                // An infinity or a NaN spreads, so that it is found below all the same.
                rotation.apply(&self.read, &mut self.row, &mut self.scratch);
            }
        }
        if amax(&self.row).is_nan() {
            return Err(PackError::NotFinite);
        }
        Ok(&self.row)
    }

    /// The loaded row's `segment` as `element`s, the scale by which they count, and the sum of their magnitudes where
    /// that is bounded (four bits), else 0.
    pub fn column(&mut self, segment: &Segment, element: Element) -> (f32, Column<'_>, u32) {
        let values = &self.row[segment.start..segment.start + segment.len];
        match element {
            Element::I4 => {
                let scale = self.calibration.scale(values);
                self.quantized.resize(values.len(), 0);
                int4::quantize(values, 1.0 / scale, &mut self.quantized);
                self.nibbles.resize(values.len().div_ceil(2), 0);
                int4::pack_nibbles(&self.quantized, &mut self.nibbles);
                (scale, Column::I4(&self.nibbles), int4::sum_of_magnitudes(&self.quantized))
            }
            Element::I8 => {
                let scale = scale_i8(amax(values));
                self.quantized.resize(values.len(), 0);
                fast::quantize(values, 1.0 / scale, &mut self.quantized);
                (scale, Column::I8(&self.quantized), 0)
            }
            // No weight is wider than f16.
            _ => {
                let largest = amax(values);
                let scale = if exact_in_f16(largest) { 1.0 } else { scale_f16(largest) };
                (scale, Column::F16(self.halves.convert(values, 1.0 / scale)), 0)
            }
        }
    }

    /// The squared error of the loaded row's `segment` as `element`s, and the sum of its squares.
    pub fn error(&mut self, segment: &Segment, element: Element) -> (f64, f64) {
        let (scale, column, _) = self.column(segment, element);
        let scale = f64::from(scale);
        let stored: Vec<f64> = match column {
            Column::I4(_) | Column::I8(_) => self.quantized.iter().map(|q| f64::from(*q) * scale).collect(),
            Column::F16(halves) => halves.iter().map(|half| f16::from_bits(*half).to_f64() * scale).collect(),
        };
        let values = &self.row[segment.start..segment.start + segment.len];
        values.iter().zip(stored).fold((0.0, 0.0), |(error, power), (value, stored)| {
            let value = f64::from(*value);
            (error + (value - stored).powi(2), power + value * value)
        })
    }
}

/// Whether a row whose largest magnitude is `amax` needs no scale: f16 weights then keep their very bits.
///
/// Values of such rows below 2⁻¹⁴ lose digits only if they were no f16 to begin with, and those are below
/// 2⁻¹⁰ of the largest one.
fn exact_in_f16(amax: f32) -> bool {
    (f32::powi(2.0, -4)..=f16::MAX.to_f32()).contains(&amax)
}
