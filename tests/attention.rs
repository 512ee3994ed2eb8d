//! Attention inside the real host, in this process: against an f64 oracle, with lengths that no piece fits, and with
//! operands that are no numbers.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use ggml::{free, host, nmse, numbers, Context, Ggml, Tensor, F16, F32};
use ggml_sys::sys;
use half::f16;

const Q8_0: i32 = 8;

/// Extents of a node, and what is done to its scores.
#[derive(Debug, Clone, Copy)]
struct Case {
    head: usize,
    value: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    sequences: usize,
    positions: usize,
    masked: bool,
    sinks: bool,
    max_bias: f32,
    softcap: f32,
    cache: i32,
}

const CASE: Case = Case {
    head: 64,
    value: 64,
    tokens: 20,
    heads: 4,
    kv_heads: 2,
    sequences: 1,
    positions: 96,
    masked: true,
    sinks: false,
    max_bias: 0.0,
    softcap: 0.0,
    cache: F16,
};

/// The operands' values, as the cache holds them.
struct Values {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mask: Vec<f32>,
    sinks: Vec<f32>,
}

impl Values {
    /// Each token sees the positions up to its own, the last token all of them.
    fn new(case: &Case) -> Self {
        let Case { head, value, tokens, heads, kv_heads, sequences, positions, .. } = *case;
        let rounded = |values: Vec<f32>| values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect();
        let mask = (0..sequences * tokens * positions).map(|at| {
            let (token, position) = (at / positions % tokens, at % positions);
            if position + tokens > positions + token {
                f32::NEG_INFINITY
            } else {
                -((positions - position) as f32) / 64.0
            }
        });
        Self {
            q: numbers(1, sequences * heads * tokens * head).iter().map(|q| q * 8.0).collect(),
            k: rounded(numbers(2, sequences * kv_heads * positions * head)),
            v: rounded(numbers(3, sequences * kv_heads * positions * value)),
            mask: rounded(mask.collect()),
            sinks: numbers(4, heads).iter().map(|sink| sink * 4.0).collect(),
        }
    }
}

/// softmax(cap(Q·Kᵀ·scale) + slope·mask) · V by definition, in f64; [value, heads, tokens, sequences].
fn oracle(case: &Case, values: &Values) -> Vec<f64> {
    let Case { head, value, tokens, heads, kv_heads, sequences, positions, .. } = *case;
    let scale = 1.0 / (head as f64).sqrt();
    let mut out = Vec::new();
    for (sequence, token, of_head) in
        (0..sequences * tokens * heads).map(|at| (at / heads / tokens, at / heads % tokens, at % heads))
    {
        let kv = sequence * kv_heads + of_head / (heads / kv_heads);
        let q = &values.q[((sequence * heads + of_head) * tokens + token) * head..][..head];
        let slope = slope(of_head, heads, case.max_bias.into());
        let mut scores: Vec<f64> = (0..positions)
            .map(|position| {
                let k = &values.k[(kv * positions + position) * head..][..head];
                let mut score =
                    q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale;
                if case.softcap > 0.0 {
                    let cap = f64::from(case.softcap);
                    score = cap * (score / cap).tanh();
                }
                if case.masked {
                    score +=
                        slope * f64::from(values.mask[(sequence * tokens + token) * positions + position]);
                }
                score
            })
            .collect();
        if case.sinks {
            scores.push(values.sinks[of_head].into());
        }
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        for i in 0..value {
            let v = |position: usize| f64::from(values.v[(kv * positions + position) * value + i]);
            let weighed = (0..positions).map(|position| (scores[position] - most).exp() * v(position));
            // A row of which nothing is seen is zeros.
            out.push(if most == f64::NEG_INFINITY { 0.0 } else { weighed.sum::<f64>() / sum });
        }
    }
    out
}

/// ALiBi's slope of a head.
fn slope(head: usize, heads: usize, max_bias: f64) -> f64 {
    if max_bias == 0.0 {
        return 1.0;
    }
    let whole = 2f64.powi(heads.ilog2() as i32);
    let (base, power) = if (head as f64) < whole {
        (max_bias, head as f64 + 1.0)
    } else {
        (max_bias / 2.0, 2.0 * (head as f64 - whole) + 1.0)
    };
    2f64.powf(-base / whole * power)
}

/// A number among the operands.
type Place = fn(&mut Values) -> &mut f32;

/// A node in a graph of its own.
struct Node<'a> {
    ggml: &'a Ggml,
    backend: sys::ggml_backend_t,
    context: Context,
    buffer: sys::ggml_backend_buffer_t,
    tensors: [Tensor; 5],
    out: Tensor,
    graph: *mut sys::ggml_cgraph,
    case: Case,
}

