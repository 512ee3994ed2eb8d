//! Products that follow from each other inside the real host, in this process: what tiles of rows give that go through all of
//! them is, to the bit, what the products give one by one, with what the host makes between them.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;
use std::path::Path;
use std::process::Command;

use ggml_sys::sys;

use ggml::{differ, free, host, numbers, read, Context, Ggml, Product, Tensor, F32};

const Q8_0: c_int = 8;
/// The host's number of a CPU.
const CPU: c_int = 0;
const EPS: f32 = 1e-5;
const SCALE: f32 = 0.37;

/// A layer from the end of its attention to the next one's.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Columns of what goes from layer to layer, of what is inside of a feed-forward block, and of K and V.
    width: usize,
    hidden: usize,
    narrow: usize,
    rows: usize,
    ggml_type: c_int,
    memory: Memory,
    /// Attention's results have a bias, and what the block adds a factor and a norm of its own.
    more: bool,
    /// Whether tiles of rows go through all of it.
    in_tiles: bool,
}

/// Where the host has what it computes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    /// Everything by itself.
    Apart,
    /// As llama.cpp has it: sums over their first source, norms over what nobody needs any more.
    Reused,
    /// Q is where the sum before the block was, one row further on.
    OverOtherRows,
    /// The norm after the block is where the one before it was, one row further on.
    NormsOverOtherRows,
}

/// Attention's results, the layer's input, and all weights.
struct Layer {
    attention: Vec<f32>,
    input: Vec<f32>,
    output: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    next: [Vec<f32>; 3],
    /// A factor for each column: of the norm before the block, after it, and of its results; and a bias.
    columns: [Vec<f32>; 4],
}

impl Layer {
    fn new(shape: &Shape) -> Self {
        let Shape { width, hidden, narrow, rows, .. } = *shape;
        let weight = |seed, k: usize, n: usize| numbers(seed, k * n);
        let mut attention = numbers(1, width * rows);
        // A row without a number, and one of zeros.
        attention[width + 7] = f32::NAN;
        attention[2 * width..3 * width].fill(0.0);
        Self {
            attention,
            input: numbers(2, width * rows),
            output: weight(3, width, width),
            gate: weight(4, width, hidden),
            up: weight(5, width, hidden),
            down: weight(6, hidden, width),
            next: [weight(7, width, width), weight(8, width, narrow), weight(9, width, narrow)],
            columns: [10, 11, 12, 13].map(|seed| numbers(seed, width)),
        }
    }
}

/// The sums of the layer, and Q, K and V of the next one.
type Results = Vec<Vec<f32>>;

