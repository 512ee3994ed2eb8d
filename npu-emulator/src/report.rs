//! What ran, as JSON in modelled time: written when the process ends to the file that `RKNPU_EMU_REPORT` names.
//!
//! ```json
//! {"times": "modelled", "paced": false, "soc": "rk3588", "fitted_to_published_figures": true, "total_ns": 0,
//!  "any_core_busy_ns": 0, "domain_switches": 0, "cores": [{"core": 0, "busy_ns": 0, "last_run_ended_ns": 0}],
//!  "calls": {"run": {"count": 0, "ns": 0}},
//!  "runs": [{"type": "i8*i8->i32", "layout": "native", "m": 1, "k": 32, "n": 32, "runs": 1, "ns": 0,
//!            "bytes": 0, "share_of_roofline": 0.5}]}
//! ```
//!
//! `domain_switches` is how often a run was of another I/O domain than the one that ended before it, which takes no modelled
//! time: what it takes is not published.
//! Only calls that succeeded are in it. `any_core_busy_ns` is the time in which at least one core ran. `bytes` is the
//! modelled traffic of all those runs. The roofline is the longer of the arithmetic at the core's peak
//! and one pass over A, B and C at the rate of one core; its share is that time over the modelled one.
//!
//! When runs are paced ([`crate::clock::pace`]), `paced` is true, `results` says that they were not computed, and each
//! core has `paced_busy_ns`: the real time for which runs held it, which is the only time here that is not modelled.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::OnceLock;

use serde_json::{json, Map, Value};

use crate::chip::MOST_CORES;
use crate::clock::cost::{Shape, Timing};
use crate::clock::timeline::{Kind, Placed, Timeline, Work};

/// The environment variable that names the file, read once.
pub const REPORT_VARIABLE: &str = "RKNPU_EMU_REPORT";

/// A sum of times in whole ps, so that the order of adding does not matter.
#[derive(Default, Clone, Copy)]
struct Sum {
    count: u64,
    ps: u64,
}

impl Sum {
    fn add(&mut self, ns: f64) {
        self.count += 1;
        self.ps += (ns * 1000.0).round() as u64;
    }

    fn ns(&self) -> f64 {
        self.ps as f64 / 1000.0
    }

    fn json(&self) -> Value {
        json!({ "count": self.count, "ns": whole(self.ns()) })
    }
}

fn whole(ns: f64) -> u64 {
    ns.round() as u64
}

/// The time that intervals cover together, settled in batches.
#[derive(Default)]
struct Covered {
    ns: f64,
    /// Nothing before this counts any more.
    from: f64,
    batch: Vec<(f64, f64)>,
}

impl Covered {
    fn settle(&mut self) {
        self.batch.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (start, end) in self.batch.drain(..) {
            self.ns += (end - start.max(self.from)).max(0.0);
            self.from = self.from.max(end);
        }
    }
}

/// The sums of all placed calls.
pub struct Tally {
    covered: Covered,
    busy: Vec<Sum>,
    calls: BTreeMap<Kind, Sum>,
    shapes: BTreeMap<Shape, Sum>,
    /// The I/O domain of the last run, and how often it was another one than before.
    domain: Option<usize>,
    domain_switches: u64,
}

impl Tally {
    /// Nothing yet, on that many cores.
    pub fn new(cores: usize) -> Self {
        Self {
            covered: Covered::default(),
            busy: vec![Sum::default(); cores],
            calls: BTreeMap::new(),
            shapes: BTreeMap::new(),
            domain: None,
            domain_switches: 0,
        }
    }

    /// Counts one call.
    pub fn add(&mut self, placed: &Placed) {
        let ns = placed.end - placed.start;
        match placed.work {
            Work::Host(kind, _) => self.calls.entry(kind).or_default().add(ns),
            Work::Run(shape, _) => {
                self.shapes.entry(shape).or_default().add(ns);
                self.covered.batch.push((placed.start, placed.end));
                if let Some(busy) = placed.core.and_then(|core| self.busy.get_mut(core)) {
                    busy.add(ns);
                }
            }
        }
    }

