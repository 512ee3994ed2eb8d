//! The kernel's driver: its nodes and who may open them, its version, its load.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;

use super::Root;
use crate::report::{is_old, Item};

const VERSIONS: [&str; 2] = ["sys/kernel/debug/rknpu/version", "proc/rknpu/version"];
const LOADS: [&str; 2] = ["sys/kernel/debug/rknpu/load", "proc/rknpu/load"];
/// Above this, another program is at work.
const BUSY_PERCENT: u32 = 30;

/// The driver of a device of a class, by its uevent.
fn driver_of(root: &Root, class: &str, name: &str) -> Option<String> {
    let text = root.read(&format!("sys/class/{class}/{name}/device/uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DRIVER=")).map(str::to_ascii_lowercase)
}

/// The nodes through which the library talks to the RKNPU driver.
fn nodes(root: &Root) -> Vec<String> {
    let render = root.names("dev/dri").into_iter().filter(|name| name.starts_with("renderD"));
    let ours = render.filter(|name| driver_of(root, "drm", name).is_some_and(|driver| driver == "rknpu"));
    let mut nodes: Vec<String> = ours.map(|name| format!("dev/dri/{name}")).collect();
    if root.join("dev/rknpu").exists() {
        nodes.push("dev/rknpu".to_owned());
    }
    nodes
}

pub(super) fn has_nodes(root: &Root) -> bool {
    !nodes(root).is_empty()
}

/// The node of the mainline kernel's driver.
pub(super) fn rocket(root: &Root) -> Option<String> {
    let accels = root.names("dev/accel").into_iter();
    let held = |name: &String| driver_of(root, "accel", name).is_none_or(|driver| driver == "rocket");
    accels.filter(|name| name.starts_with("accel")).find(held).map(|name| format!("/dev/accel/{name}"))
}

pub(super) fn items(root: &Root) -> Vec<Item> {
    let mut items = vec![version(root)];
    let nodes = nodes(root);
    match (nodes.is_empty(), rocket(root)) {
        (false, _) => items.extend(nodes.iter().map(|node| access(root, node))),
        (true, Some(accel)) => items.push(Item::wrong(
            "device node",
            format!("{accel} of the mainline kernel's rocket driver: librknnrt cannot be used with it"),
            "boot a vendor kernel (5.10 or 6.1) with the RKNPU driver",
        )),
        (true, None) => items.push(Item::wrong(
            "device node",
            "neither /dev/rknpu nor a /dev/dri/renderD* of the RKNPU driver",
            "boot a vendor kernel (5.10 or 6.1) with the RKNPU driver, and enable the NPU in the device tree",
        )),
    }
    items.extend(load(root));
    items
}

fn version(root: &Root) -> Item {
    let name = "driver version";
    let mut denied = false;
    for path in VERSIONS {
        match root.read(path) {
            Ok(text) if is_old(&text, &[0, 9, 6]) => {
                return Item::wrong(name, text, "before 0.9.6 memory works otherwise: update the kernel")
            }
            Ok(text) => return Item::well(name, text),
            Err(error) => denied |= error.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }
    if denied || has_nodes(root) {
        return Item::unknown(name, "not readable").advise("only root may read it: sudo rknpu-doctor");
    }
    Item::unknown(name, "no RKNPU driver")
}

/// Whether this user may open the node.
fn access(root: &Root, node: &str) -> Item {
    let (path, shown) = (root.join(node), format!("/{node}"));
    let Ok(info) = fs::metadata(&path) else {
        return Item::wrong(&shown, "cannot be looked at", "run as a user who may see /dev");
    };
    let owner =
        format!("mode {:03o}, user {}, group {}", info.mode() & 0o777, info.uid(), group(root, info.gid()));
    let allowed = if root.is_real() {
        OpenOptions::new().read(true).write(true).open(&path).is_ok()
    } else {
        may(root, info.mode(), info.uid(), info.gid())
    };
    if allowed {
        Item::well(&shown, owner)
    } else {
        let advice = "sudo usermod -aG render,video $USER, then log in again";
        Item::wrong(&shown, format!("may not be opened by this user ({owner})"), advice)
    }
}

/// Read and write by the mode's bits, for the user and the groups that `/proc/self/status` tells.
fn may(root: &Root, mode: u32, owner: u32, group: u32) -> bool {
    let status = root.read("proc/self/status").unwrap_or_default();
    let ids = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.into_iter().flat_map(str::split_whitespace).filter_map(|id| id.parse().ok()).collect()
    };
    let (users, groups) = (ids("Uid:"), [ids("Gid:"), ids("Groups:")].concat());
    let bits = match () {
        () if users.first() == Some(&0) => return true,
        () if users.first() == Some(&owner) => mode >> 6,
        () if groups.contains(&group) => mode >> 3,
        () => mode,
    };
    bits & 6 == 6
}

fn group(root: &Root, gid: u32) -> String {
    let text = root.read("etc/group").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| gid.to_string())
}

/// "NPU load:  Core0: 12%, Core1:  0%, …".
fn load(root: &Root) -> Option<Item> {
    let text = LOADS.into_iter().find_map(|path| root.read(path).ok())?;
    let busiest =
        text.split('%').filter_map(|part| part.rsplit([' ', ':']).next()?.parse::<u32>().ok()).max();
    Some(match busiest {
        Some(percent) if percent > BUSY_PERCENT => {
            Item::wrong("NPU load", text, "another program uses the NPU: end it for true figures")
        }
        _ => Item::well("NPU load", text),
    })
}