/// All in one graph; and whether what is made of gate and up is in its place then.
fn as_a_whole(ggml: &Ggml, shape: &Shape, layer: &Layer) -> (Results, bool) {
    let Shape { width, hidden, narrow, rows, ggml_type, memory, more, .. } = *shape;
    let (contexts, backend) = ([ggml.context(), ggml.context()], ggml.backend());
    let tensor = |context, ggml_type, ne: [usize; 2]| {
        // SAFETY: a live context.
        unsafe { (ggml.ggml_new_tensor_4d)(context, ggml_type, ne[0] as i64, ne[1] as i64, 1, 1) }
    };
    // SAFETY: the host's functions on the host's live objects, as its headers say.
    unsafe {
        let weight = |n: usize, k: usize| (tensor(contexts[0], ggml_type, [k, n]), k);
        let weights = [
            weight(width, width),
            weight(hidden, width),
            weight(hidden, width),
            weight(width, hidden),
            weight(width, width),
            weight(narrow, width),
            weight(narrow, width),
        ];
        let columns = layer.columns.each_ref().map(|_| (tensor(contexts[0], F32, [width, 1]), width));
        let constant = ggml.weights(contexts[0], backend);
        let values = [&layer.output, &layer.gate, &layer.up, &layer.down].into_iter();
        let values = values.chain(&layer.next).chain(&layer.columns);
        for ((tensor, k), values) in weights.into_iter().chain(columns).zip(values) {
            ggml.set(tensor, k, values);
        }
        let [output, gate, up, down, q, k, v] = weights.map(|(tensor, ..)| tensor);
        let factors = columns.map(|(tensor, ..)| tensor);
        let context = contexts[1];
        let product = |weight, rows| (ggml.ggml_mul_mat)(context, weight, rows);
        let norm = |rows, factor| {
            let normed = (ggml.ggml_rms_norm)(context, rows, EPS);
            [normed, (ggml.ggml_mul)(context, normed, factor)]
        };
        let attention = tensor(context, F32, [width, rows]);
        // One row more, for what lies one row further on.
        let room = [(); 2].map(|()| tensor(context, F32, [width, rows + 1]));
        let input = tensor(context, F32, [width, rows]);
        let out = product(output, attention);
        let biased = if more { (ggml.ggml_add)(context, out, factors[3]) } else { out };
        let before = (ggml.ggml_add)(context, biased, input);
        let [normed, block_rows] = norm(before, factors[0]);
        let (gate, up) = (product(gate, block_rows), product(up, block_rows));
        let gated = (ggml.ggml_swiglu_split)(context, gate, up);
        let block = product(down, gated);
        let post = if more { norm(block, factors[2]) } else { [block, block] };
        let scaled = if more { (ggml.ggml_scale)(context, post[1], SCALE) } else { post[1] };
        let after = (ggml.ggml_add)(context, scaled, before);
        let [next_normed, next_rows] = norm(after, factors[1]);
        let next = [q, k, v].map(|weight| product(weight, next_rows));
        let graph = (ggml.ggml_new_graph)(context);
        next.into_iter().for_each(|node| (ggml.ggml_build_forward_expand)(graph, node));
        let compute = (ggml.ggml_backend_alloc_ctx_tensors)(context, backend);
        let over = |tensors: &[Tensor], place: Tensor| {
            tensors.iter().for_each(|tensor| (**tensor).data = (*place).data)
        };
        match memory {
            Memory::Apart => (),
            Memory::Reused => {
                over(&[biased, before], out);
                // The input is needed no more when it is summed.
                over(&[normed, block_rows], input);
                over(&[block, post[0], post[1], scaled, after], input);
                over(&[next_normed, next_rows], out);
                over(&[next[0]], attention);
                over(&[next[1]], gate);
            }
            Memory::OverOtherRows => {
                over(&[out, biased, before], room[0]);
                (*next[0]).data = (*room[0]).data.wrapping_byte_add(width * 4);
            }
            Memory::NormsOverOtherRows => {
                over(&[normed, block_rows], room[1]);
                let further_on = (*room[1]).data.wrapping_byte_add(width * 4);
                [next_normed, next_rows].iter().for_each(|tensor| (**tensor).data = further_on);
            }
        }
        let set = |tensor: Tensor, values: &[f32]| {
            (ggml.ggml_backend_tensor_set)(tensor, values.as_ptr().cast(), 0, values.len() * 4)
        };
        set(attention, &layer.attention);
        set(input, &layer.input);
        set(gated, &vec![f32::NAN; rows * hidden]);
        assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        let is_made = read(ggml, gated, rows * hidden).iter().any(|value| value.is_finite());
        let mut results: Results =
            next.iter().zip([width, narrow, narrow]).map(|(node, n)| read(ggml, *node, rows * n)).collect();
        if memory == Memory::Apart {
            results.extend([before, after].map(|node| read(ggml, node, rows * width)));
        }
        free(ggml, [constant, compute], contexts, backend);
        (results, is_made)
    }
}

