//! Frequencies and governors of NPU, memory and CPU.

use std::collections::BTreeMap;

use super::Root;
use crate::report::Item;

const DEVFREQ: &str = "sys/class/devfreq";
const CPUS: &str = "sys/devices/system/cpu";

pub(super) fn items(root: &Root) -> Vec<Item> {
    let mut items = Vec::new();
    let devices = root.names(DEVFREQ);
    for (what, wanted) in [("NPU clock", "npu"), ("memory clock", "dmc")] {
        match devices.iter().find(|name| name.ends_with(wanted)) {
            Some(name) => items.push(devfreq(root, what, name)),
            None => items.push(Item::unknown(what, format!("no {wanted} below /{DEVFREQ}"))),
        }
    }
    items.extend(cpus(root));
    items
}

fn devfreq(root: &Root, what: &str, name: &str) -> Item {
    let folder = format!("{DEVFREQ}/{name}");
    let hertz = |file: &str| root.number(&format!("{folder}/{file}"));
    let governor = root.read(&format!("{folder}/governor")).unwrap_or_else(|_| "unknown".to_owned());
    let mega = |hertz: Option<u64>| hertz.map_or("?".to_owned(), |hertz| (hertz / 1_000_000).to_string());
    let (now, highest) = (hertz("cur_freq"), hertz("max_freq"));
    let found = format!("{} of {} MHz, governor {governor} ({name})", mega(now), mega(highest));
    judge(what, found, &governor, now.zip(highest), &format!("/{folder}/governor"))
}

/// `performance` is well, a clock that is held low is wrong, and one that follows the load is as it is.
fn judge(what: &str, found: String, governor: &str, clock: Option<(u64, u64)>, file: &str) -> Item {
    let advice = format!("for full speed: echo performance | sudo tee {file}");
    let is_held_low =
        governor == "powersave" || governor == "userspace" && clock.is_some_and(|(now, max)| now < max);
    match governor {
        "performance" => Item::well(what, found),
        _ if is_held_low => Item::wrong(what, found, &advice),
        _ => Item::unknown(what, found).advise(&advice),
    }
}

/// The cores by kind, the strongest last; the governor of the strongest is judged.
fn cpus(root: &Root) -> Vec<Item> {
    let mut kinds: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
    for name in root.names(CPUS) {
        let Some(number) = name.strip_prefix("cpu").and_then(|number| number.parse::<u64>().ok()) else {
            continue;
        };
        let capacity = root.number(&format!("{CPUS}/{name}/cpu_capacity")).unwrap_or(0);
        let kilohertz = root.number(&format!("{CPUS}/{name}/cpufreq/cpuinfo_max_freq")).unwrap_or(0);
        kinds.entry((capacity, kilohertz)).or_default().push(number);
    }
    let Some((strongest, big)) = kinds.last_key_value() else {
        return vec![Item::unknown("CPU cores", format!("none below /{CPUS}"))];
    };
    let told: Vec<String> = kinds
        .iter()
        .map(|((capacity, kilohertz), cpus)| match (capacity, kilohertz) {
            (0, 0) => format!("{} of unknown kind", cpus.len()),
            (_, 0) => format!("{} of capacity {capacity}", cpus.len()),
            (0, _) => format!("{} of {} MHz", cpus.len(), kilohertz / 1000),
            _ => format!("{} of {} MHz, capacity {capacity}", cpus.len(), kilohertz / 1000),
        })
        .collect();
    let mut items = vec![if kinds.len() > 1 {
        let list: Vec<String> = big.iter().map(u64::to_string).collect();
        let advice =
            format!("run on the big ones: taskset -c {} llama-cli -t {} …", list.join(","), big.len());
        Item::well("CPU cores", told.join("; ")).advise(&advice)
    } else {
        Item::well("CPU cores", told.join("; "))
    }];
    let folder = format!("{CPUS}/cpu{}/cpufreq", big[0]);
    if let Ok(governor) = root.read(&format!("{folder}/scaling_governor")) {
        let clock = root.number(&format!("{folder}/scaling_cur_freq")).map(|now| (now, strongest.1));
        let found = format!("governor {governor}");
        items.push(judge("CPU clock", found, &governor, clock, &format!("/{folder}/scaling_governor")));
    }
    items
}
