//! The file: head, tensors one after the other, weights from a repeated stretch of random blocks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::blocks::{Random, WeightType};
use super::shape::{Shape, OUTPUT};
use super::tokenizer::{push_text, Pairs};
use crate::error::{IoContext, Result};

/// Where tensors may begin.
pub const ALIGNMENT: u64 = 32;

/// The code of 32-bit floats, which norms are in.
pub const F32: u32 = 0;

/// The first of the tokens whose rows of the output matrix are longer than all others.
const LIKELIEST: u64 = 4000;
/// The first eight are 2⁷ times as long, the next eight 2⁶, sixteen 2⁵, thirty-two 2⁴ and so on. Were all as long, nearly all
/// tokens would be about as likely, some exactly, since the random blocks repeat, and any rounding would make another one
/// the likeliest; trained models have their favourites.
const LENGTHS: u32 = 7;
/// Rows of a mixture's embedding are 2⁵ times as long as other matrices', so that what comes out depends on the token that
/// goes in.
const EMBEDDING: u32 = 5;
/// Times the norm before the output matrix, so that no token is certain: llama-perplexity keeps logits down to 16 below the
/// largest.
const OUTPUT_NORM: f32 = 1.0 / 32.0;

/// One tensor's place.
struct Placed {
    bytes: u64,
    content: Content,
}

/// What is in a tensor.
enum Content {
    /// 32-bit floats around that number.
    Floats(f32),
    /// Random blocks, in rows of so many bytes, each by so many powers of two longer than most.
    Rows(usize, fn(u64) -> u32),
}

/// A file that can be written.
pub struct Plan {
    kind: WeightType,
    head: Vec<u8>,
    tensors: Vec<Placed>,
}

impl Plan {
    /// Lays out the file of a model of that shape with weights of that type.
    pub fn new(shape: &Shape, kind: WeightType, tokenizer: &Pairs) -> Self {
        let names = shape.tensors();
        let mut head = head(names.len(), &[&metadata(shape, kind), tokenizer]);
        let (mut tensors, mut offset) = (Vec::with_capacity(names.len()), 0u64);
        for (name, dims) in names {
            let elements: u64 = dims.iter().product();
            let (block, block_bytes) = kind.block();
            // As in real files, what chooses the experts is not rounded.
            let (dtype, bytes) = if dims.len() == 1 || name.ends_with("ffn_gate_inp.weight") {
                (F32, 4 * elements)
            } else {
                (kind.code(), elements / block * block_bytes)
            };
            push_tensor(&mut head, &name, &dims, dtype, offset);
            offset = (offset + bytes).next_multiple_of(ALIGNMENT);
            let row_bytes = (bytes / dims.get(1).unwrap_or(&1)) as usize;
            let content = match &*name {
                OUTPUT => Content::Rows(row_bytes, powers),
                "token_embd.weight" if shape.experts.is_some() => Content::Rows(row_bytes, |_| EMBEDDING),
                "output_norm.weight" if shape.experts.is_some() => Content::Floats(OUTPUT_NORM),
                _ if dtype == F32 => Content::Floats(1.0),
                _ => Content::Rows(row_bytes, |_| 0),
            };
            tensors.push(Placed { bytes, content });
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        Self { kind, head, tensors }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        let data = self.tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(ALIGNMENT));
        self.head.len() as u64 + data.sum::<u64>()
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).at("create", path)?;
        self.write_to(BufWriter::with_capacity(1 << 20, file)).at("write", path)
    }

    fn write_to(&self, mut out: BufWriter<File>) -> std::io::Result<()> {
        out.write_all(&self.head)?;
        let (blocks, mut at) = (self.kind.random(), 0);
        let mut random = Random::new(1);
        for tensor in &self.tensors {
            match tensor.content {
                // Different in each layer, so that no two layers see the same rows.
                Content::Floats(middle) => {
                    for _ in 0..tensor.bytes / 4 {
                        let value = middle * (0.5 + random.next() as f32 / (1u32 << 31) as f32);
                        out.write_all(&value.to_le_bytes())?;
                    }
                }
                Content::Rows(row_bytes, powers) => {
                    let mut row = vec![0; row_bytes];
                    for index in 0..tensor.bytes / row_bytes as u64 {
                        // Each goes on where the last one ended: no two are the same.
                        let mut rest = &mut row[..];
                        while !rest.is_empty() {
                            let (piece, after) = rest.split_at_mut(rest.len().min(blocks.len() - at));
                            piece.copy_from_slice(&blocks[at..at + piece.len()]);
                            at = (at + piece.len()) % blocks.len();
                            rest = after;
                        }
                        self.kind.lengthen(&mut row, powers(index));
                        out.write_all(&row)?;
                    }
                }
            }
            let padding = tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes;
            out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        out.into_inner()?.sync_all()
    }
}

