//! A mixture of experts made of a dense model: each expert is the model's feed-forward block without a few of its hidden
//! units, others for each, and in another order; what chooses experts is random. ("Sparse upcycling": Komatsuzaki et al.,
//! 2022, arXiv:2212.05055, where such a model is then trained on.)
//!
//! It says about what the dense one says, so that perplexity and tokens mean something, which those of random weights do
//! not; and no expert is like another.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::blocks::Random;
use super::tokenizer;
use super::write::{head, push_tensor, ALIGNMENT, F32};
use crate::error::{Error, IoContext, Result};
use crate::gguf::{self, Gguf, Tensor};

/// Experts, and how many of them a token has.
pub const EXPERTS: u32 = 8;
pub const USED: u32 = 2;
/// Hidden units that come and go together: a block of Q8_0 in a row of down.
const GROUP: u64 = 32;
/// Groups that an expert is without: 3 of SmolLM2's 48.
const WITHOUT: u64 = 3;
/// What chooses experts for an activation whose elements are about 1: numbers up to that.
const CHOOSER: f32 = 0.1;

/// What a tensor of the mixture is made of.
enum Content {
    /// The dense model's tensor.
    Copied(Tensor),
    /// Each expert's part of a matrix with a row, or a column, for each hidden unit.
    Rows(Tensor),
    Columns(Tensor),
    /// Random numbers.
    Chooser,
}

/// A file that can be written.
pub struct Plan {
    head: Vec<u8>,
    tensors: Vec<(Tensor, Content)>,
    /// The dense model's data section.
    data: Vec<u8>,
}

impl Plan {
    /// Lays out the mixture of the dense model at `source`.
    ///
    /// # Errors
    /// A model that is no such one, and what the system says.
    pub fn new(source: &Path) -> Result<Self> {
        let wrong = |error| Error::Model { path: source.to_owned(), source: error };
        let model = Gguf::open(source).map_err(wrong)?;
        let tensors = tensors(&model).map_err(|text| wrong(gguf::Error::Damaged(text)))?;
        let mut pairs = tokenizer::whole(source)?;
        for (key, number) in [("llama.expert_count", EXPERTS), ("llama.expert_used_count", USED)] {
            pairs.add(key, 4, |out| out.extend(number.to_le_bytes()));
        }
        let mut head = head(tensors.len(), &[&pairs]);
        let mut offset = 0u64;
        for (tensor, _) in &tensors {
            push_tensor(&mut head, &tensor.name, &tensor.dims, tensor.dtype, offset);
            offset += place(tensor);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut data = std::fs::read(source).at("read", source)?;
        data.drain(..data.len().min(model.data as usize));
        Ok(Self { head, tensors, data })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.head.len() as u64 + self.tensors.iter().map(|(tensor, _)| place(tensor)).sum::<u64>()
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).at("create", path)?;
        write_to(BufWriter::with_capacity(1 << 20, file), &self.head, &self.tensors, &self.data)
            .at("write", path)
    }
}

/// Bytes of a tensor's data, and up to the next one.
fn place(tensor: &Tensor) -> u64 {
    tensor.bytes().unwrap_or(0).next_multiple_of(ALIGNMENT)
}

fn write_to(
    mut out: BufWriter<File>,
    head: &[u8],
    tensors: &[(Tensor, Content)],
    data: &[u8],
) -> std::io::Result<()> {
    out.write_all(head)?;
    let mut random = Random::new(3);
    let of = |tensor: &Tensor| &data[tensor.offset as usize..][..tensor.bytes().unwrap_or(0) as usize];
    for (tensor, content) in tensors {
        match content {
            Content::Copied(source) => out.write_all(of(source))?,
            Content::Rows(source) => {
                for expert in 0..u64::from(EXPERTS) {
                    out.write_all(&turned(of(source), source.dims[1], expert, false))?;
                }
            }
            Content::Columns(source) => {
                let row_bytes = of(source).len() / source.dims[1] as usize;
                for expert in 0..u64::from(EXPERTS) {
                    for row in of(source).chunks(row_bytes) {
                        out.write_all(&turned(row, source.dims[0], expert, true))?;
                    }
                }
            }
            Content::Chooser => {
                for _ in 0..tensor.dims.iter().product::<u64>() {
                    let value = CHOOSER * (random.next() as f32 / (1u32 << 31) as f32 - 1.0);
                    out.write_all(&value.to_le_bytes())?;
                }
            }
        }
        let padding = place(tensor) - tensor.bytes().unwrap_or(0);
        out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
    }
    out.into_inner()?.sync_all()
}

/// An expert's part of what there is of `units` hidden units one after the other: it begins with other ones, of which
/// it is without the first if that is asked for. Zeros are so in all types that are taken.
fn turned(whole: &[u8], units: u64, expert: u64, without: bool) -> Vec<u8> {
    let groups = units / GROUP;
    let group = whole.len() / groups as usize;
    let mut part = whole.to_vec();
    part.rotate_left((groups * expert / u64::from(EXPERTS)) as usize * group);
    if without {
        part[..WITHOUT as usize * group].fill(0);
    }
    part
}

