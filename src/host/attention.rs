//! A FLASH_ATTN_EXT node as plain numbers: whether it can be taken, and where its operands lie; and who does it.
//!
//! In ggml's words queries are src0 (ne = [head, tokens, heads, sequences], f32), keys src1 and values src2
//! ([head or value, positions, kv_heads, sequences]), the mask src3 ([positions, tokens, heads or 1, sequences or 1],
//! f16), sinks src4 ([heads], f32), and the result is [value, heads, tokens, sequences].

use std::sync::atomic::Ordering::Relaxed;
use std::sync::OnceLock;
use std::time::Instant;

use ggml_sys::sys::GGML_HOST_TYPE_F16;
use ggml_sys::RowReader;

use super::device::Device;
use super::host_copy::HostCosts;
use super::product::Operand;
use crate::engine::{Attention, Engine};
use crate::log;
use crate::names::value_of;
use crate::plan::AttentionShape;

/// Keys and values of these types are taken.
const CACHES: [&str; 2] = ["f16", "q8_0"];
/// The longest key or value; longer ones are no model's.
const ROW_MAX: usize = 4096;
/// What a node costs beside its work: the first scores have to be there before the CPU has anything to do, and waking a
/// thread takes about 0.1 ms (source: `docs/facts.md`).
const START_NS: f64 = 300_000.0;

/// `RKNPU_ATTENTION`: who does attention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Who {
    /// The NPU where it is believed to be faster than the host's CPU backend.
    #[default]
    Auto,
    /// The host's CPU backend.
    Cpu,
    /// The NPU, but for one token.
    Npu,
}

impl Who {
    /// The values, for error messages.
    pub const ALLOWED: &'static str = "auto, cpu or npu";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(&[("auto", Self::Auto), ("cpu", Self::Cpu), ("npu", Self::Npu)], name)
    }
}

/// Attention that the plugin can do.
#[derive(Clone, Copy)]
pub struct AttentionNode {
    /// Its extents.
    pub shape: AttentionShape,
    /// How keys and values are read, and whether their rows are f16.
    pub readers: [(RowReader, bool); 2],
    /// Elements from one token, head and sequence of the queries to the next.
    pub query_strides: [usize; 3],
    /// Bytes from one position, head and sequence of keys and of values to the next.
    pub cache_strides: [[usize; 3]; 2],
    /// Of the mask: elements from one token, head and sequence to the next, and heads and sequences.
    pub mask: Option<([usize; 3], [usize; 2])>,
}

/// The operands of a node.
#[derive(Clone, Copy)]
pub struct Operands {
    /// Q, K and V.
    pub matrices: [Operand; 3],
    /// What is added to the scores.
    pub mask: Option<Operand>,
    /// Scores without values.
    pub sinks: Option<Operand>,
    /// The result.
    pub out: Operand,
}

impl AttentionNode {
    /// Checks a node; `readers` are those of keys and values.
    ///
    /// # Errors
    /// Why the CPU is to do it.
    pub fn new(of: &Operands, readers: [Option<RowReader>; 2]) -> Result<Self, &'static str> {
        let [q, k, v] = of.matrices;
        let [head, tokens, heads, sequences] = q.ne;
        let [_, positions, kv_heads, _] = k.ne;
        let value = v.ne[0];
        if [head, value, heads, kv_heads, positions].contains(&0) {
            return Err("an extent is 0");
        }
        if k.ne[0] != head
            || k.ne[3] != sequences
            || v.ne[1..] != k.ne[1..]
            || heads % kv_heads != 0
            || of.out.ne != [value, heads, tokens, sequences]
        {
            return Err("the shapes do not fit together");
        }
        if head.max(value) > ROW_MAX {
            return Err("keys or values are too long");
        }
        if !q.is_f32() || q.nb[0] != 4 || q.nb[1..].iter().any(|nb| nb % 4 != 0) {
            return Err("the queries are not rows of f32");
        }
        if !of.out.is_f32() || of.out.nb[0] != 4 || !of.out.contiguous(value * 4) {
            return Err("the result is not contiguous f32");
        }
        let reader = |operand: &Operand, reader: Option<RowReader>| {
            let reader = reader.filter(|reader| CACHES.contains(&reader.name()));
            let reader = reader.ok_or("keys and values are neither f16 nor q8_0")?;
            reader.row_bytes(operand.ne[0]).ok_or("a row is no whole blocks")?;
            if operand.nb[0] != reader.block_bytes() {
                return Err("rows of keys or values are not contiguous");
            }
            Ok((reader, reader.name() == "f16"))
        };
        let readers = [reader(&k, readers[0])?, reader(&v, readers[1])?];
        let strides = |operand: &Operand, unit: usize| [1, 2, 3].map(|i| operand.nb[i] / unit);
        let mask = match of.mask {
            None => None,
            Some(mask) => {
                let [of_positions, of_tokens, of_heads, of_sequences] = mask.ne;
                if mask.ggml_type as u32 != GGML_HOST_TYPE_F16
                    || mask.nb[0] != 2
                    || mask.nb[1..].iter().any(|nb| nb % 2 != 0)
                {
                    return Err("the mask is not rows of f16");
                }
                if of_positions < positions
                    || of_tokens < tokens
                    || of_heads == 0
                    || of_sequences == 0
                    || heads % of_heads != 0
                    || sequences % of_sequences != 0
                {
                    return Err("the mask does not fit");
                }
                Some((strides(&mask, 2), [of_heads, of_sequences]))
            }
        };
        if let Some(sinks) = of.sinks {
            if !sinks.is_f32() || sinks.nb[0] != 4 || sinks.ne != [heads, 1, 1, 1] {
                return Err("the sinks are not an f32 for each head");
            }
        }
        let shape = AttentionShape { head, value, tokens, heads, kv_heads, sequences, positions };
        let (query_strides, cache_strides) = (strides(&q, 4), [strides(&k, 1), strides(&v, 1)]);
        Ok(Self { shape, readers, query_strides, cache_strides, mask })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.shape.tokens == 0 || self.shape.sequences == 0
    }

    /// Elements of the queries, their first to their last.
    pub fn query_elements(&self) -> usize {
        let AttentionShape { head, tokens, heads, sequences, .. } = self.shape;
        span([tokens, heads, sequences], self.query_strides, head)
    }

    /// Bytes of keys (0) or values (1), their first to their last.
    pub fn cache_bytes(&self, which: usize) -> usize {
        let AttentionShape { head, value, kv_heads, sequences, positions, .. } = self.shape;
        let (reader, _) = self.readers[which];
        let row = reader.row_bytes([head, value][which]).unwrap_or(0);
        span([positions, kv_heads, sequences], self.cache_strides[which], row)
    }

    /// Elements of the mask that are looked at, the first to the last.
    pub fn mask_elements(&self) -> usize {
        let AttentionShape { tokens, positions, .. } = self.shape;
        self.mask
            .map_or(0, |(strides, [heads, sequences])| span([tokens, heads, sequences], strides, positions))
    }

    /// Elements of the result.
    pub fn out_elements(&self) -> usize {
        let AttentionShape { value, tokens, heads, sequences, .. } = self.shape;
        value * tokens * heads * sequences
    }
}

