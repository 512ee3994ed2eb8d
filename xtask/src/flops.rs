//! How much matmul work a model's run is, from the shapes of its tensors.
//!
//! The plugin can only count what reaches it. What the host kept for itself (a weight type that was not
//! taken, one token's decode that was declined, attention) is counted here, so that the share of the NPU is
//! a share of everything.

use std::collections::BTreeMap;

use crate::gguf::{Gguf, Tensor};

/// The longest run of prompt tokens that the host decodes at a time, with one row of logits for each.
const HOST_BATCH: u64 = 2048;

/// What a run consisted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt, as the model saw it.
    pub prompt: u64,
    /// Tokens that were generated; the last of them was never fed back.
    pub generated: u64,
}

impl Tokens {
    /// Tokens that went through the layers.
    pub fn processed(self) -> u64 {
        self.prompt + self.generated.saturating_sub(1)
    }

    /// Rows of logits that were computed.
    pub fn logit_rows(self) -> u64 {
        self.prompt.div_ceil(HOST_BATCH) + self.generated.saturating_sub(1)
    }
}

/// The matmul work of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// FLOPs by weight.
    pub weights: BTreeMap<String, u64>,
    /// FLOPs of Q·Kᵀ and P·V.
    pub attention: u64,
}

/// The work of a run of this model.
pub fn of_run(model: &Gguf, tokens: Tokens) -> Work {
    let layers = model.number("block_count").unwrap_or(0);
    let has_output = has_output(model);
    let mut work = Work::default();
    for tensor in &model.tensors {
        let Some(rows) = rows_of(tensor, layers, has_output, tokens) else { continue };
        let experts = experts_per_token(model, tensor);
        let flops = [tensor.dims[0], tensor.dims[1], rows, experts].into_iter().fold(2, u64::saturating_mul);
        work.weights.insert(tensor.name.clone(), flops);
    }
    work.attention = attention(model, layers, tokens.processed());
    work
}

/// Whether the tensor is a weight that meets activations in a matmul.
pub fn is_matmul_weight(model: &Gguf, tensor: &Tensor) -> bool {
    let layers = model.number("block_count").unwrap_or(0);
    rows_of(tensor, layers, has_output(model), Tokens { prompt: 1, generated: 1 }).is_some()
}

/// Whether the output has a weight of its own; without one the token embedding is the output too.
fn has_output(model: &Gguf) -> bool {
    model.tensors.iter().any(|tensor| tensor.name == "output.weight")
}

