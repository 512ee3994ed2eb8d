//! A row from what was measured: differences of processes, so that first uses, set-up and conversion are not in them.

use std::collections::{BTreeMap, HashMap};

use super::best::{Product, Search};
use super::figures::Plugin;
use super::host::Ran;
use super::measure::{Measured, PROMPT, REPETITIONS, SMALL, SMALLS, TOKENS};
use super::rows::Row;
use crate::error::{Error, Result};

/// What three cores draw from memory at least, published: bytes a ns.
pub const BANDWIDTH: f64 = 26.6;

/// The stages of the plugin's work that are held against copying.
const STAGES: [&str; 4] = ["compare_ns", "pack_ns", "sync_ns", "scale_ns"];

/// The row, without the names of model and type. `bytes_per_ns` is what this machine copies.
///
/// # Errors
/// A chip that is not known, or a prompt of which nothing ran on the NPU.
pub fn row(measured: &Measured, bytes_per_ns: f64) -> Result<Row> {
    let Measured { prompts, tokens, small, loads, without } = measured;
    let soc = prompts[1].emulator.soc.clone();
    let search = Search::on(&soc)
        .ok_or_else(|| Error::Refused(format!("the emulator's report is of an unknown chip, {soc:?}")))?;
    let npu_ns = |ran: &Ran| Some(ran.emulator.any_core_busy_ns);
    let prefill_npu_ns = difference(prompts, f64::from(REPETITIONS - 1), npu_ns).filter(|ns| *ns > 0.0);
    let Some(prefill_npu_ns) = prefill_npu_ns else {
        return Err(Error::Refused("no run of the prompt reached the NPU: nothing to measure".to_owned()));
    };
    let bound = bound(prompts, &search);

    let count = f64::from(TOKENS * (REPETITIONS - 1));
    let decode_npu_ns = difference(tokens, count, npu_ns).unwrap_or(0.0);
    let decode_total_ns = difference(tokens, count, |ran| Some(ran.emulator.total_ns)).unwrap_or(0.0);
    let weight_bytes = decoded_bytes(tokens);
    let share = |ns: f64| (ns > 0.0 && weight_bytes > 0.0).then(|| weight_bytes / BANDWIDTH / ns);
    let ratio = |ran: &Ran| {
        let ns = ran.emulator.any_core_busy_ns / f64::from(SMALLS);
        (decode_npu_ns > 0.0 && ns > 0.0).then(|| ns / decode_npu_ns)
    };

    let prompt = |name: &str| difference(prompts, f64::from(REPETITIONS - 1), |ran| ran.plugin.number(name));
    let per_token = |name: &str| difference(tokens, count, |ran| ran.plugin.number(name));
    let stages: Option<f64> = STAGES.iter().map(|name| prompt(name)).sum();
    let link = prompt("link_ns");
    let both = |a: &str, c: &str| prompt(a).zip(prompt(c)).map(|(a, c)| a + c);
    let matrix_bytes = both("a_bytes", "c_bytes");
    let passes = |bytes: Option<f64>| {
        let copied = stages.zip(bytes.filter(|bytes| *bytes > 0.0));
        copied.map(|(ns, bytes)| ns / (bytes / bytes_per_ns))
    };
    let (wait, busy) = (prompt("wait_ns"), prompt("busy_ns"));
    let whole = |ran: &Ran, name: &str| ran.plugin.number(name).map(|number| number as u64);
    let memory = prompts[1].memory;
    let npu_bytes = whole(&prompts[1], "npu_bytes");
    let own = memory.anonymous.saturating_sub(without.memory.anonymous);
    let held = npu_bytes.filter(|_| weight_bytes > 0.0).map(|npu_bytes| (npu_bytes + own) as f64);

    let load = |ran: &[Ran]| median(&ran.iter().map(|ran| ran.wall_ns).collect::<Vec<_>>());
    let load_ns = load(&loads[0]).zip(load(&loads[1]));

    Ok(Row {
        soc,
        load_ns: load_ns.map(|(plugin, _)| plugin),
        load_ratio: load_ns.map(|(plugin, cpu)| plugin / cpu),
        prefill_tokens: PROMPT,
        prefill_npu_ns,
        prefill_roofline_share: bound.map(|bound| bound.best_ns / prefill_npu_ns),
        prefill_together_share: bound.map(|bound| bound.together_ns / prefill_npu_ns),
        prefill_peak_share: bound.map(|bound| bound.peak_ns / prefill_npu_ns),
        prefill_paced_tokens_per_second: per_second(&prompts[1], PROMPT),
        decode_npu_ns,
        decode_total_ns,
        decode_bandwidth_share: share(decode_npu_ns),
        decode_bandwidth_share_with_calls: share(decode_total_ns),
        decode_paced_tokens_per_second: per_second(&tokens[1], TOKENS),
        rows_ratio: SMALL.iter().zip(small).filter_map(|(rows, ran)| Some((*rows, ratio(ran)?))).collect(),
        compare_ns: prompt("compare_ns"),
        pack_ns: prompt("pack_ns"),
        sync_ns: prompt("sync_ns"),
        scale_ns: prompt("scale_ns"),
        link_ns: link,
        cpu_over_npu: stages.map(|ns| (ns + link.unwrap_or(0.0)) / prefill_npu_ns),
        wait_ns: wait,
        busy_ns: busy,
        activation_bytes: prompt("activation_bytes"),
        result_bytes: prompt("result_bytes"),
        memcpy_gb_per_second: bytes_per_ns,
        matrix_bytes,
        host_memcpy_passes: passes(both("activation_bytes", "result_bytes")),
        host_memcpy_passes_of_matrices: passes(matrix_bytes),
        npu_wait_share: wait
            .zip(busy)
            .filter(|(wait, busy)| wait + busy > 0.0)
            .map(|(wait, busy)| wait / (wait + busy)),
        allocs_per_token: allocations_per_token(&tokens[1].plugin),
        threads_per_token: per_token("threads_created"),
        contexts_per_token: per_token("contexts_created"),
        contexts: whole(&prompts[1], "contexts"),
        fds: whole(&prompts[1], "fds"),
        npu_bytes,
        weight_bytes: weight_bytes as u64,
        rss_peak_bytes: memory.peak,
        rss_anonymous_bytes: memory.anonymous,
        rss_file_bytes: memory.files,
        rss_shared_bytes: memory.shared,
        rss_anonymous_bytes_without: without.memory.anonymous,
        resident_over_weights: held.map(|held| held / weight_bytes - 1.0),
        pacing: prompts[1].emulator.pacing().zip(tokens[1].emulator.pacing()).map(|(a, b)| a.max(b)),
        ..Row::default()
    })
}

