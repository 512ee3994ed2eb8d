//! Numbers of rows: how M is rounded, so that contexts are few.

/// The most rows that are prepared at once, and the most of one run.
pub const ROWS_MAX: usize = 512;

/// The next number with at most four significant bits.
///
/// M is rounded up by less than an eighth, so that prompts of all lengths share a few dozen contexts (each costs about
/// 1.5 ms and 0.4 MB on RK3588).
pub fn round_up_by_an_eighth(rows: usize) -> usize {
    let step = step(rows);
    rows.div_ceil(step) * step
}

/// The last number with at most four significant bits that is not larger.
pub fn round_down_by_an_eighth(rows: usize) -> usize {
    let step = step(rows);
    rows / step * step
}

fn step(rows: usize) -> usize {
    1 << rows.max(1).ilog2().saturating_sub(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_wastes_less_than_an_eighth(rows in 0usize..100_000) {
            let (up, down) = (round_up_by_an_eighth(rows), round_down_by_an_eighth(rows));
            prop_assert!(down <= rows && rows <= up);
            prop_assert!((up - rows) * 8 < rows.max(1) && (rows - down) * 8 < rows.max(1));
            prop_assert_eq!((round_up_by_an_eighth(up), round_up_by_an_eighth(down)), (up, down));
        }
    }

    #[test]
    fn few_sizes_serve_all_prompts() {
        let sizes: std::collections::BTreeSet<usize> = (1..=512).map(round_up_by_an_eighth).collect();
        assert!(sizes.len() <= 60, "{} contexts a shape", sizes.len());
        assert_eq!((round_up_by_an_eighth(7), round_up_by_an_eighth(33)), (7, 36));
        assert_eq!((round_down_by_an_eighth(7), round_down_by_an_eighth(33)), (7, 32));
    }
}