impl<'a> Node<'a> {
    /// `None` where the plugin leaves it to the CPU.
    fn new(ggml: &'a Ggml, case: &Case) -> Option<Self> {
        let node = Self::on(ggml, case, ggml.backend());
        // SAFETY: a live device and a live tensor.
        unsafe { (ggml.ggml_backend_dev_supports_op)(ggml.device(), node.out) }.then_some(node)
    }

    /// On `backend`, which it then owns.
    fn on(ggml: &'a Ggml, case: &Case, backend: sys::ggml_backend_t) -> Self {
        let Case { head, value, tokens, heads, kv_heads, sequences, positions, cache, .. } = *case;
        let context = ggml.context();
        let tensor = |kind: i32, ne: [usize; 4]| {
            let [a, b, c, d] = ne.map(|extent| extent as i64);
            // SAFETY: a live context.
            unsafe { (ggml.ggml_new_tensor_4d)(context, kind, a, b, c, d) }
        };
        let null = std::ptr::null_mut();
        // SAFETY: the host's functions on the host's live objects, as its headers say.
        unsafe {
            let q = tensor(F32, [head, tokens, heads, sequences]);
            let k = tensor(cache, [head, positions, kv_heads, sequences]);
            let v = tensor(cache, [value, positions, kv_heads, sequences]);
            let mask = if case.masked { tensor(F16, [positions, tokens, 1, sequences]) } else { null };
            let sinks = if case.sinks { tensor(F32, [heads, 1, 1, 1]) } else { null };
            let scale = 1.0 / (head as f32).sqrt();
            let out = (ggml.ggml_flash_attn_ext)(context, q, k, v, mask, scale, case.max_bias, case.softcap);
            (ggml.ggml_flash_attn_ext_add_sinks)(out, sinks);
            let graph = (ggml.ggml_new_graph)(context);
            (ggml.ggml_build_forward_expand)(graph, out);
            let buffer = ggml.ours(context);
            let tensors = [q, k, v, mask, sinks];
            Self { ggml, backend, context, buffer, tensors, out, graph, case: *case }
        }
    }

    fn run(&self, values: &Values) -> Vec<f32> {
        let Case { head, value, tokens, heads, sequences, positions, .. } = self.case;
        let [q, k, v, mask, sinks] = self.tensors;
        let Values { q: of_q, k: of_k, v: of_v, mask: of_mask, sinks: of_sinks } = values;
        for (tensor, row, values) in [
            (q, head, of_q),
            (k, head, of_k),
            (v, value, of_v),
            (mask, positions, of_mask),
            (sinks, heads, of_sinks),
        ] {
            if !tensor.is_null() {
                self.ggml.set(tensor, row, values);
            }
        }
        let mut out = vec![0f32; value * heads * tokens * sequences];
        // SAFETY: a live graph; the tensor has as many floats.
        unsafe {
            assert_eq!((self.ggml.ggml_backend_graph_compute)(self.backend, self.graph), 0);
            (self.ggml.ggml_backend_tensor_get)(self.out, out.as_mut_ptr().cast(), 0, out.len() * 4);
        }
        out
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let null = std::ptr::null_mut();
        free(self.ggml, [self.buffer, null], [self.context, std::ptr::null_mut()], self.backend);
    }
}

/// The host, with attention on the NPU.
fn npu(test: &str) -> Option<&'static Ggml> {
    std::env::set_var("RKNPU_ATTENTION", "npu");
    host(test)
}

/// The error of f16 operands, or of a q8_0 cache beside its own values.
fn check(ggml: &Ggml, case: &Case) {
    let node = Node::new(ggml, case).unwrap_or_else(|| panic!("the plugin takes {case:?}"));
    let values = Values::new(case);
    let (got, want) = (node.run(&values), oracle(case, &values));
    let limit = if case.cache == Q8_0 { 2e-4 } else { 2e-6 };
    let error = nmse(&got, &want);
    assert!(error < limit, "{case:?}: {error:e}, expected below {limit:e}");
}

#[test]
fn attention_is_what_it_is_by_definition() {
    let Some(ggml) = npu("attention is what it is by definition") else { return };
    for case in [
        CASE,
        Case { masked: false, ..CASE },
        Case { cache: Q8_0, ..CASE },
        Case { sinks: true, ..CASE },
        Case { softcap: 5.0, ..CASE },
        Case { softcap: 2.0, masked: false, sinks: true, ..CASE },
        Case { max_bias: 8.0, heads: 6, kv_heads: 6, ..CASE },
        Case { sequences: 3, tokens: 7, ..CASE },
        // Head sizes that no alignment fits, alike and not.
        Case { head: 33, value: 7, ..CASE },
        Case { head: 192, value: 128, ..CASE },
        // One head of the cache for all, more heads than rows of a tile, an odd group.
        Case { heads: 8, kv_heads: 1, ..CASE },
        Case { heads: 71, kv_heads: 1, tokens: 3, ..CASE },
        Case { heads: 9, kv_heads: 3, tokens: 100, positions: 300, ..CASE },
        // Several pieces of several lengths, several tiles, several bands.
        Case { positions: 2 * 2048 + 1024 + 77, tokens: 130, ..CASE },
        Case { positions: 4500, tokens: 4400, heads: 1, kv_heads: 1, head: 32, value: 16, ..CASE },
        Case { positions: 1, tokens: 2, masked: false, ..CASE },
    ] {
        check(ggml, &case);
    }
}

