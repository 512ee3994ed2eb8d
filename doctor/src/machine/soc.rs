//! The chip, by the device tree.

use ggml_rknpu::chip::Chip;

use super::Root;
use crate::report::Item;

const COMPATIBLE: &str = "proc/device-tree/compatible";

/// The chip of this board, if it is one that we know.
pub fn chip(root: &Root) -> Option<&'static Chip> {
    Chip::by_compatible(&std::fs::read(root.join(COMPATIBLE)).ok()?)
}

pub(super) fn items(root: &Root) -> Vec<Item> {
    let compatible = std::fs::read(root.join(COMPATIBLE)).unwrap_or_default();
    let listed = String::from_utf8_lossy(&compatible).replace('\0', " ").trim().to_owned();
    let chip = match chip(root) {
        Some(chip) => Item::well("chip", format!("{}, {} NPU cores ({listed})", chip.title, chip.cores)),
        None if listed.is_empty() => Item::wrong(
            "chip",
            "no device tree: this is no Rockchip board",
            "the plugin needs a board with an RK3588, RK3576, RK3566, RK3568 or RK3562",
        ),
        None => Item::wrong(
            "chip",
            format!("none that we know ({listed})"),
            "if it has the NPU of a chip that we know, name that by RKNPU_SOC",
        ),
    };
    let mut items = vec![chip];
    if let Ok(model) = root.read("proc/device-tree/model") {
        items.push(Item::well("board", model));
    }
    if let Ok(release) = root.read("proc/sys/kernel/osrelease") {
        items.push(Item::well("kernel", release));
    }
    items
}