/// What `make` makes of two matrices of `width` columns, or of a matrix and a row, by `backend`, which it then ends.
fn by(
    ggml: &Ggml,
    backend: sys::ggml_backend_t,
    width: usize,
    sources: [&[f32]; 2],
    make: impl Fn(Context, [Tensor; 2]) -> Tensor,
) -> Vec<f32> {
    let context = ggml.context();
    // SAFETY: the host's functions on the host's live objects, as its headers say.
    unsafe {
        let leaves = sources.map(|values| {
            (ggml.ggml_new_tensor_4d)(context, F32, width as i64, (values.len() / width) as i64, 1, 1)
        });
        let node = make(context, leaves);
        let graph = (ggml.ggml_new_graph)(context);
        (ggml.ggml_build_forward_expand)(graph, node);
        let buffer = (ggml.ggml_backend_alloc_ctx_tensors)(context, backend);
        for (leaf, values) in leaves.into_iter().zip(sources) {
            (ggml.ggml_backend_tensor_set)(leaf, values.as_ptr().cast(), 0, size_of_val(values));
        }
        assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        let made = read(ggml, node, sources[0].len());
        let nothing = (std::ptr::null_mut(), std::ptr::null_mut());
        free(ggml, [buffer, nothing.0], [context, nothing.1], backend);
        made
    }
}

/// One after the other: products by the plugin, all else by the host's CPU backend, but for the activation times the gate, in
/// which the plugin rounds otherwise (tests/feed_forward.rs).
fn one_by_one(ggml: &Ggml, shape: &Shape, layer: &Layer) -> Results {
    let Shape { width, hidden, rows, ggml_type, more, .. } = *shape;
    let product = |weight: &[f32], k: usize, x: &[f32]| {
        let product = Product::new(ggml, ggml.backend(), ggml_type, (k, weight.len() / k, rows));
        product.set_weight(weight);
        product.run(x)
    };
    // SAFETY: the host has a CPU.
    let cpu = || unsafe { (ggml.ggml_backend_init_by_type)(CPU, std::ptr::null()) };
    let add = |one: &[f32], other: &[f32]| {
        // SAFETY: live tensors of a live context.
        by(ggml, cpu(), width, [one, other], |context, [one, other]| unsafe {
            (ggml.ggml_add)(context, one, other)
        })
    };
    let norm = |rows: &[f32], factor: &[f32]| {
        // SAFETY: as above.
        by(ggml, cpu(), width, [rows, factor], |context, [rows, factor]| unsafe {
            (ggml.ggml_mul)(context, (ggml.ggml_rms_norm)(context, rows, EPS), factor)
        })
    };
    let scale = |rows: &[f32]| {
        // SAFETY: as above.
        by(ggml, cpu(), width, [rows, rows], |context, [rows, _]| unsafe {
            (ggml.ggml_scale)(context, rows, SCALE)
        })
    };
    let columns = &layer.columns;
    let mut out = product(&layer.output, width, &layer.attention);
    if more {
        out = add(&out, &columns[3]);
    }
    let before = add(&out, &layer.input);
    let block_rows = norm(&before, &columns[0]);
    let [gate, up] = [&layer.gate, &layer.up].map(|weight| product(weight, width, &block_rows));
    // SAFETY: as above.
    let gated = by(ggml, ggml.backend(), hidden, [&gate, &up], |context, [gate, up]| unsafe {
        (ggml.ggml_swiglu_split)(context, gate, up)
    });
    let mut block = product(&layer.down, hidden, &gated);
    if more {
        block = scale(&norm(&block, &columns[2]));
    }
    let after = add(&block, &before);
    let next_rows = norm(&after, &columns[1]);
    let mut results: Results = layer.next.iter().map(|weight| product(weight, width, &next_rows)).collect();
    if shape.memory == Memory::Apart {
        results.extend([before, after]);
    }
    results
}

