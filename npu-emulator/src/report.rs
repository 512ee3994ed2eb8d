//! What ran, as JSON in modelled time: written when the process ends to the file that `RKNPU_EMU_REPORT` names.
//!
//! ```json
//! {"times": "modelled", "soc": "rk3588", "fitted_to_published_figures": true, "total_ns": 0,
//!  "cores": [{"core": 0, "busy_ns": 0, "last_run_ended_ns": 0}],
//!  "calls": {"run": {"count": 0, "ns": 0}},
//!  "runs": [{"type": "i8*i8->i32", "layout": "native", "m": 1, "k": 32, "n": 32, "runs": 1, "ns": 0,
//!            "bytes": 0, "share_of_roofline": 0.5}]}
//! ```
//!
//! Only calls that succeeded are in it. `bytes` is the modelled traffic of all those runs. The roofline is the longer of the arithmetic at the core's peak
//! and one pass over A, B and C at the rate of one core; its share is that time over the modelled one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::OnceLock;

use serde_json::{json, Map, Value};

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

/// The sums of all placed calls.
pub struct Tally {
    busy: Vec<Sum>,
    calls: BTreeMap<Kind, Sum>,
    shapes: BTreeMap<Shape, Sum>,
}

impl Tally {
    /// Nothing yet, on that many cores.
    pub fn new(cores: usize) -> Self {
        Self { busy: vec![Sum::default(); cores], calls: BTreeMap::new(), shapes: BTreeMap::new() }
    }

    /// Counts one call.
    pub fn add(&mut self, placed: &Placed) {
        let ns = placed.end - placed.start;
        match placed.work {
            Work::Host(kind, _) => self.calls.entry(kind).or_default().add(ns),
            Work::Run(shape, _) => {
                self.shapes.entry(shape).or_default().add(ns);
                if let Some(busy) = placed.core.and_then(|core| self.busy.get_mut(core)) {
                    busy.add(ns);
                }
            }
        }
    }

    /// The report, as the module says.
    pub fn json(&self, timing: &Timing, line: &Timeline) -> String {
        let cores = self.busy.iter().zip(line.cores()).enumerate().map(|(core, (busy, ended))| {
            json!({ "core": core, "busy_ns": whole(busy.ns()), "last_run_ended_ns": whole(*ended) })
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
        let report = json!({
            "times": "modelled",
            "soc": timing.name.to_string_lossy(),
            "fitted_to_published_figures": timing.published,
            "total_ns": whole(line.latest()),
            "cores": cores.collect::<Vec<_>>(),
            "calls": calls,
            "runs": runs.collect::<Vec<_>>(),
        });
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
