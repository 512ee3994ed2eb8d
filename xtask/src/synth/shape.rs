//! The widths of models, as their authors publish them.

/// One model's widths, for the llama architecture. Dense ones tie the output to the token embedding; mixtures have a matrix
/// of their own for it, some of whose tokens are clearly likelier than others, see [`super::write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// How it is called here.
    pub name: &'static str,
    /// Layers.
    pub layers: u32,
    /// Elements of the residual stream.
    pub width: u32,
    /// Elements between up and down, of each expert if there are any.
    pub feed_forward: u32,
    /// Experts, and how many of them a token has; none in a dense model.
    pub experts: Option<(u32, u32)>,
    /// Attention heads.
    pub heads: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head: u32,
    /// Tokens.
    pub vocabulary: u32,
    /// Tokens of context.
    pub context: u32,
}

/// The matrix of the tokens' likelihoods, of models that have one for it.
pub const OUTPUT: &str = "output.weight";

/// All that can be asked for. Mixtures of experts are cut to as many layers as a small machine bears; the tiny ones are
/// for tests.
pub const SHAPES: [Shape; 7] = [
    Shape {
        name: "qwen2.5-1.5b",
        layers: 28,
        width: 1536,
        feed_forward: 8960,
        experts: None,
        heads: 12,
        kv_heads: 2,
        head: 128,
        vocabulary: 151_936,
        context: 32_768,
    },
    Shape {
        name: "gemma3-1b",
        layers: 26,
        width: 1152,
        feed_forward: 6912,
        experts: None,
        heads: 4,
        kv_heads: 1,
        head: 256,
        vocabulary: 262_144,
        context: 32_768,
    },
    Shape {
        name: "granite-350m",
        layers: 28,
        width: 1024,
        feed_forward: 2048,
        experts: None,
        heads: 16,
        kv_heads: 4,
        head: 64,
        vocabulary: 100_352,
        context: 32_768,
    },
    Shape {
        name: "lfm2-8b-a1b",
        layers: 6,
        width: 2048,
        feed_forward: 1792,
        experts: Some((32, 4)),
        heads: 32,
        kv_heads: 8,
        head: 64,
        vocabulary: 65_536,
        context: 32_768,
    },
    Shape {
        name: "qwen3-30b-a3b",
        layers: 2,
        width: 2048,
        feed_forward: 768,
        experts: Some((128, 8)),
        heads: 32,
        kv_heads: 4,
        head: 128,
        vocabulary: 151_936,
        context: 32_768,
    },
    Shape {
        name: "tiny",
        layers: 2,
        width: 256,
        feed_forward: 512,
        experts: None,
        heads: 4,
        kv_heads: 2,
        head: 64,
        vocabulary: 49_216,
        context: 2048,
    },
    Shape {
        name: "tiny-moe",
        layers: 2,
        width: 256,
        feed_forward: 128,
        experts: Some((8, 2)),
        heads: 4,
        kv_heads: 2,
        head: 64,
        vocabulary: 49_216,
        context: 2048,
    },
];

impl Shape {
    /// The shape of that name, in any case.
    ///
    /// # Errors
    /// A name of none, with those that there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        static ALL: [Shape; SHAPES.len()] = SHAPES;
        ALL.iter().find(|shape| shape.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|shape| shape.name).collect();
            format!("expected one of {}", names.join(", "))
        })
    }

    /// The same with at most that many layers.
    pub fn with_layers(&self, layers: Option<u32>) -> Self {
        Self { layers: self.layers.min(layers.unwrap_or(self.layers)), ..self.clone() }
    }

    /// Names and extents, innermost first, of all tensors, in the order of the file.
    pub fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let [width, wide] = [self.width, self.feed_forward].map(u64::from);
        let queries = u64::from(self.heads) * u64::from(self.head);
        let keys = u64::from(self.kv_heads) * u64::from(self.head);
        let mut all = vec![
            ("token_embd.weight".to_owned(), vec![width, self.vocabulary.into()]),
            ("output_norm.weight".to_owned(), vec![width]),
        ];
        if self.experts.is_some() {
            all.push((OUTPUT.to_owned(), vec![width, self.vocabulary.into()]));
        }
        for layer in 0..self.layers {
            let mut parts: Vec<(&str, Vec<u64>)> = vec![
                ("attn_norm", vec![width]),
                ("attn_q", vec![width, queries]),
                ("attn_k", vec![width, keys]),
                ("attn_v", vec![width, keys]),
                ("attn_output", vec![queries, width]),
                ("ffn_norm", vec![width]),
            ];
            match self.experts {
                None => parts.extend([
                    ("ffn_gate", vec![width, wide]),
                    ("ffn_up", vec![width, wide]),
                    ("ffn_down", vec![wide, width]),
                ]),
                Some((experts, _)) => {
                    let experts = u64::from(experts);
                    parts.extend([
                        ("ffn_gate_inp", vec![width, experts]),
                        ("ffn_gate_exps", vec![width, wide, experts]),
                        ("ffn_up_exps", vec![width, wide, experts]),
                        ("ffn_down_exps", vec![wide, width, experts]),
                    ]);
                }
            }
            all.extend(parts.into_iter().map(|(name, dims)| (format!("blk.{layer}.{name}.weight"), dims)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_about_those_of_the_originals() {
        let millions = |name: &str| {
            let tensors = Shape::named(name).unwrap().tensors();
            tensors.iter().map(|(_, dims)| dims.iter().product::<u64>()).sum::<u64>() / 1_000_000
        };
        // Published: 1.54 B, 1.0 B, 352 M.
        assert_eq!(["Qwen2.5-1.5B", "gemma3-1b", "granite-350m"].map(millions), [1543, 999, 352]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_list() {
        let error = Shape::named("llama").unwrap_err();
        assert_eq!(error, "expected one of qwen2.5-1.5b, gemma3-1b, granite-350m, lfm2-8b-a1b, qwen3-30b-a3b, tiny, tiny-moe");
    }
}
