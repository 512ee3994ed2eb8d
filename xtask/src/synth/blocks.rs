//! Random weights: about a megabyte of valid blocks of a type, which the files repeat.

use clap::ValueEnum;

/// Types that weights are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum WeightType {
    /// Blocks of 32: a scale of 16 bits and 8 bits each.
    #[value(name = "q8_0")]
    Q8_0,
    /// 16-bit floats.
    #[value(name = "f16")]
    F16,
    /// Blocks of 32: a scale of 16 bits and 4 bits each.
    #[value(name = "q4_0")]
    Q4_0,
}

/// Blocks that are made. A prime, so that rows of a matrix do not all begin at the same block.
const BLOCKS: usize = 30_011;

/// A half of 2⁻⁹, the exponent of every scale.
const SCALE: u16 = 6 << 10;

impl WeightType {
    /// As GGUF files are named by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// The code of a tensor of it.
    pub fn code(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
        }
    }

    /// The code of a file that is mostly of it.
    pub fn file_code(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
        }
    }

    /// Elements and bytes of a block.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::F16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q8_0 => (32, 34),
        }
    }

    /// Multiplies whole blocks, as [`Self::random`] makes them, by a power of two: each begins with a half, its scale or
    /// itself the element.
    pub fn lengthen(self, blocks: &mut [u8], powers: u32) {
        if powers == 0 {
            return;
        }
        for block in blocks.chunks_mut(self.block().1 as usize) {
            let bits = u16::from_le_bytes([block[0], block[1]]) + ((powers as u16) << 10);
            block[..2].copy_from_slice(&bits.to_le_bytes());
        }
    }

    /// The bytes that matrices repeat, whole blocks: weights of a magnitude that layers of these widths bear.
    pub fn random(self) -> Vec<u8> {
        let mut random = Random::new(0x5259_4e50_5500 + u64::from(self.code()));
        let mut out = Vec::new();
        for _ in 0..BLOCKS {
            match self {
                // Thirty-two at a time, so that all types have about as many weights: exponents of 2⁻⁹ to 2⁻⁶.
                Self::F16 => (0..32).for_each(|_| {
                    let bits = random.next();
                    let exponent = SCALE + ((bits >> 16 & 3) << 10) as u16;
                    out.extend((bits as u16 & 0x83ff | exponent).to_le_bytes());
                }),
                Self::Q8_0 | Self::Q4_0 => {
                    // 127 · 2⁻¹³ and 8 · 2⁻⁹ are about the same.
                    let scale = if self == Self::Q8_0 { SCALE - (4 << 10) } else { SCALE };
                    out.extend((scale | random.next() as u16 & 0x3ff).to_le_bytes());
                    let bytes = self.block().1 as usize - 2;
                    // Rows of real models have a bell's shape, by which the plugin knows that they are to be
                    // rotated: the mean of four numbers has it well enough.
                    let bell =
                        |random: &mut Random| (0..4).map(|_| i32::from(random.next() as i8)).sum::<i32>() / 4;
                    // Eight in the middle.
                    let nibble = |random: &mut Random| (((bell(random) + 8) >> 4).clamp(-8, 7) + 8) as u8;
                    (0..bytes).for_each(|_| {
                        out.push(match self {
                            Self::Q8_0 => bell(&mut random) as u8,
                            _ => nibble(&mut random) | nibble(&mut random) << 4,
                        });
                    });
                }
            }
        }
        out
    }
}

/// A small generator: weights need variety, not quality.
pub struct Random(u64);

impl Random {
    /// One that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 31 bits.
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a half; none here is subnormal, infinite or no number.
    fn half(bytes: &[u8]) -> f32 {
        let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
        let exponent = i32::from(bits >> 10 & 31);
        assert!((1..31).contains(&exponent), "{bits:#x}");
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        sign * (1.0 + f32::from(bits & 0x3ff) / 1024.0) * 2f32.powi(exponent - 15)
    }

    #[test]
    fn blocks_are_whole_valid_and_of_small_weights() {
        for kind in [WeightType::Q8_0, WeightType::F16, WeightType::Q4_0] {
            let (bytes, (_, block)) = (kind.random(), kind.block());
            assert_eq!(bytes.len() as u64 % block, 0);
            assert_eq!(bytes, kind.random(), "the same every time");
            let weights: Vec<f32> = match kind {
                WeightType::F16 => bytes.chunks(2).map(half).collect(),
                WeightType::Q8_0 => bytes
                    .chunks(34)
                    .flat_map(|block| block[2..].iter().map(move |q| half(block) * f32::from(*q as i8)))
                    .collect(),
                WeightType::Q4_0 => bytes
                    .chunks(18)
                    .flat_map(|block| {
                        block[2..]
                            .iter()
                            .flat_map(move |q| [q & 15, q >> 4].map(|q| half(block) * (f32::from(q) - 8.0)))
                    })
                    .collect(),
            };
            let largest = weights.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
            let power =
                weights.iter().map(|weight| f64::from(weight * weight)).sum::<f64>() / weights.len() as f64;
            assert!(
                largest < 0.05 && (0.001..0.03).contains(&power.sqrt()),
                "{kind:?}: {largest}, {}",
                power.sqrt()
            );
            let mean = weights.iter().map(|weight| f64::from(*weight)).sum::<f64>() / weights.len() as f64;
            assert!(mean.abs() < 0.15 * power.sqrt(), "{kind:?}: mean {mean}");
        }
    }

    #[test]
    fn longer_blocks_are_the_same_times_a_power_of_two() {
        for kind in [WeightType::Q8_0, WeightType::F16, WeightType::Q4_0] {
            let (mut longer, row) = (kind.random(), kind.random());
            kind.lengthen(&mut longer, 7);
            let block = kind.block().1 as usize;
            for (longer, row) in longer.chunks(block).zip(row.chunks(block)) {
                assert_eq!((half(longer), &longer[2..]), (128.0 * half(row), &row[2..]));
            }
        }
    }
}