/// (figure of the second − figure of the first) / `count`.
fn difference(ran: &[Ran; 2], count: f64, of: impl Fn(&Ran) -> Option<f64>) -> Option<f64> {
    Some((of(&ran[1])? - of(&ran[0])?) / count)
}

/// Allocations a token, of the later graphs of all that were generated.
fn allocations_per_token(plugin: &Plugin) -> Option<f64> {
    let a_graph =
        plugin.number("late_allocations")? / plugin.number("late_graphs").filter(|late| *late > 0.0)?;
    Some(a_graph * plugin.number("graphs")? / f64::from(TOKENS * REPETITIONS))
}

/// Tokens a second by the wall clock, without the first repetition, in which weights are converted.
fn per_second(ran: &Ran, tokens: u32) -> Option<f64> {
    median(ran.samples_ns.get(1..)?).map(|ns| 1e9 * f64::from(tokens) / ns)
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some((sorted.get(sorted.len().checked_sub(1)? / 2)? + sorted.get(sorted.len() / 2)?) / 2.0)
}

/// The least that a prompt's products could take.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound {
    best_ns: f64,
    /// The same if products of the same rows are run as one where that is shorter.
    together_ns: f64,
    peak_ns: f64,
}

/// The best schedule of each product, added up. A weight's rows are those that it really had (the last layer and the
/// output have few), by its FLOPs; `None` if one has a pipeline or a type that the search does not know.
fn bound(prompts: &[Ran; 2], search: &Search) -> Option<Bound> {
    let first: HashMap<String, f64> =
        prompts[0].plugin.weights().into_iter().map(|weight| (weight.name, weight.npu_flops)).collect();
    let mut known: HashMap<Product, f64> = HashMap::new();
    let mut best = |product: Product| match known.get(&product) {
        Some(ns) => Some(*ns),
        None => {
            let ns = search.best(product)?.ns;
            known.insert(product, ns);
            Some(ns)
        }
    };
    let mut sum = Bound { best_ns: 0.0, together_ns: 0.0, peak_ns: 0.0 };
    let mut neighbours: BTreeMap<(String, Product), Vec<Product>> = BTreeMap::new();
    for weight in prompts[1].plugin.weights() {
        let flops = weight.npu_flops - first.get(&weight.name).copied().unwrap_or(0.0);
        let rows = flops / f64::from(REPETITIONS - 1) / (2.0 * weight.k as f64 * weight.n as f64);
        let rows = rows.round() as usize;
        if rows == 0 {
            continue;
        }
        let product = Product::of(&weight.pipeline, rows, (weight.k, weight.n))?;
        sum.best_ns += best(product)?;
        sum.peak_ns += search.peak_ns(product)?;
        neighbours.entry((same_rows(&weight.name), Product { n: 0, ..product })).or_default().push(product);
    }
    for products in neighbours.into_values() {
        let one = |some: &[Product]| Product { n: some.iter().map(|product| product.n).sum(), ..some[0] };
        // Cut in any places, of each of which one bit tells.
        let cuts = 0..1usize << (products.len() - 1);
        let ns = cuts.map(|cuts| {
            let mut parts = vec![Vec::new()];
            for (at, product) in products.iter().enumerate() {
                if at > 0 && cuts >> (at - 1) & 1 == 1 {
                    parts.push(Vec::new());
                }
                parts.last_mut()?.push(*product);
            }
            parts.iter().map(|part| best(one(part))).sum::<Option<f64>>()
        });
        sum.together_ns += ns.collect::<Option<Vec<f64>>>()?.into_iter().fold(f64::INFINITY, f64::min);
    }
    (sum.best_ns > 0.0).then_some(sum)
}