/// The beginning of a file with so many tensors, up to the first one's entry.
pub fn head(tensors: usize, pairs: &[&Pairs]) -> Vec<u8> {
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    head.extend((tensors as u64).to_le_bytes());
    head.extend(pairs.iter().map(|pairs| pairs.count).sum::<u64>().to_le_bytes());
    pairs.iter().for_each(|pairs| head.extend(&pairs.bytes));
    head
}

/// Adds a tensor's entry to a head.
pub fn push_tensor(head: &mut Vec<u8>, name: &str, dims: &[u64], dtype: u32, offset: u64) {
    push_text(head, name);
    head.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|extent| head.extend(extent.to_le_bytes()));
    head.extend(dtype.to_le_bytes());
    head.extend(offset.to_le_bytes());
}

/// By how many powers of two a token's row of the output matrix is longer than most.
fn powers(token: u64) -> u32 {
    let rank = token.checked_sub(LIKELIEST);
    rank.map_or(0, |rank| LENGTHS.saturating_sub(u64::BITS - (rank / 8).leading_zeros()))
}

/// The keys of the model itself.
fn metadata(shape: &Shape, kind: WeightType) -> Pairs {
    let mut pairs = Pairs::default();
    let name = format!("synthetic {}", shape.name);
    for (key, text) in [("general.architecture", "llama"), ("general.type", "model"), ("general.name", &name)]
    {
        pairs.add(key, 8, |out| push_text(out, text));
    }
    for (key, number) in [
        ("general.quantization_version", 2),
        ("general.file_type", kind.file_code()),
        ("llama.block_count", shape.layers),
        ("llama.context_length", shape.context),
        ("llama.embedding_length", shape.width),
        ("llama.feed_forward_length", shape.feed_forward),
        ("llama.attention.head_count", shape.heads),
        ("llama.attention.head_count_kv", shape.kv_heads),
        ("llama.attention.key_length", shape.head),
        ("llama.attention.value_length", shape.head),
        ("llama.rope.dimension_count", shape.head),
        ("llama.vocab_size", shape.vocabulary),
    ] {
        pairs.add(key, 4, |out| out.extend(number.to_le_bytes()));
    }
    for (key, number) in shape
        .experts
        .iter()
        .flat_map(|(experts, used)| [("llama.expert_count", *experts), ("llama.expert_used_count", *used)])
    {
        pairs.add(key, 4, |out| out.extend(number.to_le_bytes()));
    }
    for (key, number) in
        [("llama.rope.freq_base", 10_000f32), ("llama.attention.layer_norm_rms_epsilon", 1e-5)]
    {
        pairs.add(key, 6, |out| out.extend(number.to_le_bytes()));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, Value};

    #[test]
    fn our_reader_reads_it_back_and_all_bytes_are_accounted_for() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { vocabulary: 320, ..Shape::named("tiny").unwrap().clone() };
        let head = dir.path().join("tokenizer.gguf");
        std::fs::write(&head, super::super::tokenizer::tests::head()).unwrap();
        let tokenizer = super::super::tokenizer::padded(&head, 320).unwrap();
        for kind in [WeightType::Q8_0, WeightType::F16, WeightType::Q4_0] {
            let path = dir.path().join(kind.name());
            let plan = Plan::new(&shape, kind, &tokenizer);
            plan.write(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), plan.bytes());

            let model = Gguf::open(&path).unwrap();
            assert_eq!(model.architecture(), "llama");
            assert_eq!(model.number("feed_forward_length"), Some(512));
            assert_eq!(model.metadata["general.name"], Value::Text("synthetic tiny".into()));
            assert_eq!(model.metadata["tokenizer.ggml.model"], Value::Text("gpt2".into()));
            assert_eq!(model.tensors.len(), 2 + 2 * 9);
            let mut next = 0;
            for tensor in &model.tensors {
                assert_eq!(tensor.offset, next, "{}", tensor.name);
                assert_eq!(tensor.dtype, if tensor.dims.len() == 1 { F32 } else { kind.code() });
                next = (next + tensor.bytes().unwrap()).next_multiple_of(ALIGNMENT);
            }
            assert_eq!(plan.head.len() as u64 + next, plan.bytes());
            let down = model.tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_down.weight").unwrap();
            assert_eq!(down.dims, [512, 256]);
        }
    }

    #[test]
    fn a_mixture_has_favourite_tokens() {
        let after = |count| LIKELIEST + count;
        let tokens =
            [0, LIKELIEST - 1, LIKELIEST, after(7), after(8), after(15), after(16), after(31), after(32)];
        assert_eq!(tokens.map(powers), [0, 0, 7, 7, 6, 6, 5, 5, 4]);
        assert_eq!([after(511), after(512), 1 << 40].map(powers), [1, 0, 0]);
        let names = |shape| Shape::named(shape).unwrap().tensors().into_iter().map(|(name, _)| name);
        assert!(names("tiny-moe").any(|name| name == OUTPUT) && !names("tiny").any(|name| name == OUTPUT));
    }
}
