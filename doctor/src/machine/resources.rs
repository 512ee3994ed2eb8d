//! What runs out: file descriptors and memory.

use super::Root;
use crate::report::Item;

/// A model of 70 layers has about 500 weights, a descriptor each; contexts and scratch take more.
const DESCRIPTORS: u64 = 4096;
/// Below this, a model of 1 B parameters does not fit beside its file.
const MEMORY: u64 = 2 << 30;

pub(super) fn items(root: &Root) -> Vec<Item> {
    vec![descriptors(root), memory(root)]
}

/// The plugin raises the soft limit to the hard one by itself, so that the hard one counts.
fn descriptors(root: &Root) -> Item {
    let name = "file descriptors";
    let text = root.read("proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let value = |text: &str| if text == "unlimited" { Some(u64::MAX) } else { text.parse::<u64>().ok() };
    let mut words = line.split_whitespace();
    let (Some(soft), Some(hard)) = (words.next().and_then(value), words.next().and_then(value)) else {
        return Item::unknown(name, "/proc/self/limits does not say");
    };
    let found = format!("{soft}, at most {hard}");
    if hard < DESCRIPTORS {
        let advice = "each weight takes one: ulimit -n 65536, or nofile in /etc/security/limits.conf";
        Item::wrong(name, found, advice)
    } else {
        Item::well(name, found)
    }
}

fn memory(root: &Root) -> Item {
    let text = root.read("proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (Some(free), Some(total)) = (bytes("MemAvailable"), bytes("MemTotal")) else {
        return Item::unknown("memory", "/proc/meminfo does not say");
    };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let found = format!(
        "{:.1} of {:.1} GiB free; the NPU holds up to 3.9 GB of weights in one I/O domain, of 16",
        gib(free),
        gib(total)
    );
    if free < MEMORY {
        Item::wrong("memory", found, "each weight is held by the NPU as well: end other programs")
    } else {
        Item::well("memory", found)
    }
}