/// What the names of a layer's weights with the same rows have in common; of any other its own name.
fn same_rows(name: &str) -> String {
    for (common, of) in
        [("attn_qkv", &["attn_q.", "attn_k.", "attn_v."][..]), ("ffn_in", &["ffn_gate.", "ffn_up."])]
    {
        if let Some(own) = of.iter().find(|own| name.contains(*own)) {
            return name.replace(own, common);
        }
    }
    name.to_owned()
}

/// Bytes of the copies of all weights that take part in a token.
fn decoded_bytes(tokens: &[Ran; 2]) -> f64 {
    let used = |weight: &super::figures::Weight| weight.npu_flops > 0.0;
    tokens[1].plugin.weights().iter().filter(|weight| used(weight)).map(|weight| weight.npu_bytes).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value};

    use super::super::figures::{Core, Emulator};
    use super::super::host::Memory;
    use super::*;

    /// A process in which the NPU was busy for `busy_ns`, with these entries in the plugin's report.
    fn ran(busy_ns: f64, samples_ns: &[f64], plugin: Value) -> Ran {
        let core = Core { busy_ns, paced_busy_ns: 1.1 * busy_ns };
        let emulator = Emulator {
            soc: "rk3588".into(),
            paced: true,
            total_ns: 2.0 * busy_ns,
            any_core_busy_ns: busy_ns,
            cores: vec![core],
        };
        let memory = Memory { peak: 4_000_000, anonymous: 300_000, ..Memory::default() };
        Ran { samples_ns: samples_ns.to_vec(), emulator, plugin: Plugin(plugin), memory, wall_ns: 0.0 }
    }

    /// One weight of 1024 × 1024 in W8A8 that met so many rows.
    fn weight(rows: u64) -> Value {
        json!({"name": "w", "k": 1024, "n": 1024, "pipeline": "W8A8", "npu_bytes": 1 << 20, "npu_flops": rows << 21})
    }

    fn measured() -> Measured {
        let stages = |times: u64| {
            json!({"tensors": [weight(512 * times)], "fds": 4, "npu_bytes": 2_000_000, "engine": {
                "compare_ns": 100 * times, "pack_ns": 50 * times, "sync_ns": 30 * times, "scale_ns": 20 * times, "link_ns": 300 * times,
                "wait_ns": 10 * times, "busy_ns": 90 * times, "activation_bytes": 600 * times, "result_bytes": 400 * times,
                "a_bytes": 150 * times, "c_bytes": 850 * 2 * times + 150 * times
            }})
        };
        let tokens = |count: u64| json!({"tensors": [weight(count)], "graphs": 5 * count, "late_graphs": 20, "late_allocations": 12});
        Measured {
            prompts: [ran(1e6, &[9.0], stages(1)), ran(4e6, &[9.0, 5e8, 5e8, 5e8], stages(4))],
            tokens: [ran(1e6, &[1e9], tokens(16)), ran(5.8e6, &[1e9, 1e9, 1.5e9, 2e9], tokens(64))],
            small: [0.8e6, 0.8e6, 1.6e6, 3.2e6].map(|ns| ran(ns, &[], json!({}))),
            loads: [[3.0, 9.0, 4.0], [2.0, 2.0, 8.0]]
                .map(|wall| wall.map(|wall_ns| Ran { wall_ns, ..Ran::default() }).into()),
            without: Ran { memory: Memory { anonymous: 202_848, ..Memory::default() }, ..Ran::default() },
        }
    }

    #[test]
    fn a_row_is_made_of_differences() {
        let row = row(&measured(), 10.0).unwrap();
        assert_eq!((row.prefill_npu_ns, row.decode_npu_ns, row.decode_total_ns), (1e6, 1e5, 2e5));
        let product = Product { code: 2, rows: 512, k: 1024, n: 1024 };
        let search = Search::on("rk3588").unwrap();
        assert_eq!(row.prefill_roofline_share, Some(search.best(product).unwrap().ns / 1e6));
        assert_eq!(row.prefill_together_share, row.prefill_roofline_share, "it is alone");
        assert_eq!(row.prefill_peak_share, Some(product.operations() / 6150.0 / 1e6));
        assert_eq!(row.prefill_paced_tokens_per_second, Some(1024.0));
        assert_eq!(row.decode_paced_tokens_per_second, Some(16.0 / 1.5));
        assert_eq!(row.decode_bandwidth_share, Some(1_048_576.0 / 26.6 / 1e5));
        assert_eq!(row.rows_ratio.into_iter().collect::<Vec<_>>(), [(2, 1.0), (4, 1.0), (8, 2.0), (16, 4.0)]);
        // 200 ns of stages; 1000 bytes take 100 ns to copy.
        assert_eq!((row.host_memcpy_passes, row.npu_wait_share), (Some(2.0), Some(0.1)));
        assert_eq!(row.host_memcpy_passes_of_matrices, Some(1.0));
        // With the 300 ns between products.
        assert_eq!((row.link_ns, row.cpu_over_npu), (Some(300.0), Some(5e-4)));
        assert_eq!((row.allocs_per_token, row.threads_per_token), (Some(3.0), None));
        assert_eq!((row.fds, row.contexts, row.npu_bytes), (Some(4), None, Some(2_000_000)));
        // 2 000 000 bytes and the 97 152 that the host has more: twice the weight.
        assert_eq!(row.resident_over_weights, Some(1.0));
        assert_eq!((row.load_ns, row.load_ratio), (Some(4.0), Some(2.0)));
        assert!(row.pacing.is_some_and(|pacing| (pacing - 1.1).abs() < 1e-9));
    }

    #[test]
    fn what_the_plugin_does_not_report_is_none_and_nothing_on_the_npu_an_error() {
        let mut bare = measured();
        for ran in bare.prompts.iter_mut().chain(&mut bare.tokens) {
            ran.plugin = Plugin(json!({}));
        }
        let row = super::row(&bare, 10.0).unwrap();
        assert_eq!((row.prefill_roofline_share, row.decode_bandwidth_share), (None, None));
        assert_eq!((row.host_memcpy_passes, row.npu_wait_share, row.fds), (None, None, None));
        assert_eq!((row.host_memcpy_passes_of_matrices, row.cpu_over_npu), (None, None));
        bare.prompts[1] = bare.prompts[0].clone();
        assert!(super::row(&bare, 10.0).unwrap_err().to_string().contains("nothing to measure"));
        bare.prompts[1].emulator.soc = "rk1".into();
        assert!(super::row(&bare, 10.0).unwrap_err().to_string().contains("\"rk1\""));
    }

    #[test]
    fn products_of_the_same_rows_are_one_where_that_is_shorter() {
        let weight = |name: &str, n: u64, times: u64| json!({"name": name, "k": 576, "n": n, "pipeline": "W8A8", "npu_bytes": 1, "npu_flops": times * 512 * 2 * 576 * n});
        let tensors = |times: u64| {
            let names = [
                ("blk.3.attn_q.weight", 576),
                ("blk.3.attn_k.weight", 192),
                ("blk.4.attn_v.weight", 192),
                ("blk.3.ffn_up.weight", 64),
            ];
            ran(1.0, &[], json!({"tensors": names.map(|(name, n)| weight(name, n, times))}))
        };
        let search = Search::on("rk3588").unwrap();
        let bound = bound(&[tensors(1), tensors(u64::from(REPETITIONS))], &search).unwrap();
        let ns = |n: usize| search.best(Product { code: 2, rows: 512, k: 576, n }).unwrap().ns;
        let near = |got: f64, want: f64| (got - want).abs() < 1.0;
        assert!(near(bound.best_ns, ns(576) + 2.0 * ns(192) + ns(64)), "{bound:?}");
        // Q and K of a layer; V is another one's.
        assert!(ns(768) < ns(576) + ns(192));
        assert!(near(bound.together_ns, ns(768) + ns(192) + ns(64)), "{bound:?}");
    }

    #[test]
    fn the_median_is_the_middle_one_or_two() {
        assert_eq!(
            [&[][..], &[3.0], &[4.0, 1.0], &[9.0, 1.0, 2.0]].map(median),
            [None, Some(3.0), Some(2.5), Some(2.0)]
        );
    }
}