#[test]
fn a_row_of_which_nothing_is_seen_is_zeros() {
    let Some(ggml) = npu("a row of which nothing is seen is zeros") else { return };
    for sinks in [false, true] {
        let case = Case { sinks, positions: 5000, ..CASE };
        let node = Node::new(ggml, &case).expect("the plugin takes it");
        let mut values = Values::new(&case);
        // All of two tokens, and the first pieces of all others.
        for token in 0..case.tokens {
            let row = &mut values.mask[token * case.positions..][..case.positions];
            let hidden = if [3, 4].contains(&token) { case.positions } else { 4096 };
            row[..hidden].fill(f32::NEG_INFINITY);
        }
        let (got, want) = (node.run(&values), oracle(&case, &values));
        assert!(nmse(&got, &want) < 2e-6);
        let rows = case.heads * case.value;
        assert!(got[3 * rows..5 * rows].iter().all(|value| *value == 0.0));
        values.mask.fill(f32::NEG_INFINITY);
        assert!(node.run(&values).iter().all(|value| *value == 0.0));
    }
}

#[test]
fn infinities_and_nans_are_as_on_the_cpu() {
    let Some(ggml) = npu("infinities and NaNs are as on the CPU") else { return };
    // SAFETY: a number of a type, and no parameters.
    let cpu = unsafe { (ggml.ggml_backend_init_by_type)(0, std::ptr::null()) };
    let node = Node::new(ggml, &CASE).expect("the plugin takes it");
    let of_cpu = Node::on(ggml, &CASE, cpu);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let spoil: [(&str, Place); 3] = [
            ("a query", |values| &mut values.q[5 * CASE.head]),
            // Of the last position, which only the last token sees.
            ("a key", |values| &mut values.k[(CASE.positions - 1) * CASE.head]),
            ("a value", |values| &mut values.v[(CASE.positions - 1) * CASE.value]),
        ];
        for (what, place) in spoil {
            let mut values = Values::new(&CASE);
            *place(&mut values) = bad;
            let (got, want) = (node.run(&values), of_cpu.run(&values));
            let same = |(got, want): (&f32, &f32)| got == want || got.is_nan() && want.is_nan();
            assert!(got.iter().zip(&want).all(same), "{bad} in {what}");
            assert!(want.iter().any(|value| value.is_finite()));
        }
    }
    // Numbers again.
    check(ggml, &CASE);
}

#[test]
fn what_the_npu_does_not_do_is_left_to_the_cpu() {
    let Some(ggml) = npu("what the NPU does not do is left to the CPU") else { return };
    assert!(Node::new(ggml, &Case { tokens: 1, ..CASE }).is_none(), "one token");
    assert!(Node::new(ggml, &Case { cache: F32, ..CASE }).is_none(), "a cache of f32");
}

/// A prompt of several batches, whose cache grows over pieces and batches, once and three times: nothing is made after the
/// first. Runs are paced, and compute nothing.
#[test]
fn contexts_descriptors_and_memory_stay_what_the_first_prompt_took() {
    let Some(lab) = common::lab("contexts, descriptors and memory stay what the first prompt took") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let took = |times: &str| {
        let path = folder.path().join(times);
        let mut bench = lab.npu("llama-bench", "rk3588");
        bench.arg("-m").arg(lab.model("F16")).args([
            "-fa",
            "on",
            "-p",
            "2500",
            "-n",
            "0",
            "-t",
            "2",
            "--no-warmup",
        ]);
        bench.args(["-r", times]).env("RKNPU_ATTENTION", "npu").env("RKNPU_EMU_PACE", "1");
        common::output(bench.env("RKNPU_PROBE", "off").env("RKNPU_REPORT", &path));
        let report = common::report(&path);
        let nodes = report["attention"]["nodes"].as_u64().unwrap();
        (
            ["contexts", "contexts_created", "fds", "npu_bytes", "threads_created"]
                .map(|name| report[name].clone()),
            nodes,
        )
    };
    let (once, often) = (took("1"), took("3"));
    assert_eq!(once.0, often.0);
    assert!(once.1 >= 30 * 5 && often.1 == 3 * once.1, "{} and {} nodes of attention", once.1, often.1);
}