#[test]
fn what_is_made_in_tiles_is_what_is_made_one_by_one() {
    let report = tempfile::NamedTempFile::new().unwrap();
    std::env::set_var("RKNPU_REPORT", report.path());
    let Some(ggml) = host("what is made in tiles is what is made one by one") else { return };
    let rows_ahead =
        || common::report(report.path())["rows_ahead"].as_u64().expect("the report's rows_ahead");
    let plain = Shape {
        width: 512,
        hidden: 768,
        narrow: 128,
        rows: 512,
        ggml_type: Q8_0,
        memory: Memory::Apart,
        more: false,
        in_tiles: true,
    };
    for shape in [
        plain,
        Shape { more: true, ..plain },
        Shape { memory: Memory::Reused, ..plain },
        Shape { memory: Memory::Reused, rows: 300, more: true, ..plain },
        Shape { memory: Memory::Reused, rows: 1300, ..plain },
        Shape { memory: Memory::OverOtherRows, rows: 1300, in_tiles: false, ..plain },
        Shape { memory: Memory::NormsOverOtherRows, ..plain },
        Shape { memory: Memory::Reused, ggml_type: F32, more: true, ..plain },
        // Wide ones, of which a tile's gate and up come in several batches.
        Shape { ggml_type: F32, hidden: 2048, ..plain },
        Shape { ggml_type: F32, hidden: 2048, memory: Memory::Reused, ..plain },
        // Few rows, of which the CPU does what it does one by one.
        Shape { rows: 40, in_tiles: false, ..plain },
    ] {
        let layer = Layer::new(&shape);
        let want = one_by_one(ggml, &shape, &layer);
        let before = rows_ahead();
        let (got, is_made) = as_a_whole(ggml, &shape, &layer);
        assert_eq!(common::report(report.path())["fallbacks"], 0, "{shape:?}");
        // Where all of it is packed as it is made it need not be, but for what it is made anew of if anything fails; of several
        // batches what a segment has of the first ones waits there.
        let has_to_be = shape.rows > 512 || shape.memory == Memory::NormsOverOtherRows;
        assert!(is_made == has_to_be || shape.hidden > 1024, "{shape:?}");
        let ahead = rows_ahead() - before;
        // Of three stages, but for the last tile of each.
        assert_eq!(ahead >= 3 * shape.rows as u64 / 2, shape.in_tiles, "{shape:?}: {ahead} rows ahead");
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(differ(got, want), 0, "{shape:?}: values of result {index}, of {}", want.len());
        }
        let numbers = want[0].iter().filter(|value| value.is_finite()).count();
        assert_eq!(numbers, (shape.rows - 1) * shape.width, "{shape:?}: one row is none");
    }
    sums_and_norms_are_the_hosts(ggml, report.path());
}

/// Sums and norms outside of chains: of many rows tiles of them are made; of few they are left to the host.
fn sums_and_norms_are_the_hosts(ggml: &Ggml, report: &Path) {
    let link_ns = || common::report(report)["engine"]["link_ns"].as_u64().expect("the report's link_ns");
    for (width, rows) in [(512, 96), (33, 517), (1536, 300), (512, 40)] {
        let [mut one, other] = [1, 2].map(|seed| numbers(seed, width * rows));
        let columns = numbers(3, width);
        // A row without a number, and one of zeros.
        one[width + 3] = f32::NAN;
        one[2 * width..3 * width].fill(0.0);
        type Make = fn(&Ggml, Context, [Tensor; 2]) -> Tensor;
        // SAFETY: live tensors of a live context.
        let of_columns: Make = |ggml, context, [rows, columns]| unsafe {
            let sum = (ggml.ggml_add)(context, rows, columns);
            (ggml.ggml_mul)(context, (ggml.ggml_rms_norm)(context, sum, EPS), columns)
        };
        // SAFETY: as above.
        let of_rows: Make = |ggml, context, [one, other]| unsafe {
            let norm = (ggml.ggml_rms_norm)(context, (ggml.ggml_add)(context, one, other), EPS);
            (ggml.ggml_add)(context, (ggml.ggml_scale)(context, norm, SCALE), one)
        };
        for (make, second) in [(of_columns, &columns), (of_rows, &other)] {
            // SAFETY: the host has a CPU.
            let cpu = unsafe { (ggml.ggml_backend_init_by_type)(CPU, std::ptr::null()) };
            let of = [&one[..], second];
            let want = by(ggml, cpu, width, of, |context, leaves| make(ggml, context, leaves));
            let before = link_ns();
            let got = by(ggml, ggml.backend(), width, of, |context, leaves| make(ggml, context, leaves));
            assert_eq!(differ(&got, &want), 0, "{rows} rows of {width}");
            assert_eq!(link_ns() > before, rows >= 96, "{rows} rows of {width}");
            assert_eq!(want.iter().filter(|value| value.is_nan()).count(), width, "one row is none");
        }
    }
}

