//! Rotations against the matrix of their definition, and the promises that files on disk rest on.

use proptest::prelude::*;

use super::*;

/// Signs of K alone, nothing padded.
fn plain(k: usize) -> Recipe {
    Recipe { k, layer: None, signs: Signs::Full, padded: false, block: None }
}

fn rotation(k: usize) -> Rotation {
    Rotation::new(&plain(k)).unwrap()
}

fn apply(rotation: &Rotation, row: &[f32]) -> Vec<f32> {
    // What was there before must not matter.
    let (mut out, mut scratch) = (vec![f32::NAN; rotation.width()], vec![f32::NAN; rotation.width()]);
    rotation.apply(row, &mut out, &mut scratch);
    out
}

#[test]
fn the_widths_of_real_models_are_mixed_whole() {
    for (k, orders) in [
        (576, &[36][..]),
        (1536, &[12]),
        (896, &[28]),
        (4864, &[76]),
        (1152, &[36]),
        (6912, &[12, 36]),
        (8960, &[20, 28]),
        (2048, &[]),
        (3584, &[28]),
        (5120, &[20]),
        (18944, &[148]),
        (14336, &[28]),
        (5632, &[44]),
        (25600, &[20, 20]),
        (21504, &[12, 28]),
        (2560, &[20]),
        (9728, &[76]),
        (960, &[60]),
    ] {
        let rotation = rotation(k);
        let got: Vec<usize> = rotation.factors.iter().map(Factor::order).collect();
        assert_eq!((&got[..], rotation.block(), rotation.width()), (orders, k, k), "K = {k}");
    }
    // 43·4 = 172 is beyond all constructions, so blocks of 256 it is, or padding.
    let blocks = rotation(11008);
    assert_eq!((blocks.power, blocks.block()), (256, 256));
    let padded = Rotation::new(&Recipe { padded: true, ..plain(11008) }).unwrap();
    assert_eq!((padded.power, padded.k(), padded.width(), padded.block()), (16384, 11008, 16384, 16384));
}

#[test]
fn blocks_are_of_little_work_and_no_longer_than_they_may_be() {
    for (len, block) in [
        (1280, Some(1280)),
        (1152, Some(1152)),
        (1024, Some(1024)),
        (896, Some(896)),
        // 148·8 and 76·16 are more work than two blocks of a power of two, or none of them fit.
        (1184, None),
        (1216, None),
        (768, Some(768)),
        (512, Some(512)),
        (256, Some(256)),
        (224, None),
        (255, None),
        (0, None),
    ] {
        assert_eq!(Rotation::block_within(len), block, "{len}");
    }
    assert_eq!(Rotation::block_within(2048 * 3), Some(6144));
    let blocks = Rotation::new(&Recipe { block: Some(1280), ..plain(8960) }).unwrap();
    assert_eq!((blocks.order(), blocks.power, blocks.block(), blocks.width()), (20, 64, 1280, 8960));
    for (k, block) in [(8960, 1), (8960, 0), (8960, 1281), (8960, 4096), (8960, 17920)] {
        assert!(Rotation::new(&Recipe { block: Some(block), ..plain(k) }).is_none(), "{block} of {k}");
    }
    assert!(Rotation::new(&Recipe { block: Some(1280), padded: true, ..plain(8960) }).is_none());
}

#[test]
fn lengths_that_cannot_be_rotated_are_told() {
    for (k, padded, possible) in [
        (0, false, false),
        (1, false, false),
        (577, false, false),
        (2, false, true),
        (0, true, false),
        (1, true, false),
        (577, true, true),
        (usize::MAX, true, false),
    ] {
        let made = Rotation::new(&Recipe { padded, ..plain(k) });
        assert_eq!(made.is_some(), possible, "K = {k}, padded {padded}");
    }
}

fn first_signs(recipe: &Recipe) -> String {
    let rotation = Rotation::new(recipe).unwrap();
    rotation.signs[..16].iter().map(|sign| if *sign > 0.0 { '+' } else { '-' }).collect()
}