    /// A run in that I/O domain ended.
    pub fn ran_in(&mut self, domain: usize) {
        self.domain_switches += u64::from(self.domain.is_some_and(|before| before != domain));
        self.domain = Some(domain);
    }

    /// Everything that was added so far is all there is of its time.
    pub fn settle(&mut self) {
        self.covered.settle();
    }

    /// The report, as the module says; `paced` has the cores' real ns.
    pub fn json(&self, timing: &Timing, line: &Timeline, paced: Option<[u64; MOST_CORES]>) -> String {
        let cores = self.busy.iter().zip(line.cores()).enumerate().map(|(core, (busy, ended))| {
            let mut entry =
                json!({ "core": core, "busy_ns": whole(busy.ns()), "last_run_ended_ns": whole(*ended) });
            if let Some(ns) = paced.and_then(|paced| paced.get(core).copied()) {
                entry["paced_busy_ns"] = ns.into();
            }
            entry
        });
        let mut calls = Map::new();
        for (name, kind) in
            [("create", Kind::Create), ("bind", Kind::Bind), ("convert", Kind::Convert), ("sync", Kind::Sync)]
        {
            calls.insert(name.into(), self.calls.get(&kind).copied().unwrap_or_default().json());
        }
        let mut all = Sum::default();
        for sum in self.shapes.values() {
            all = Sum { count: all.count + sum.count, ps: all.ps + sum.ps };
        }
        calls.insert("run".into(), all.json());
        let runs = self.shapes.iter().map(|(shape, sum)| {
            let (m, k, n) = shape.size;
            json!({
                "type": type_name(shape.code),
                "layout": if shape.native { "native" } else { "norm" },
                "m": m, "k": k, "n": n,
                "runs": sum.count,
                "ns": whole(sum.ns()),
                "bytes": (timing.run(shape).bytes * sum.count as f64) as u64,
                "share_of_roofline": timing.roofline_ns(shape) * sum.count as f64 / sum.ns(),
            })
        });
        let mut report = json!({
            "times": "modelled",
            "paced": paced.is_some(),
            "soc": timing.name.to_string_lossy(),
            "fitted_to_published_figures": timing.published,
            "total_ns": whole(line.latest()),
            "any_core_busy_ns": whole(self.covered.ns),
            "domain_switches": self.domain_switches,
            "cores": cores.collect::<Vec<_>>(),
            "calls": calls,
            "runs": runs.collect::<Vec<_>>(),
        });
        if paced.is_some() {
            report["results"] = "not computed: runs only took their modelled time".into();
        }
        format!("{report:#}\n")
    }
}

/// A type of the ABI in words.
fn type_name(code: i32) -> String {
    let name = match code {
        1 => "f16*f16->f32",
        2 => "i8*i8->i32",
        3 => "i8*i8->i8",
        4 => "f16*f16->f16",
        5 => "f16*i8->f32",
        6 => "f16*i8->f16",
        7 => "f16*i4->f32",
        8 => "f16*i4->f16",
        9 => "i8*i8->f32",
        10 => "i4*i4->i16",
        11 => "i8*i4->i32",
        12 => "f16*i4->bf16",
        15 => "i8*i4->f16",
        _ => return format!("type {code}"),
    };
    name.to_owned()
}

/// Where the report goes, if anywhere.
static FILE: OnceLock<Option<OsString>> = OnceLock::new();

/// Has the report written when the process ends, if [`REPORT_VARIABLE`] is set.
pub fn at_exit() {
    let wanted = FILE.get_or_init(|| std::env::var_os(REPORT_VARIABLE).filter(|file| !file.is_empty()));
    if wanted.is_some() {
        // SAFETY: a function of the C signature that lives as long as the library.
        unsafe { libc::atexit(write) };
    }
}

extern "C" fn write() {
    let written = std::panic::catch_unwind(|| {
        let (Some(Some(file)), Some(report)) = (FILE.get(), crate::clock::report()) else { return };
        if let Err(error) = std::fs::write(file, report) {
            let file = file.to_string_lossy();
            crate::log::line(format_args!("{REPORT_VARIABLE}={file} was not written: {error}"));
        }
    });
    if written.is_err() {
        crate::log::line(format_args!("{REPORT_VARIABLE}: internal error"));
    }
}
