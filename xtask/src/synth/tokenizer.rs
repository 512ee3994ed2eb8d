//! The tokenizer of a synthetic model: the keys of a real file, byte for byte, with dummy tokens up to the vocabulary; or all
//! keys of the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, IoContext, Result};
use crate::gguf;

/// The keys that are taken.
const PREFIX: &[u8] = b"tokenizer.";
const TOKENS: &[u8] = b"tokenizer.ggml.tokens";
const TOKEN_TYPES: &[u8] = b"tokenizer.ggml.token_type";
const SCORES: &[u8] = b"tokenizer.ggml.scores";
const UNREADABLE: &str = "its metadata cannot be read";
/// The type of a token that never comes.
const UNUSED: i32 = 5;
/// The head of a file is looked for in this many bytes.
const HEAD_MAX: u64 = 64 << 20;

/// Metadata as it is written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// How many pairs.
    pub count: u64,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Pairs {
    /// Adds a key whose value of the type `code` is what `value` writes.
    pub fn add(&mut self, key: &str, code: u32, value: impl FnOnce(&mut Vec<u8>)) {
        self.count += 1;
        push_text(&mut self.bytes, key);
        self.bytes.extend(code.to_le_bytes());
        value(&mut self.bytes);
    }
}

/// The tokenizer of the file at `path`, with tokens `<pad_N>` up to `vocabulary`.
///
/// # Errors
/// A file that cannot be read or has no tokenizer, or more tokens than `vocabulary`.
pub fn padded(path: &Path, vocabulary: u32) -> Result<Pairs> {
    let head = read(path)?;
    let takes = |key: &[u8]| key.starts_with(PREFIX);
    let (pairs, tokens) = of_head(&head, takes, vocabulary.into()).ok_or_else(|| wrong(path, UNREADABLE))?;
    match tokens {
        0 => Err(wrong(path, "it has no tokenizer")),
        _ if tokens > vocabulary.into() => {
            Err(wrong(path, format!("its tokenizer has {tokens} tokens, expected at most {vocabulary}")))
        }
        _ => Ok(pairs),
    }
}

/// All keys of the file at `path`.
///
/// # Errors
/// A file that cannot be read.
pub fn whole(path: &Path) -> Result<Pairs> {
    of_head(&read(path)?, |_| true, 0).map(|(pairs, _)| pairs).ok_or_else(|| wrong(path, UNREADABLE))
}

fn wrong(path: &Path, text: impl Into<String>) -> Error {
    Error::Model { path: path.to_owned(), source: gguf::Error::Damaged(text.into()) }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let file = File::open(path).at("open", path)?;
    file.take(HEAD_MAX).read_to_end(&mut head).at("read", path)?;
    Ok(head)
}

/// The pairs whose keys are taken, and how many tokens there were; `None` where the head ends too early or makes no sense.
fn of_head(head: &[u8], takes: impl Fn(&[u8]) -> bool, vocabulary: u64) -> Option<(Pairs, u64)> {
    let mut input = Input(head);
    if input.take(4)? != b"GGUF" {
        return None;
    }
    input.take(4 + 8)?;
    let (count, mut pairs, mut tokens) = (input.u64()?, Pairs::default(), 0);
    for _ in 0..count {
        let start = input.0;
        let key = input.string()?;
        let kind = input.u32()?;
        let value = input.0;
        input.skip(kind)?;
        if !takes(key) {
            continue;
        }
        pairs.count += 1;
        let length = |rest: &[u8], from: &[u8]| from.len() - rest.len();
        if ![TOKENS, TOKEN_TYPES, SCORES].contains(&key) {
            pairs.bytes.extend(&start[..length(input.0, start)]);
            continue;
        }
        // Key and type as they are, then the array: its type, its length, its elements.
        pairs.bytes.extend(&start[..length(value, start)]);
        let mut array = Input(value);
        let (element, have) = (array.u32()?, array.u64()?);
        pairs.bytes.extend(element.to_le_bytes());
        pairs.bytes.extend(have.max(vocabulary).to_le_bytes());
        pairs.bytes.extend(&array.0[..length(input.0, array.0)]);
        for token in have..vocabulary {
            match key {
                TOKENS => push_text(&mut pairs.bytes, &format!("<pad_{token}>")),
                TOKEN_TYPES => pairs.bytes.extend(UNUSED.to_le_bytes()),
                _ => pairs.bytes.extend(0f32.to_le_bytes()),
            }
        }
        if key == TOKENS {
            tokens = have;
        }
    }
    Some((pairs, tokens))
}

/// A text as GGUF has it: its length, then its bytes.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What is left of a head.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }

    /// Skips a value; arrays of arrays are in no tokenizer.
    fn skip(&mut self, kind: u32) -> Option<()> {
        let each = |kind| match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match kind {
            8 => self.string().map(|_| ()),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                match kind {
                    8 => (0..count).try_for_each(|_| self.string().map(|_| ())),
                    _ => self.take(count.checked_mul(each(kind)?)?).map(|_| ()),
                }
            }
            _ => self.take(each(kind)?).map(|_| ()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A head with a key that is not the tokenizer's, a model name, two tokens and their types.
    pub fn head() -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(0u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        let key = |out: &mut Vec<u8>, key: &str, kind: u32| {
            push_text(out, key);
            out.extend(kind.to_le_bytes());
        };
        key(&mut out, "general.name", 8);
        push_text(&mut out, "x");
        key(&mut out, "tokenizer.ggml.model", 8);
        push_text(&mut out, "gpt2");
        key(&mut out, "tokenizer.ggml.tokens", 9);
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        push_text(&mut out, "a");
        push_text(&mut out, "b");
        key(&mut out, "tokenizer.ggml.token_type", 9);
        out.extend(5u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend([1, 0, 0, 0, 1, 0, 0, 0]);
        out
    }

    #[test]
    fn only_the_tokenizer_is_taken_and_its_lists_are_padded() {
        let (pairs, tokens) = of_head(&head(), |key| key.starts_with(PREFIX), 3).unwrap();
        assert_eq!((pairs.count, tokens), (3, 2));
        let text = String::from_utf8_lossy(&pairs.bytes);
        assert!(text.contains("gpt2") && text.contains("<pad_2>") && !text.contains("general"), "{text}");
        assert!(pairs.bytes.ends_with(&[1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]));
        // As long as it is, nothing changes.
        let (same, _) = of_head(&head(), |key| key.starts_with(PREFIX), 2).unwrap();
        assert_eq!(same.bytes, head()[24 + 8 + 12 + 4 + 8 + 1..]);
        let (whole, _) = of_head(&head(), |_| true, 0).unwrap();
        assert_eq!((whole.count, &whole.bytes[..]), (4, &head()[24..]));
    }

    #[test]
    fn files_that_do_not_serve_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let refusal = |bytes: &[u8], vocabulary| {
            std::fs::write(&path, bytes).unwrap();
            padded(&path, vocabulary).unwrap_err().to_string()
        };
        assert!(refusal(&head(), 1).ends_with("has 2 tokens, expected at most 1"));
        for length in 0..head().len() {
            assert!(refusal(&head()[..length], 9).contains("m.gguf: damaged header"), "{length}");
        }
        let mut none = head();
        none[16] = 2;
        assert!(refusal(&none, 9).ends_with("it has no tokenizer"));
    }
}