#[test]
fn signs_are_balanced_and_fixed_for_ever() {
    for layer in [None, Some(0), Some(7)] {
        let rotation = Rotation::new(&Recipe { layer, ..plain(1536) }).unwrap();
        let positive = rotation.signs.iter().filter(|sign| **sign > 0.0).count();
        assert!((700..=836).contains(&positive), "{positive} of 1536 in layer {layer:?}");
    }
    for (layer, signs) in
        [(None, "--+--+-+-+--+--+"), (Some(0), "---+--++--+-++--"), (Some(1), "++-+----++--++++")]
    {
        assert_eq!(first_signs(&Recipe { layer, ..plain(1536) }), signs, "layer {layer:?}");
    }
}

#[test]
fn shared_signs_repeat_from_block_to_block() {
    let full = rotation(576).signs;
    let shared = Rotation::new(&Recipe { signs: Signs::Shared, ..plain(576) }).unwrap().signs;
    assert_eq!(shared[..16], full[..16]);
    assert!(shared.chunks(16).all(|block| *block == shared[..16]));
    assert!(!full.chunks(16).all(|block| *block == full[..16]));
}

#[test]
fn descriptions_tell_rotations_apart() {
    let texts: Vec<String> = [
        plain(576),
        Recipe { layer: Some(3), ..plain(576) },
        Recipe { signs: Signs::Shared, ..plain(576) },
        Recipe { padded: true, ..plain(576) },
        plain(960),
        plain(8960),
        Recipe { block: Some(1280), ..plain(8960) },
    ]
    .iter()
    .map(|recipe| Rotation::new(recipe).unwrap().describe())
    .collect();
    assert_eq!(
        texts,
        [
            "hadamard k=576 order=w36 power=16 layer=none signs=full",
            "hadamard k=576 order=w36 power=16 layer=3 signs=full",
            "hadamard k=576 order=w36 power=16 layer=none signs=shared",
            "hadamard k=576 order=1 power=1024 layer=none signs=full",
            "hadamard k=960 order=60 power=16 layer=none signs=full",
            "hadamard k=8960 order=w20xw28 power=16 layer=none signs=full",
            "hadamard k=8960 order=w20 power=64 layer=none signs=full",
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// The fast transform is the matrix of the definition, and keeps products.
    #[test]
    fn rotated_rows_are_the_matrix_times_the_row(
        half in 1usize..300, blocks in 1usize..4, odd: bool, padded: bool, shared: bool, layer: Option<u32>, seed: u32,
    ) {
        let blocks = if padded { 1 } else { blocks };
        let k = half * 2 * blocks + usize::from(odd && padded);
        let signs = if shared { Signs::Shared } else { Signs::Full };
        let block = (blocks > 1).then_some(half * 2);
        let rotation = Rotation::new(&Recipe { k, layer, signs, padded, block }).unwrap();
        let mut state = seed;
        let mut numbers = || -> Vec<f32> {
            (0..k).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8388608.0 - 1.0
            }).collect()
        };
        let (x, w) = (numbers(), numbers());
        let (rotated, other) = (apply(&rotation, &x), apply(&rotation, &w));
        for (i, got) in rotated.iter().enumerate() {
            let want: f64 = (0..k).map(|j| f64::from(rotation.element(i, j)) * f64::from(x[j])).sum();
            prop_assert!((f64::from(*got) - want).abs() < 1e-4, "element {i}: {got}, not {want}");
        }
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        prop_assert!((dot(&rotated, &other) - dot(&x, &w)).abs() < 1e-3);
    }
}