/// How many rows of activations meet this tensor in a matmul; `None` if it is used in no matmul.
fn rows_of(tensor: &Tensor, layers: u64, has_output: bool, tokens: Tokens) -> Option<u64> {
    let name = tensor.name.strip_suffix(".weight")?;
    if tensor.dims.len() < 2 || tensor.dims[1] < 2 {
        return None;
    }
    // Tied embeddings are the output too.
    if name == "output" || (name == "token_embd" && !has_output) {
        return Some(tokens.logit_rows());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u64 = layer.parse().ok()?;
    if part.contains("norm") || part.contains("conv1d") {
        return None;
    }
    // The host drops the rows whose logits nobody asked for before the last layer's feed-forward part.
    let is_last = layer + 1 == layers;
    Some(if is_last && part.starts_with("ffn_") { tokens.logit_rows() } else { tokens.processed() })
}

/// How many of the experts in a tensor one token meets; 1 for a plain matrix.
fn experts_per_token(model: &Gguf, tensor: &Tensor) -> u64 {
    match tensor.dims.get(2) {
        Some(&all) if all > 1 => model.number("expert_used_count").unwrap_or(1).clamp(1, all),
        _ => 1,
    }
}

/// Two products with each earlier position and itself, per head.
fn attention(model: &Gguf, layers: u64, tokens: u64) -> u64 {
    let pairs = tokens.saturating_mul(tokens.saturating_add(1)) / 2;
    // A layer count is untrusted: no model has thousands.
    (0..layers.min(4096) as usize)
        .map(|layer| {
            let heads = model.number_of_layer("attention.head_count", layer).unwrap_or(0);
            let width = model.number("embedding_length").unwrap_or(0).checked_div(heads).unwrap_or(0);
            let keys = model.number("attention.key_length").unwrap_or(width);
            let values = model.number("attention.value_length").unwrap_or(width);
            [pairs, heads, keys.saturating_add(values)].into_iter().fold(2, u64::saturating_mul)
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::gguf::Value;

    /// Two layers, tied embeddings, 2 heads of 4.
    pub(crate) fn tiny_model() -> Gguf {
        let mut model = Gguf::default();
        let mut set = |key: &str, value: Value| model.metadata.insert(key.to_owned(), value);
        set("general.architecture", Value::Text("llama".to_owned()));
        set("llama.block_count", Value::Int(2));
        set("llama.embedding_length", Value::Int(8));
        set("llama.attention.head_count", Value::Int(2));
        for (name, dims) in [
            ("token_embd.weight", vec![8, 100]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_q.bias", vec![8]),
            ("blk.0.attn_q_norm.weight", vec![4, 2]),
            ("blk.0.ffn_up.weight", vec![8, 16]),
            ("blk.1.attn_q.weight", vec![8, 8]),
            ("blk.1.ffn_up.weight", vec![8, 16]),
        ] {
            model.tensors.push(Tensor { name: name.to_owned(), dims, dtype: 0, offset: 0 });
        }
        model
    }

    #[test]
    fn the_work_of_a_tiny_run_is_what_a_hand_computes() {
        // 5 tokens of prompt and 3 generated: 7 go through the layers, 3 rows of logits.
        let tokens = Tokens { prompt: 5, generated: 3 };
        assert_eq!((tokens.processed(), tokens.logit_rows()), (7, 3));
        let work = of_run(&tiny_model(), tokens);
        let expected = [
            ("blk.0.attn_q.weight", 2 * 8 * 8 * 7),
            ("blk.0.ffn_up.weight", 2 * 8 * 16 * 7),
            ("blk.1.attn_q.weight", 2 * 8 * 8 * 7),
            ("blk.1.ffn_up.weight", 2 * 8 * 16 * 3),
            ("token_embd.weight", 2 * 8 * 100 * 3),
        ];
        assert_eq!(work.weights, expected.map(|(name, flops)| (name.to_owned(), flops)).into());
        // Positions 1 to 7 make 28 pairs; 4 FLOPs for each of 4 elements of 2 heads, in 2 layers.
        assert_eq!(work.attention, 2 * 28 * 4 * 4 * 2);
    }

    #[test]
    fn an_output_of_its_own_takes_the_place_of_the_embeddings() {
        let mut model = tiny_model();
        model.tensors.push(Tensor { name: "output.weight".into(), dims: vec![8, 50], dtype: 0, offset: 0 });
        let work = of_run(&model, Tokens { prompt: 4, generated: 1 });
        assert_eq!(work.weights["output.weight"], 2 * 8 * 50);
        assert!(!work.weights.contains_key("token_embd.weight"));
    }

    #[test]
    fn only_the_experts_in_use_count() {
        let mut model = tiny_model();
        model.metadata.insert("llama.expert_used_count".into(), Value::Int(2));
        model.tensors.push(Tensor {
            name: "blk.0.ffn_up_exps.weight".into(),
            dims: vec![8, 16, 64],
            dtype: 0,
            offset: 0,
        });
        let work = of_run(&model, Tokens { prompt: 3, generated: 1 });
        assert_eq!(work.weights["blk.0.ffn_up_exps.weight"], 2 * 8 * 16 * 3 * 2);
    }

    #[test]
    fn absurd_numbers_saturate() {
        let mut model = tiny_model();
        model.metadata.insert("llama.block_count".into(), Value::Int(i128::from(u64::MAX)));
        model.metadata.insert("llama.attention.key_length".into(), Value::Int(i128::from(u64::MAX)));
        model.tensors[0].dims = vec![u64::MAX, u64::MAX];
        let work = of_run(&model, Tokens { prompt: u64::MAX / 2, generated: 9 });
        assert_eq!(work.weights["token_embd.weight"], u64::MAX);
        assert_eq!(work.attention, u64::MAX);
    }
}
