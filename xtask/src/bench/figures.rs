//! What the two reports say: the emulator's (`RKNPU_EMU_REPORT`) and the plugin's (`RKNPU_REPORT`).

use serde::Deserialize;
use serde_json::Value;

/// The emulator's report, as far as it is looked at. Times are modelled unless they say otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Emulator {
    /// The chip.
    pub soc: String,
    /// Whether runs were paced.
    pub paced: bool,
    /// When the last call ended.
    pub total_ns: f64,
    /// The time in which at least one core ran.
    pub any_core_busy_ns: f64,
    /// Each core.
    pub cores: Vec<Core>,
}

/// One core.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Core {
    /// The time in which it ran.
    pub busy_ns: f64,
    /// The real time for which paced runs held it.
    pub paced_busy_ns: f64,
}

impl Emulator {
    /// Real time of paced runs over their modelled time; 1 is exact.
    pub fn pacing(&self) -> Option<f64> {
        let sum = |of: fn(&Core) -> f64| self.cores.iter().map(of).sum::<f64>();
        let modelled = sum(|core| core.busy_ns);
        (self.paced && modelled > 0.0).then(|| sum(|core| core.paced_busy_ns) / modelled)
    }
}

/// The plugin's report; which figures it has depends on the plugin.
#[derive(Debug, Clone, Default)]
pub struct Plugin(pub Value);

/// One weight in it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Its K.
    pub k: usize,
    /// Its N.
    pub n: usize,
    /// What multiplies it.
    pub pipeline: String,
    /// Bytes of its copy.
    pub npu_bytes: f64,
    /// FLOPs by the NPU.
    pub npu_flops: f64,
    /// Products, of an expert each if it has any.
    pub calls: f64,
    /// Rows of all of them.
    pub rows: f64,
}

impl Plugin {
    /// A figure by its name: of the object `engine`, or beside it; `None` if the plugin does not report it.
    pub fn number(&self, name: &str) -> Option<f64> {
        let report = &self.0;
        let found = report.get("engine").and_then(|engine| engine.get(name));
        found.or_else(|| report.get(format!("engine.{name}"))).or_else(|| report.get(name))?.as_f64()
    }

    /// The weights.
    pub fn weights(&self) -> Vec<Weight> {
        self.0.get("tensors").and_then(Weight::parse_all).unwrap_or_default()
    }

    /// Rows of a product of an expert, on average; `None` where there was none.
    pub fn rows_an_expert(&self) -> Option<f64> {
        let weights = self.weights();
        let experts = || weights.iter().filter(|weight| weight.name.ends_with("_exps.weight"));
        let sum = |of: fn(&Weight) -> f64| experts().map(of).sum::<f64>();
        let calls = sum(|weight| weight.calls);
        (calls > 0.0).then(|| sum(|weight| weight.rows) / calls)
    }
}

impl Weight {
    fn parse_all(all: &Value) -> Option<Vec<Self>> {
        serde_json::from_value(all.clone()).ok()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_found_wherever_the_plugin_puts_them() {
        let plugin = Plugin(json!({
            "engine": {"compare_ns": 7}, "engine.pack_ns": 8, "fds": 9.5, "device": "RKNPU",
            "tensors": [{"name": "a", "k": 2, "n": 3, "pipeline": "W8A8", "npu_flops": 24, "later": 1}]
        }));
        let names = ["compare_ns", "pack_ns", "fds", "device", "wait_ns"];
        assert_eq!(names.map(|name| plugin.number(name)), [Some(7.0), Some(8.0), Some(9.5), None, None]);
        assert_eq!((plugin.weights()[0].k, plugin.weights()[0].npu_flops), (2, 24.0));
        assert!(Plugin::default().weights().is_empty());
        assert_eq!(plugin.rows_an_expert(), None);
        let expert = |calls, rows| json!({"name": "blk.0.ffn_up_exps.weight", "calls": calls, "rows": rows});
        let other = json!({"name": "blk.0.attn_q.weight", "calls": 1, "rows": 512});
        let plugin = Plugin(json!({"tensors": [expert(3, 60), expert(1, 20), other]}));
        assert_eq!(plugin.rows_an_expert(), Some(20.0));
    }

    #[test]
    fn pacing_is_the_real_time_over_the_modelled() {
        let report: Emulator = serde_json::from_value(json!({
            "paced": true, "cores": [{"busy_ns": 100, "paced_busy_ns": 110}, {"busy_ns": 100, "paced_busy_ns": 100}]
        }))
        .unwrap();
        assert_eq!(report.pacing(), Some(1.05));
        assert_eq!(Emulator::default().pacing(), None);
    }
}