/// Vectors do what plain floats do, to the bit: converted weights may move between machines.
#[test]
fn vectors_give_the_bits_of_plain_floats() {
    // Every number of levels, with and without another factor, blocks, and rows that end within a vector.
    let powers = (1..15).map(|power| (1usize << power, false));
    let factors = [
        (12, 16),
        (20, 32),
        (28, 32),
        (36, 16),
        (60, 128),
        (76, 64),
        (148, 64),
        (200, 16),
        (252, 32),
        (12, 8),
    ];
    let more = [
        (8960, false),
        (6912, false),
        (172 * 64, false),
        (172 * 16, false),
        (577, true),
        (11008, true),
        (8960, true),
        (33, true),
    ];
    let whole = powers.chain(factors.map(|(order, power)| (order * power, false))).chain(more);
    let blocks = [(8960, 1280), (6912, 1152), (9728, 512)];
    let blocks = blocks.map(|(k, block)| Recipe { block: Some(block), ..plain(k) });
    for recipe in whole.map(|(k, padded)| Recipe { padded, ..plain(k) }).chain(blocks) {
        let (k, rotation) = (recipe.k, Rotation::new(&recipe).unwrap());
        let row: Vec<f32> =
            (0..k as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8388608.0 - 1.0).collect();
        let got = apply(&rotation, &row);
        let (mut want, mut scratch) = (vec![f32::NAN; rotation.width()], vec![f32::NAN; rotation.block()]);
        let size = rotation.block();
        for (index, (row, want)) in row.chunks(size).zip(want.chunks_mut(size)).enumerate() {
            transform::plain(rotation.shape(index), row, want, &mut scratch);
        }
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&want), "{}", rotation.describe());
    }
}

/// What is stored by one machine is what another would store, now and after every change here.
#[test]
fn rotated_bits_are_fixed_for_ever() {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (k, padded) in [(576, false), (960, false), (1536, false), (2048, false), (8960, false), (577, true)]
    {
        let rotation = Rotation::new(&Recipe { padded, layer: Some(3), ..plain(k) }).unwrap();
        let row: Vec<f32> =
            (0..k as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
        for byte in apply(&rotation, &row).iter().flat_map(|value| value.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    assert_eq!(hash, 0xc34a_75d8_ff99_5e76, "{hash:#x}");
}

/// Where rows are long, orders large and the tables many, too.
#[test]
fn long_rows_are_the_matrix_times_the_row() {
    let whole = [(8960, false), (25600, false), (18944, false), (11008, true), (4096, false)];
    let blocks = [(8960, 1280), (18944, 512), (14336, 1024)];
    let blocks = blocks.map(|(k, block)| Recipe { block: Some(block), ..plain(k) });
    for recipe in whole.map(|(k, padded)| Recipe { padded, ..plain(k) }).into_iter().chain(blocks) {
        let (k, rotation) = (recipe.k, Rotation::new(&recipe).unwrap());
        let row: Vec<f32> =
            (0..k as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8388608.0 - 1.0).collect();
        let got = apply(&rotation, &row);
        for i in (0..rotation.width()).step_by(97) {
            let want: f64 = (0..k).map(|j| f64::from(rotation.element(i, j)) * f64::from(row[j])).sum();
            assert!((f64::from(got[i]) - want).abs() < 1e-5, "element {i} of {k}: {}, not {want}", got[i]);
        }
    }
}

#[test]
fn what_is_not_finite_spreads_over_the_block() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for k in [576, 2048, 8960] {
            let mut row = vec![1.0; k];
            row[k / 3] = bad;
            assert!(apply(&rotation(k), &row).iter().all(|value| !value.is_finite()), "{bad} in {k}");
        }
    }
}

#[test]
fn an_outlier_is_spread_over_the_row() {
    for padded in [false, true] {
        for k in [576, 1536, 2048] {
            let rotation = Rotation::new(&Recipe { padded, ..plain(k) }).unwrap();
            let mut row = vec![0.0; k];
            row[17] = 1.0;
            let want = 1.0 / (rotation.width() as f32).sqrt();
            let out = apply(&rotation, &row);
            assert!(out.iter().all(|value| (value.abs() - want).abs() < 1e-6), "K = {k}, padded {padded}");
        }
    }
}
