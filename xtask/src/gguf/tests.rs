use super::*;
use proptest::prelude::*;

/// A small well-formed file: llama, 2 layers, one F16 tensor of 4×8 and one Q8_0 of 32×2.
fn sample() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    let text = |file: &mut Vec<u8>, s: &str| {
        file.extend((s.len() as u64).to_le_bytes());
        file.extend(s.as_bytes());
    };
    file.extend(3u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend(4u64.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    text(&mut file, "llama");
    text(&mut file, "llama.block_count");
    file.extend(4u32.to_le_bytes());
    file.extend(2u32.to_le_bytes());
    text(&mut file, "llama.attention.head_count");
    file.extend(9u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend(9i32.to_le_bytes());
    file.extend(3i32.to_le_bytes());
    text(&mut file, "tokenizer.ggml.tokens");
    file.extend(9u32.to_le_bytes());
    file.extend(8u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    text(&mut file, "a");
    text(&mut file, "bc");
    for (name, dims, dtype, offset) in [("a.weight", [4u64, 8], 1u32, 0u64), ("b.weight", [32, 2], 8, 64)] {
        text(&mut file, name);
        file.extend(2u32.to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(dtype.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + 64 + 68, 0);
    file
}

fn read(bytes: &[u8]) -> Result<Gguf> {
    Gguf::read(bytes, bytes.len() as u64)
}

#[test]
fn reads_metadata_and_tensors() {
    let head = read(&sample()).unwrap();
    assert_eq!(head.architecture(), "llama");
    assert_eq!(head.number("block_count"), Some(2));
    assert_eq!(head.number_of_layer("block_count", 1), Some(2));
    assert_eq!(head.number_of_layer("attention.head_count", 1), Some(3));
    assert_eq!(head.number_of_layer("attention.head_count", 2), None);
    assert_eq!(head.metadata["tokenizer.ggml.tokens"], Value::Skipped);
    assert_eq!(head.tensors[1].dims, [32, 2]);
    assert_eq!(head.tensors[1].bytes(), Some(68));
}

#[test]
fn every_shorter_file_is_an_error_that_says_so() {
    let whole = sample();
    for length in 0..whole.len() {
        let error = read(&whole[..length]).unwrap_err();
        match error {
            Error::NotGguf(_) => assert!(length < 4),
            Error::TruncatedHead { size } => assert_eq!(size, length as u64),
            Error::Truncated { needs, has } => {
                assert_eq!((needs, has), (whole.len() as u64, length as u64));
            }
            other => panic!("{length} bytes: {other}"),
        }
    }
}

#[test]
fn a_file_shorter_than_its_stated_size_is_truncated() {
    let whole = sample();
    assert!(matches!(Gguf::read(&whole[..50], whole.len() as u64), Err(Error::TruncatedHead { .. })));
}

#[test]
fn other_files_and_versions_are_named() {
    assert_eq!(
        read(b"PK\x03\x04rest").unwrap_err().to_string(),
        r#"not a GGUF file: it begins with "PK\\x03\\x04", expected "GGUF""#
    );
    assert!(matches!(read(b"GGUF\x01\0\0\0").unwrap_err(), Error::Version(1)));
}

#[test]
fn absurd_counts_are_refused_without_allocating() {
    for at in [8, 16, 24] {
        let mut file = sample();
        file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(read(&file), Err(Error::Damaged(_))), "count at byte {at}");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let whole = sample();
    let at = whole.windows(8).position(|w| w == b"a.weight").unwrap() + 8 + 4;
    let mut file = whole;
    file[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(read(&file).unwrap_err().to_string().contains("overflows"));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tail);
        let _ = read(&file);
    }

    #[test]
    fn a_damaged_file_never_panics(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..8)) {
        let mut file = sample();
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        let _ = read(&file);
    }
}