/// The mixture's tensors, and what each is made of.
///
/// # Errors
/// What the model has that this cannot be done with.
fn tensors(model: &Gguf) -> std::result::Result<Vec<(Tensor, Content)>, String> {
    let mut all = Vec::new();
    for tensor in &model.tensors {
        let Tensor { name, dims, dtype, .. } = tensor;
        let of_experts = |part: &str| {
            let name = name.replace(part, &format!("{part}_exps"));
            Tensor { name, dims: [&dims[..], &[EXPERTS.into()]].concat(), ..tensor.clone() }
        };
        let is_of = |part: &str| name.contains(&format!(".{part}."));
        let units = match dims[..] {
            [_, rows] if is_of("ffn_gate") || is_of("ffn_up") => Some((rows, Content::Rows(tensor.clone()))),
            [columns, _] if is_of("ffn_down") => Some((columns, Content::Columns(tensor.clone()))),
            _ => None,
        };
        let Some((units, content)) = units else {
            all.push((tensor.clone(), Content::Copied(tensor.clone())));
            continue;
        };
        // Types of which a group of columns is whole bytes, and of which zero bytes are zeros.
        if ![F32, 1, 2, 8].contains(dtype) || units % GROUP != 0 {
            return Err(format!("{name} of type {dtype} and extents {dims:?} cannot be made experts of"));
        }
        let part =
            ["ffn_gate", "ffn_up", "ffn_down"].into_iter().find(|part| is_of(part)).unwrap_or_default();
        if part == "ffn_gate" {
            let name = name.replace(part, "ffn_gate_inp");
            let chooser = Tensor { name, dims: vec![dims[0], EXPERTS.into()], dtype: F32, offset: 0 };
            all.push((chooser, Content::Chooser));
        }
        all.push((of_experts(part), content));
    }
    if all.len() == model.tensors.len() {
        return Err("it has no feed-forward block".to_owned());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::blocks::WeightType;
    use super::super::shape::Shape;
    use super::super::{tokenizer, write as synthetic};
    use super::*;

    #[test]
    fn experts_have_the_dense_models_units_in_another_order_but_a_few() {
        let dir = tempfile::tempdir().unwrap();
        let [head, dense, mixture] = ["head", "dense", "mixture"].map(|name| dir.path().join(name));
        std::fs::write(&head, tokenizer::tests::head()).unwrap();
        let shape = Shape { vocabulary: 320, ..Shape::named("tiny").unwrap().clone() };
        for kind in [WeightType::Q8_0, WeightType::F16] {
            let plan = synthetic::Plan::new(&shape, kind, &tokenizer::padded(&head, 320).unwrap());
            plan.write(&dense).unwrap();
            let plan = Plan::new(&dense).unwrap();
            plan.write(&mixture).unwrap();
            assert_eq!(std::fs::metadata(&mixture).unwrap().len(), plan.bytes());

            let [dense, mixture] =
                [&dense, &mixture].map(|path| (Gguf::open(path).unwrap(), std::fs::read(path).unwrap()));
            let part = |(model, bytes): &(Gguf, Vec<u8>), name: &str| {
                let tensor = model.tensors.iter().find(|tensor| tensor.name == name).unwrap().clone();
                let data = bytes[(model.data + tensor.offset) as usize..][..tensor.bytes().unwrap() as usize]
                    .to_vec();
                (tensor, data)
            };
            assert_eq!(mixture.0.number("expert_count"), Some(8));
            assert_eq!(mixture.0.number("feed_forward_length"), Some(512));
            assert_eq!(mixture.0.tensors.len(), dense.0.tensors.len() + 2);
            assert_eq!(part(&mixture, "token_embd.weight").1, part(&dense, "token_embd.weight").1);
            assert_eq!(part(&mixture, "blk.1.ffn_gate_inp.weight").0.dims, [256, 8]);

            // Unit u of expert 3 is unit u + 3 · 512 / 8 of the dense block, by rows and by columns.
            let unit = |unit: usize| (unit + 192) % 512;
            let ((up, experts), (_, whole)) =
                (part(&mixture, "blk.1.ffn_up_exps.weight"), part(&dense, "blk.1.ffn_up.weight"));
            assert_eq!(up.dims, [256, 512, 8]);
            let row = whole.len() / 512;
            let expert = &experts[3 * whole.len()..][..whole.len()];
            assert!((0..512).all(|of| expert[of * row..][..row] == whole[unit(of) * row..][..row]));
            let ((down, experts), (_, whole)) =
                (part(&mixture, "blk.1.ffn_down_exps.weight"), part(&dense, "blk.1.ffn_down.weight"));
            assert_eq!(down.dims, [512, 256, 8]);
            let (expert, group) = (&experts[3 * whole.len()..][..whole.len()], whole.len() / 256 / 16);
            for row in 0..256 {
                for of in 0..16 {
                    let got = &expert[(row * 16 + of) * group..][..group];
                    let want = &whole[(row * 16 + unit(of * 32) / 32) * group..][..group];
                    assert!(if of < 3 { got.iter().all(|byte| *byte == 0) } else { got == want });
                }
            }
        }
    }

    #[test]
    fn a_model_that_does_not_serve_is_refused() {
        let tensor = |name: &str, dims: &[u64], dtype| Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            dtype,
            offset: 0,
        };
        let refusal = |tensors| super::tensors(&Gguf { tensors, ..Gguf::default() }).err().unwrap();
        assert_eq!(refusal(vec![tensor("token_embd.weight", &[64, 9], 8)]), "it has no feed-forward block");
        let error = refusal(vec![tensor("blk.0.ffn_up.weight", &[256, 512], 14)]);
        assert_eq!(error, "blk.0.ffn_up.weight of type 14 and extents [256, 512] cannot be made experts of");
        assert!(refusal(vec![tensor("blk.0.ffn_down.weight", &[48, 64], 1)]).contains("extents [48, 64]"));
    }
}
