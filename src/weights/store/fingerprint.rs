//! What a conversion is known by: the source's bytes, and all that decides what becomes of them.

use std::fmt;

use rayon::prelude::*;

use super::digest::Digest;
use crate::weights::Source;

/// The version of the conversion: of everything between a weight's bytes and its parts that no recipe tells, such
/// as how scales are found, values rounded, rotations seeded and native B laid out.
///
/// **Raise it with every change that makes other parts, scales or metadata of the same weight and recipe.** Files of
/// other versions are then not found any more, and go when room is needed.
pub const CONVERSION: u32 = 1;

/// Bytes of the rows that are hashed as one leaf, if a row is not longer.
const GROUP: usize = 1 << 20;

/// 128 bits by which a converted weight is found again.
///
/// They hold for one type, K, N, the bytes of the rows, [`CONVERSION`] and a recipe; not for where the weight lies or
/// how far its rows are apart. No defence against somebody who makes two weights with one fingerprint on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of `source` converted by `recipe`, whatever the number of threads of the current rayon pool,
    /// over which groups of rows are spread.
    ///
    /// `recipe` must tell, in the same words each time, whatever else decides the parts: chip, pipeline, rotation,
    /// layout, slices and segments.
    ///
    /// # Panics
    /// As [`Source::row`], when a row lies outside of the data.
    pub fn of(source: &Source, recipe: &str) -> Self {
        let row_bytes = source.reader.row_bytes(source.k).unwrap_or(0);
        // By the row alone, so that neither stride nor threads have a say.
        let rows = (GROUP / row_bytes.max(1)).max(1);
        let groups = source.n.div_ceil(rows);
        let group = |index: usize| {
            let range = index * rows..source.n.min((index + 1) * rows);
            if source.row_stride == row_bytes {
                Digest::of(&source.data[range.start * row_bytes..range.end * row_bytes])
            } else {
                Digest::of_pieces(range.map(|n| source.row(n)))
            }
        };
        let leaves: Vec<Digest> = (0..groups).into_par_iter().map(group).collect();
        let mut about = b"ggml-rknpu weight".to_vec();
        about.extend(CONVERSION.to_le_bytes());
        about.extend(source.reader.ggml_type().to_le_bytes());
        for number in [source.k, source.n, row_bytes, recipe.len()] {
            about.extend((number as u64).to_le_bytes());
        }
        about.extend(recipe.as_bytes());
        Self(Digest::of_leaves(&[Digest::of(&about), Digest::of_leaves(&leaves)]).to_bytes())
    }

    /// As in a file.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if hex.len() != 32 || !hex.as_bytes().iter().all(lower) {
            return None;
        }
        Some(Self(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_sys::RowReader;
    use proptest::prelude::*;

    fn source(data: &[u8], k: usize, n: usize, row_stride: usize) -> Source<'_> {
        Source { data, reader: RowReader::f32(), k, n, row_stride }
    }

    fn noise(bytes: usize, mut seed: u32) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn threads_have_no_say() {
        // Rows that do not divide the group, and groups enough for all threads.
        let (k, n) = (700, 5000);
        let data = noise(k * 4 * n, 1);
        let found = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Fingerprint::of(&source(&data, k, n, k * 4), "recipe"))
        });
        assert_eq!(found, [found[0]; 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Rows apart from each other have the fingerprint of rows side by side, whatever lies between them.
        #[test]
        fn bytes_between_rows_have_no_say(k in 1usize..200, n in 1usize..60, gap in 1usize..40, seed: u32) {
            let row = k * 4;
            let dense = noise(row * n, seed);
            let mut strided = noise((row + gap) * n, !seed);
            for (to, from) in strided.chunks_mut(row + gap).zip(dense.chunks(row)) {
                to[..row].copy_from_slice(from);
            }
            // A view ends with the last row's own bytes.
            strided.truncate((row + gap) * n - gap);
            let expected = Fingerprint::of(&source(&dense, k, n, row), "recipe");
            prop_assert_eq!(Fingerprint::of(&source(&strided, k, n, row + gap), "recipe"), expected);
        }

        /// Any byte of any row has a say.
        #[test]
        fn each_byte_has_a_say(k in 1usize..200, n in 1usize..60, gap in 0usize..2, at: prop::sample::Index, flip in 1u8..) {
            let stride = k * 4 + gap;
            let mut data = noise(stride * n, 7);
            let before = Fingerprint::of(&source(&data, k, n, stride), "recipe");
            let at = at.index(k * 4 * n);
            data[at / (k * 4) * stride + at % (k * 4)] ^= flip;
            prop_assert_ne!(Fingerprint::of(&source(&data, k, n, stride), "recipe"), before);
        }
    }

    #[test]
    fn a_byte_far_inside_has_a_say() {
        let (k, n) = (1024, 2048);
        let mut data = noise(k * 4 * n, 3);
        let before = Fingerprint::of(&source(&data, k, n, k * 4), "recipe");
        for at in [0, GROUP - 1, GROUP, 5 * GROUP + 17, data.len() - 1] {
            data[at] ^= 1;
            assert_ne!(Fingerprint::of(&source(&data, k, n, k * 4), "recipe"), before, "byte {at}");
            data[at] ^= 1;
        }
        assert_eq!(Fingerprint::of(&source(&data, k, n, k * 4), "recipe"), before);
    }

    #[test]
    fn recipe_and_dimensions_have_a_say() {
        let data = vec![0; 4 * 96];
        let mut seen = std::collections::HashSet::new();
        for recipe in ["", "a", "b", "ab", "a\0", "rk3588 W8A8", "rk3576 W8A8", "rk3588 W16A16"] {
            assert!(seen.insert(Fingerprint::of(&source(&data, 8, 12, 32), recipe)), "{recipe:?}");
        }
        // The same bytes as other matrices, an empty one among them.
        for (k, n) in [(12, 8), (96, 1), (1, 96), (8, 11), (8, 0)] {
            assert!(seen.insert(Fingerprint::of(&source(&data, k, n, k * 4), "a")), "{k}x{n}");
        }
    }

    #[test]
    fn hex_is_read_as_it_is_written() {
        let found = Fingerprint::of(&source(&[], 8, 0, 32), "");
        assert_eq!(Fingerprint::from_hex(&found.to_string()), Some(found));
        let zeros = "0".repeat(32);
        assert_eq!(Fingerprint::from_hex(&zeros).unwrap().to_string(), zeros);
        for wrong in
            ["", "0", &"0".repeat(31), &"0".repeat(33), &"A".repeat(32), &format!("+{}", "0".repeat(31))]
        {
            assert_eq!(Fingerprint::from_hex(wrong), None, "{wrong}");
        }
    }
}
