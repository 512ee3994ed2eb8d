//! Tiles of rows: how M is cut and rounded.

/// The most rows of one run. Longer prompts are cut: A and C stay small enough to be worth keeping.
pub const ROWS_MAX: usize = 512;
/// The most bytes of C of one run; a wide output (a vocabulary) gets shorter tiles.
const C_BYTES_MAX: usize = 16 << 20;

/// A run of rows: `start .. start + len`, computed by a context with M = `rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// First row.
    pub start: usize,
    /// Rows wanted.
    pub len: usize,
    /// Rows computed, at least `len`; what lies beyond is not read back.
    pub rows: usize,
}

/// Cuts `rows` rows into tiles, for contexts whose widest slice has `n` columns of 4 bytes.
///
/// M is rounded up by less than an eighth, so that prompts of all lengths share a few dozen contexts
/// (each costs about 1.5 ms and 0.4 MB on RK3588).
pub fn tiles(rows: usize, n: usize) -> impl Iterator<Item = Tile> {
    let longest = (C_BYTES_MAX / (4 * n.max(1))).clamp(1, ROWS_MAX);
    // A power of two, so that rounding up cannot pass the cap.
    let longest = 1 << longest.ilog2();
    (0..rows).step_by(longest).map(move |start| {
        let len = longest.min(rows - start);
        Tile { start, len, rows: round_up_by_an_eighth(len) }
    })
}

/// The next number with at most four significant bits.
fn round_up_by_an_eighth(len: usize) -> usize {
    let step = 1 << len.ilog2().saturating_sub(3);
    len.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiles_cover_the_rows_once_and_waste_little(rows in 0usize..5000, n in 1usize..200_000) {
            let mut next = 0;
            for tile in tiles(rows, n) {
                prop_assert_eq!(tile.start, next);
                prop_assert!(tile.len >= 1 && tile.rows >= tile.len);
                prop_assert!(tile.rows <= ROWS_MAX);
                prop_assert!((tile.rows - tile.len) * 8 < tile.len);
                prop_assert!(tile.rows == 1 || tile.rows * n * 4 <= C_BYTES_MAX);
                next += tile.len;
            }
            prop_assert_eq!(next, rows);
        }
    }

    #[test]
    fn few_sizes_serve_all_prompts() {
        let sizes: std::collections::BTreeSet<usize> = (1..=512).map(round_up_by_an_eighth).collect();
        assert!(sizes.len() <= 60, "{} contexts a shape", sizes.len());
        assert_eq!(tiles(7, 576).next(), Some(Tile { start: 0, len: 7, rows: 7 }));
        assert_eq!(tiles(33, 576).next(), Some(Tile { start: 0, len: 33, rows: 36 }));
    }
}