/// Set in the process that has layers between domains.
const CHILD: &str = "RKNPU_TEST_CHILD";

/// Weights of a layer in two I/O domains: gate and up, among others, are then not run alike.
#[test]
fn layers_between_domains_are_right() {
    if common::lab("layers between domains are right").is_none() {
        return;
    }
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_has_layers_between_domains", "--nocapture"]).env(CHILD, "1");
    command
        .env("RKNPU_REPORT", report.path())
        .env("RKNPU_DECODE", "npu")
        .env("RKNPU_EMU_FAULTS", "domain=20");
    let output = command.output().unwrap();
    let [out, said] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    assert!(output.status.success() && out.contains("1 passed"), "{out}{said}");
    let report = common::report(report.path());
    // Where rows find no room beside the weights of a domain, some of these go to a third one.
    assert!(report["domains"].as_u64() >= Some(2), "{said}");
    assert!(report["rows_ahead"].as_u64() > Some(0), "{report}");
}

#[test]
fn child_has_layers_between_domains() {
    let Some(ggml) = std::env::var_os(CHILD).and_then(|_| host("child")) else { return };
    let shape = Shape {
        width: 512,
        hidden: 768,
        narrow: 128,
        rows: 512,
        ggml_type: Q8_0,
        memory: Memory::Reused,
        more: false,
        in_tiles: true,
    };
    let layer = Layer::new(&shape);
    let want = one_by_one(ggml, &shape, &layer);
    // A quarter of a megabyte more each time, so that the domain's end comes between others of the layer's weights.
    let weight = numbers(20, 512 * 512);
    let mut before = Vec::new();
    for count in 0..70 {
        let product = Product::new(ggml, ggml.backend(), Q8_0, (512, 512, 1));
        product.set_weight(&weight);
        product.run(&weight[..512]);
        before.push(product);
        let (got, _) = as_a_whole(ggml, &shape, &layer);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(differ(got, want), 0, "values of result {index} after {count} others");
        }
    }
}

/// Through a stock host, by its own scheduler and memory: tiles of 512 rows give what 64 rows give, of which no tiles are.
#[test]
fn a_models_prompts_are_the_same_in_tiles() {
    let test = "a model's prompts are the same in tiles";
    let Some(lab) = common::lab(test) else { return };
    let Some(text) = std::env::var_os("GGML_RKNPU_TEST_TEXT") else {
        return common::skip(test, "GGML_RKNPU_TEST_TEXT names no text");
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let perplexity = |rows: &str| {
        let mut host = lab.npu("llama-perplexity", "rk3588");
        host.env("RKNPU_REPORT", file.path()).env("OMP_WAIT_POLICY", "passive");
        host.arg("-m").arg(lab.model("F16")).args(["-c", "512", "--chunks", "1", "-t", "2", "-ub", rows]);
        let (out, err) = common::output(host.arg("-f").arg(&text));
        let said = out + &err;
        let (_, rest) = said.split_once("Final estimate: PPL = ").unwrap_or_else(|| panic!("{said}"));
        let report = common::report(file.path());
        assert_eq!(report["fallbacks"], 0, "{report}");
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        (
            rest.split_whitespace().next().unwrap().to_owned(),
            number(&report["rows_ahead"]),
            number(&report["engine"]["link_ns"]),
        )
    };
    let (want, ..) = perplexity("64");
    let (got, rows_ahead, link_ns) = perplexity("512");
    assert_eq!(got, want);
    // Of most of the 30 layers, those of three stages but for a tile.
    assert!(rows_ahead > 25 * 3 * 256 && link_ns > 0, "{rows_ahead} rows ahead, {link_ns} ns");
}
