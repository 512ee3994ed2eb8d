//! All that was found, as data: what `--json` prints and `--report` writes.

use ggml_rknpu::mode::Mode;
use ggml_rknpu::probe::full::{Kind, Outcome};
use serde::Serialize;

use crate::machine::{self, Root};
use crate::probe::Probe;
use crate::Options;

/// How an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// ✓
    Well,
    /// ✗
    Wrong,
    /// –: it cannot be told, or does not matter here.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    /// A name that stays.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What is believed, of the checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub believed: Option<String>,
    /// Where the belief comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Item {
    /// An item that is as it should be.
    pub fn well(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, State::Well, found, None)
    }

    /// An item that is wrong, with what to do.
    pub fn wrong(name: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(name, State::Wrong, found, Some(advice))
    }

    /// An item that cannot be told.
    pub fn unknown(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, State::Unknown, found, None)
    }

    /// The same with what may be done.
    pub fn advise(self, advice: &str) -> Self {
        Self { advice: Some(advice.to_owned()), ..self }
    }

    fn new(name: &str, state: State, found: impl Into<String>, advice: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            found: found.into(),
            believed: None,
            source: None,
            advice: advice.map(str::to_owned),
        }
    }
}

/// Items that belong together.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// Its items.
    pub items: Vec<Item>,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This program's version.
    pub doctor: &'static str,
    /// The machine's architecture.
    pub arch: &'static str,
    /// The chip whose facts are believed.
    pub chip: Option<&'static str>,
    /// Whether the library is the emulator, which says nothing about a board.
    pub emulated: bool,
    /// Whose times they are.
    pub times: &'static str,
    /// The library that was named, or looked for.
    pub library: String,
    /// Version of the library.
    pub library_version: Option<String>,
    /// Version of the driver, in the library's words.
    pub driver_version: Option<String>,
    /// Whether nothing is wrong.
    pub well: bool,
    /// One or two sentences that sum it up.
    pub verdict: String,
    /// What the plugin's own quick probe finds.
    pub quick: Option<Mode>,
    /// Everything that was looked at.
    pub sections: Vec<Section>,
    /// Checks of the contract in which this NPU differs from our table of facts.
    pub differences: Vec<String>,
    /// What the library itself wrote meanwhile; refusals that were provoked are among it.
    pub library_log: Vec<String>,
}

const NEEDED: &str =
    "needed are a board with an RK3588, RK3576, RK3566, RK3568 or RK3562, a vendor kernel (5.10 or \
     6.1) with the RKNPU driver, and librknnrt.so 2.1 or later";

impl Report {
    /// Looks at the machine and adds what the probe found.
    pub fn new(options: &Options, root: &Root, probe: Probe) -> Self {
        let emulated = probe.emulated.is_some();
        let name = match &options.library {
            Some(path) => path.display().to_string(),
            None => rknn_sys::library::DEFAULT_NAME.to_owned(),
        };
        let mut sections = machine::sections(root, emulated);
        sections.push(Section { title: "Library", items: library(&name, &probe) });
        let mut differences = Vec::new();
        for (title, kind) in [("Facts", Kind::Contract), ("Times", Kind::Cost)] {
            let of_kind = probe.results.iter().filter(|(check, _)| check.kind == kind);
            let items: Vec<Item> = of_kind
                .map(|(check, outcome)| {
                    let state = match outcome {
                        Outcome::Pass(_) => State::Well,
                        Outcome::Fail(_) => State::Wrong,
                        Outcome::Unknown(_) => State::Unknown,
                    };
                    let advice = (state == State::Wrong).then_some(check.advice);
                    Item {
                        believed: Some(check.believed.clone()),
                        source: Some(check.source.to_owned()),
                        ..Item::new(&check.name, state, outcome.found(), advice)
                    }
                })
                .collect();
            if kind == Kind::Contract {
                let wrong = items.iter().filter(|item| item.state == State::Wrong);
                differences = wrong.map(|item| item.name.clone()).collect();
            }
            if !items.is_empty() {
                sections.push(Section { title, items });
            }
        }
        let count = |state| {
            sections.iter().flat_map(|section| &section.items).filter(|item| item.state == state).count()
        };
        let (wrong, unknown) = (count(State::Wrong), count(State::Unknown));
        let has_npu = emulated || machine::has_npu(root);
        let well = wrong == 0 && has_npu && !probe.results.is_empty();
        let mut verdict = match () {
            () if machine::is_mainline(root) && !emulated => {
                "The NPU is held by the mainline kernel's rocket driver, with which librknnrt cannot work: boot a \
                 vendor kernel (5.10 or 6.1) with the RKNPU driver"
                    .to_owned()
            }
            () if !has_npu => format!("There is no NPU here that the plugin could use: {NEEDED}"),
            () if well => format!("All is well; {unknown} things could not be told"),
            () => format!("{wrong} things are wrong, {unknown} could not be told"),
        };
        if emulated {
            verdict += "; this is the emulator, and says nothing about a board";
        }
        Self {
            doctor: env!("CARGO_PKG_VERSION"),
            arch: std::env::consts::ARCH,
            chip: probe.chip.map(|chip| chip.name),
            emulated,
            times: match (emulated, probe.modelled) {
                (true, true) => "modelled by the emulator, not of a board",
                (true, false) => "of the emulator, not of a board",
                _ => "of this board",
            },
            library: name,
            library_version: probe.versions.as_ref().map(|(library, _)| library.clone()),
            driver_version: probe.versions.as_ref().map(|(_, driver)| driver.clone()),
            well,
            verdict,
            quick: probe.quick,
            sections,
            differences,
            library_log: probe.log,
        }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
    }
}

fn library(name: &str, probe: &Probe) -> Vec<Item> {
    let update =
        "get librknnrt.so 2.3.2 from Rockchip's rknn-toolkit2, or name it by --library or RKNPU_LIBRARY";
    let mut items = Vec::new();
    items.push(match (&probe.refused, probe.opened) {
        (Some(why), false) => Item::wrong("library", why.clone(), update),
        _ => Item::well("library", name),
    });
    match (&probe.versions, &probe.refused) {
        (Some((library, driver)), _) => {
            items.push(if is_old(library, &[2, 1]) {
                Item::wrong("library version", library.clone(), update)
            } else {
                Item::well("library version", library.clone())
            });
            items.push(Item::well("driver, by the library", driver.clone()));
        }
        (None, Some(why)) if probe.opened => {
            let advice = "see the nodes and permissions above; the NPU must be enabled in the device tree";
            items.push(Item::wrong("context", why.clone(), advice));
        }
        (None, _) if probe.opened && probe.chip.is_none() => {
            let advice = "RKNPU_SOC or --soc names the chip by hand";
            items.push(Item::wrong("context", "not tried: the chip is not known", advice));
        }
        _ => {}
    }
    items
}

/// Whether the first numbers in `text` are below `least`; text without numbers is not.
pub fn is_old(text: &str, least: &[u32]) -> bool {
    let start = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let numbers: Vec<u32> = text[start..]
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .take(least.len())
        .collect();
    !numbers.is_empty() && numbers.as_slice() < least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_old("RKNPU driver: v0.9.5", &[0, 9, 6]));
        assert!(!is_old("v0.10.0", &[0, 9, 6]));
        assert!(!is_old("2.3.2 (429f97ae6b@2025)", &[2, 1]));
        assert!(is_old("1.6.0", &[2, 1]));
        assert!(!is_old("unknown", &[2, 1]));
    }
}
