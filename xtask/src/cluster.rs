//! `cargo xtask cluster`: a model split over several machines by llama.cpp's RPC, each with an NPU of its own. Without machines
//! that are named, so many servers are started on this one; the text is held against that of one process, and the cost of
//! a hop is what a token takes longer over all of them than over one.

use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::completion::{watch, Ran, PROGRAM, PROMPT};
use crate::env::{Npu, NpuOptions};
use crate::error::{Error, IoContext, Result};
use crate::model::Model;
use crate::process;
use crate::progress::{note, Step};
use crate::report::PluginReport;
use crate::setup::plugin::Plugin;
use crate::setup::{self, Wants};

/// The host's program that serves a device.
const SERVER: &str = "ggml-rpc-server";
/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(60);
/// How long a server may take to write its report once its client has gone.
const REPORT: Duration = Duration::from_secs(10);

/// The options of `cluster`.
#[derive(Debug, Args)]
pub struct Options {
    /// How many servers to start on this machine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// Servers that run already, on this machine or others: host:port,host:port
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["nodes", "npu", "soc"])]
    join: Vec<String>,
    /// A GGUF file, or a cached model, as for `run`
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// What is to be continued
    #[arg(short, long, default_value = PROMPT)]
    prompt: String,
    /// How many tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Pairs of runs, over one node and over all, of which the middle one counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    npu: NpuOptions,
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    text: String,
    /// Whether one process with the plugin says the same.
    same_text: bool,
    nodes: Vec<Node>,
    /// Milliseconds a generated token: in one process, over the first node alone, over all.
    process_ms: f64,
    one_node_ms: f64,
    all_nodes_ms: f64,
    /// What a hop costs, in milliseconds a token; nothing for one node.
    hop_ms: Option<Hop>,
}

/// What a token takes longer for each node after the first, in milliseconds, by pairs of runs.
#[derive(Debug, Serialize)]
struct Hop {
    median: f64,
    least: f64,
    most: f64,
}

impl Hop {
    fn of(differences: &mut [f64]) -> Self {
        let median = median(differences);
        Self { median, least: differences[0], most: differences[differences.len() - 1] }
    }
}

/// The middle one; sorts them.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    if numbers.len() % 2 == 1 {
        numbers[half]
    } else {
        (numbers[half - 1] + numbers[half]) / 2.0
    }
}

/// A server and what it did; of those that were only joined nothing is known but the address.
#[derive(Debug, Serialize)]
struct Node {
    address: String,
    description: Option<String>,
    npu_runs: Option<u64>,
    npu_bytes: Option<u64>,
}

/// Runs the model over the nodes.
///
/// # Errors
/// Bad input, a failed set-up, a server that does not start, or a client that fails.
pub fn command(options: &Options) -> Result<()> {
    for address in &options.join {
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return Err(Error::Refused(format!(
                "--join {address:?}: expected host:port, such as 192.168.1.12:50052"
            )));
        }
    }
    let npu = options.npu.choose(false)?;
    let model = Model::named(options.model.clone())?;
    let ready = setup::prepare(Wants { models: model.is_cached(), plugin: true })?;
    let (path, _) = model.open(&ready.models)?;
    let run = |servers: &[String]| -> Result<(String, f64)> {
        let mut host = Command::new(ready.host.program(PROGRAM)?);
        // The nodes multiply; whoever asks them needs no NPU.
        let own = if servers.is_empty() { &npu } else { &Npu::Cpu };
        own.apply(ready.plugin.as_ref(), &mut host);
        host.args(["-no-cnv", "--no-display-prompt", "--temp", "0", "-c", "2048", "-lv", "4"]);
        host.arg("-m").arg(&path).arg("-p").arg(&options.prompt).args(["-n", &options.tokens.to_string()]);
        if !servers.is_empty() {
            host.args(["--rpc", &servers.join(","), "-ngl", "999"]);
        }
        let Ran { text, log, .. } = watch(host, false)?;
        Ok((text, 1e3 / log.decode_per_second()))
    };
    let servers = if options.join.is_empty() {
        let program = ready.host.program(SERVER)?;
        let started = (0..options.nodes).map(|_| Server::start(&program, &npu, ready.plugin.as_ref()));
        started.collect::<Result<Vec<_>>>()?
    } else {
        Vec::new()
    };
    let addresses = match &options.join[..] {
        [] => servers.iter().map(|server| server.address.clone()).collect(),
        joined => joined.to_vec(),
    };

    let step = Step::spinner("generating in one process".to_owned());
    let (want, process_ms) = run(&[])?;
    step.done();
    let step = Step::spinner(format!("generating over one node and over {}, in turns", addresses.len()));
    let (mut text, mut one, mut all) = (String::new(), Vec::new(), Vec::new());
    for turn in 0..options.runs {
        // Who is first changes: what warms up, or gets slower with time, then cancels out. All are last of all, since
        // what the nodes report is of the last run.
        let all_last = (options.runs - turn) % 2 == 1;
        for over_all in [!all_last, all_last] {
            servers.iter().for_each(Server::forget);
            let (said, ms) = run(if over_all { &addresses } else { &addresses[..1] })?;
            if over_all {
                all.push(ms);
                text = said;
            } else {
                one.push(ms);
            }
        }
    }
    step.done();
    let hops = addresses.len() - 1;
    let mut differences: Vec<f64> =
        one.iter().zip(&all).map(|(one, all)| (all - one) / hops.max(1) as f64).collect();
    let reports = if servers.is_empty() {
        addresses.iter().map(|_| None).collect()
    } else {
        servers.into_iter().map(Server::end).collect::<Result<Vec<_>>>()?
    };
    let nodes = addresses.into_iter().zip(reports).map(|(address, report)| Node {
        address,
        npu_runs: report.as_ref().map(|report| report.npu_runs),
        npu_bytes: report.as_ref().map(|report| report.npu_bytes),
        description: report.map(|report| report.description),
    });
    let outcome = Outcome {
        same_text: text == want,
        text,
        nodes: nodes.collect(),
        process_ms,
        one_node_ms: median(&mut one),
        all_nodes_ms: median(&mut all),
        hop_ms: (hops > 0).then(|| Hop::of(&mut differences)),
    };
    if options.json {
        let line = serde_json::to_string(&outcome)
            .map_err(|error| Error::Io { doing: "write the outcome".to_owned(), source: error.into() })?;
        println!("{line}");
    } else {
        println!("{}", outcome.text);
        println!("\n{}", outcome.table());
    }
    if outcome.same_text {
        return Ok(());
    }
    Err(Error::Refused(format!("one process says something else: {want:?}")))
}