/// From the first element of the first row to the last of the last, whose rows are `row` long.
fn span(extents: [usize; 3], strides: [usize; 3], row: usize) -> usize {
    extents.iter().zip(strides).map(|(extent, stride)| extent.saturating_sub(1) * stride).sum::<usize>() + row
}

/// What is known of the CPU: measured once, when it is first asked for.
#[derive(Default)]
pub struct AttentionCosts(OnceLock<Option<Costs>>);

/// Fewer tokens are left to the CPU by `auto`. llama.cpp asks once who would do attention of one token of each sequence, and
/// without any of a model's layers being on a device it turns it off where that is not the CPU.
const FEW_TOKENS: usize = 64;

/// What the CPU takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// ns of the host's CPU backend for a multiplication or an addition of attention.
    host_ns: f64,
    /// The same in a product by f16.
    pub product_ns: f64,
    /// ns of ours for a score that becomes a weight, beside the NPU.
    weigh_ns: f64,
}

impl Device {
    /// Whether the NPU may do attention of so many tokens at all.
    pub(super) fn may_attend(&self, tokens: usize) -> bool {
        // One token's keys and values are read once: nothing is gained by packing them first.
        let few = match self.attention {
            Who::Auto => FEW_TOKENS,
            Who::Npu => 2,
            Who::Cpu => return false,
        };
        tokens >= few && !self.given_up.load(Relaxed)
    }

    /// Whether the NPU is to do attention of that shape; the same answer for the same shape as long as the process lives.
    pub fn attends(&self, node: &AttentionNode) -> bool {
        if !self.may_attend(node.shape.tokens) {
            return false;
        }
        let engine = self.engine.lock();
        if !engine.can_attend() {
            return false;
        }
        if self.attention == Who::Npu {
            return true;
        }
        let Some((_, npu_ns)) = engine.attention_plan(&node.shape) else { return false };
        let Some(costs) = self.attention_costs(&engine) else { return false };
        let AttentionShape { tokens, heads, sequences, positions, .. } = node.shape;
        let scores = (tokens * heads * sequences * positions) as f64;
        let npu_ns = npu_ns.max(scores * costs.weigh_ns) + START_NS;
        npu_ns < node.shape.flops() as f64 * costs.host_ns
    }

    /// What the CPU takes, measured when it is first asked for; `None` where the host's cannot be measured.
    pub(super) fn attention_costs(&self, engine: &Engine) -> Option<Costs> {
        *self.attention_costs.0.get_or_init(|| {
            let weigh_ns = engine.time_weighing();
            let HostCosts { attention_ns: host_ns, product_ns } = self.kernels.costs(engine.threads())?;
            log!(
                Debug,
                "the host's CPU backend does {:.1} GFLOP/s of attention and {:.1} of products by f16; {weigh_ns:.2} ns of the \
                 CPU for a score beside the NPU",
                1.0 / host_ns,
                1.0 / product_ns
            );
            Some(Costs { host_ns, product_ns, weigh_ns })
        })
    }

    /// Does attention; false when the CPU is to do it, which is then counted.
    pub fn attend(&self, name: &str, mut attention: Attention) -> bool {
        let started = Instant::now();
        let flops = attention.shape.flops();
        let done = !self.given_up.load(Relaxed) && {
            let mut engine = self.engine.lock();
            match engine.attend(&mut attention) {
                Ok(done) => {
                    self.failures.store(0, Relaxed);
                    if !done {
                        log!(Debug, "the CPU does {name}: an operand holds infinities or NaNs");
                    }
                    done
                }
                Err(error) => {
                    self.note_failure(&mut engine, name, &error);
                    false
                }
            }
        };
        self.stats.attention.count(done, flops, started);
        done
    }
}
