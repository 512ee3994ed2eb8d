//! How long a run is believed to take: the formula of `docs/facts.md`.

use rknn_sys::{Element, MatmulType};

use crate::chip::Timing;

/// Bits of the operands that [`Timing::peaks`] has rates for.
const WIDTHS: [usize; 3] = [16, 8, 4];

impl Timing {
    /// ns of a run of M, K, N = `size` while as many runs as `cores` go on at once:
    /// `fixed + max(2·M·K·N / peak, (⌈A / tile⌉·B + A + C) / rate)`, everything native.
    pub fn run_ns(&self, dtype: MatmulType, (m, k, n): (usize, usize, usize), cores: usize) -> f64 {
        let bytes = |element: Element, count: usize| element.bytes(count) as f64;
        let (a, b, c) = (bytes(dtype.a(), m * k), bytes(dtype.b(), k * n), bytes(dtype.c(), m * n));
        let compute = 2.0 * m as f64 * k as f64 * n as f64 / self.peak(dtype);
        let rate = self.core_rate.min(self.shared_rate / cores.max(1) as f64);
        self.run_ns + compute.max(((a / self.a_tile).ceil() * b + a + c) / rate)
    }

    /// Operations a ns of one core for operands of `dtype`; of two widths the wider counts.
    pub fn peak(&self, dtype: MatmulType) -> f64 {
        let bits = |element: Element| element.bytes(2) * 4;
        let widest = bits(dtype.a()).max(bits(dtype.b()));
        self.peaks[WIDTHS.iter().rposition(|width| widest <= *width).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use crate::chip::Chip;
    use rknn_sys::MatmulType;

    /// Published times of one core of RK3588, ms (`docs/facts.md`, source U and M), which the formula meets within
    /// an eighth.
    #[test]
    fn published_runs_take_as_long_as_published() {
        let timing = Chip::by_name("rk3588").unwrap().timing;
        for (dtype, size, published) in [
            (MatmulType::I8, (128, 1024, 8192), 1.144),
            (MatmulType::I8, (128, 2048, 2048), 0.797),
            (MatmulType::I8, (128, 2048, 8192), 3.102),
            (MatmulType::I8, (1, 2048, 2048), 0.390),
            (MatmulType::I4, (128, 1024, 8192), 0.593),
            (MatmulType::I4, (128, 2048, 2048), 0.300),
            (MatmulType::I4, (128, 2048, 8192), 1.110),
            (MatmulType::I4, (1, 2048, 2048), 0.203),
        ] {
            let ms = timing.run_ns(dtype, size, 1) / 1e6;
            assert!((0.875..1.125).contains(&(ms / published)), "{dtype:?} {size:?}: {ms} for {published}");
        }
    }
}