impl Outcome {
    fn table(&self) -> String {
        let mut out = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let Node { address, description, npu_runs, npu_bytes } = node;
            let _ = write!(out, "node {:<6} {address}", index + 1);
            if let (Some(description), Some(runs), Some(bytes)) = (description, npu_runs, npu_bytes) {
                let _ = write!(out, ", {description}, {runs} runs, {:.1} MB", *bytes as f64 / 1e6);
            }
            out.push('\n');
        }
        let _ = writeln!(
            out,
            "text        {}",
            if self.same_text { "the same in one process" } else { "differs" }
        );
        let _ = write!(
            out,
            "a token     {:.2} ms in one process, {:.2} ms over one node, {:.2} ms over all",
            self.process_ms, self.one_node_ms, self.all_nodes_ms
        );
        if let Some(Hop { median, least, most }) = self.hop_ms {
            let _ = write!(
                out,
                "\na hop       {median:.2} ms a token; {least:.2} to {most:.2} by single pairs of runs"
            );
        }
        out
    }
}

/// A server on this machine, ended when it is dropped.
struct Server {
    child: Child,
    address: String,
    scratch: tempfile::TempDir,
}

impl Server {
    /// Starts one, which serves the NPU's device, and waits until it listens.
    fn start(program: &Path, npu: &Npu, plugin: Option<&Plugin>) -> Result<Self> {
        let scratch = tempfile::tempdir().at("create a folder in", &std::env::temp_dir())?;
        let address = free_address()?;
        let (host, port) = address.rsplit_once(':').unwrap_or(("127.0.0.1", "50052"));
        let mut command = Command::new(program);
        npu.apply(plugin, &mut command);
        let log = std::fs::File::create(scratch.path().join("log")).at("write to", scratch.path())?;
        let errors = log.try_clone().at("write to", scratch.path())?;
        command
            .args(["-d", "RKNPU", "-H", host, "-p", port])
            .env("RKNPU_REPORT", scratch.path().join("report"));
        let child = process::spawn(command.stdin(Stdio::null()).stdout(log).stderr(errors))?;
        let mut server = Self { child, address, scratch };
        let end = Instant::now() + START;
        while TcpStream::connect(&server.address).is_err() {
            let status = server
                .child
                .try_wait()
                .map_err(|source| Error::Io { doing: format!("wait for {SERVER}"), source })?;
            let what = match status {
                Some(status) => process::outcome(status),
                None if Instant::now() > end => format!("did not listen on {} in time", server.address),
                None => {
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let said = std::fs::read_to_string(server.scratch.path().join("log")).unwrap_or_default();
            let tail = said.lines().map(str::to_owned).collect();
            return Err(Error::Tool { program: SERVER.to_owned(), outcome: what, tail, log: None });
        }
        note(&format!("a server listens on {}", server.address));
        Ok(server)
    }

    /// Takes away what it wrote so far, so that what is there at the end is of the last run.
    fn forget(&self) {
        // There may be nothing yet.
        let _ = std::fs::remove_file(self.scratch.path().join("report"));
    }

    /// Ends it; what it did, which the plugin writes when a model goes.
    fn end(mut self) -> Result<Option<PluginReport>> {
        let path = self.scratch.path().join("report");
        let end = Instant::now() + REPORT;
        // The client has gone, and the server notices soon.
        while !path.exists() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
        self.kill();
        PluginReport::read(&path).at("read the plugin's report", &path)
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of the loopback that nobody has.
fn free_address() -> Result<String> {
    let found = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    found
        .map(|address| address.to_string())
        .map_err(|source| Error::Io { doing: "find a free port on 127.0.0.1".to_owned(), source })
}
