//! The doctor on machines that are folders: a board, a machine without an NPU, a mainline kernel, a user who may
//! not open the node.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{doctor, item, json};
use serde_json::Value;
use tempfile::TempDir;

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A sound RK3588 board with the vendor's kernel, and a user of the groups render and video.
fn board() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    put(root, "proc/device-tree/compatible", "xunlong,orangepi-5\0rockchip,rk3588s\0rockchip,rk3588\0");
    put(root, "proc/device-tree/model", "Orange Pi 5\0");
    put(root, "proc/sys/kernel/osrelease", "6.1.43-rockchip-rk3588\n");
    put(root, "proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\nGroups:\t0 44\n");
    put(root, "proc/self/limits", "Limit   Soft  Hard  Units\nMax open files   1024   1048576   files\n");
    put(root, "proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n");
    put(root, "etc/group", "root:x:0:\nrender:x:105:me\n");
    put(root, "sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8\n");
    put(root, "sys/kernel/debug/rknpu/load", "NPU load:  Core0:  0%, Core1:  0%, Core2:  0%,\n");
    put(root, "dev/dri/renderD128", "");
    put(root, "dev/dri/renderD129", "");
    fs::set_permissions(root.join("dev/dri/renderD129"), fs::Permissions::from_mode(0o666)).unwrap();
    put(root, "sys/class/drm/renderD128/device/uevent", "DRIVER=panthor\n");
    put(root, "sys/class/drm/renderD129/device/uevent", "DRIVER=RKNPU\nOF_NAME=npu\n");
    for (device, now, most, governor) in
        [("fdab0000.npu", 300, 1000, "rknpu_ondemand"), ("dmc", 2112, 2112, "performance")]
    {
        let folder = format!("sys/class/devfreq/{device}");
        put(root, &format!("{folder}/cur_freq"), &format!("{now}000000\n"));
        put(root, &format!("{folder}/max_freq"), &format!("{most}000000\n"));
        put(root, &format!("{folder}/governor"), &format!("{governor}\n"));
    }
    for cpu in 0..8 {
        let (capacity, kilohertz) = if cpu < 4 { (530, 1_800_000) } else { (1024, 2_400_000) };
        let folder = format!("sys/devices/system/cpu/cpu{cpu}");
        put(root, &format!("{folder}/cpu_capacity"), &format!("{capacity}\n"));
        put(root, &format!("{folder}/cpufreq/cpuinfo_max_freq"), &format!("{kilohertz}\n"));
        put(root, &format!("{folder}/cpufreq/scaling_governor"), "performance\n");
    }
    dir
}

/// The report of a machine whose library cannot be opened: what is wrong then is about the machine.
fn without_library(dir: &TempDir) -> Value {
    let root = dir.path().to_str().unwrap();
    let (report, code) = json(&mut doctor(&["--json", "--root", root, "--library", "/nowhere/librknnrt.so"]));
    assert_eq!(code, 1);
    assert_eq!(item(&report, "library")["state"], "wrong");
    report
}

fn advice(item: &Value) -> &str {
    item["advice"].as_str().unwrap_or_default()
}

#[test]
fn a_sound_board_is_well_but_for_its_library() {
    let report = without_library(&board());
    for name in ["chip", "board", "driver version", "/dev/dri/renderD129", "NPU load", "file descriptors"] {
        assert_eq!(item(&report, name)["state"], "well", "{name}: {report:#}");
    }
    assert!(item(&report, "chip")["found"].as_str().unwrap().starts_with("RK3588, 3 NPU cores"));
    assert!(item(&report, "memory")["found"].as_str().unwrap().starts_with("11.4 of 15.3 GiB"));
    assert_eq!(item(&report, "memory clock")["state"], "well");
    let clock = item(&report, "NPU clock");
    assert_eq!(clock["found"], "300 of 1000 MHz, governor rknpu_ondemand (fdab0000.npu)");
    assert!(advice(clock).contains("sudo tee /sys/class/devfreq/fdab0000.npu/governor"));
    let cores = item(&report, "CPU cores");
    assert!(cores["found"].as_str().unwrap().contains("4 of 2400 MHz, capacity 1024"), "{cores}");
    assert!(advice(cores).contains("taskset -c 4,5,6,7"));
    assert!(advice(item(&report, "library")).contains("rknn-toolkit2"));
    assert_eq!(report["verdict"].as_str().unwrap().split(',').next(), Some("1 things are wrong"));
    assert_eq!(report["emulated"], false);
}

#[test]
fn a_board_with_a_library_that_answers_is_well() {
    let dir = board();
    let (report, code) = json(&mut doctor(&["--json", "--no-times", "--root", dir.path().to_str().unwrap()]));
    assert_eq!((code, &report["well"]), (0, &Value::Bool(true)), "{report:#}");
}

#[test]
fn a_user_who_may_not_open_the_node_is_told_the_group() {
    let dir = board();
    let node = dir.path().join("dev/dri/renderD129");
    fs::set_permissions(node, fs::Permissions::from_mode(0o660)).unwrap();
    put(dir.path(), "proc/self/status", "Uid:\t1000\t1000\nGid:\t1000\nGroups:\t1000 44\n");
    let report = without_library(&dir);
    let node = item(&report, "/dev/dri/renderD129");
    assert_eq!(node["state"], "wrong", "{node}");
    assert_eq!(advice(node), "sudo usermod -aG render,video $USER, then log in again");
}

#[test]
fn a_machine_without_an_npu_says_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let report = without_library(&dir);
    let verdict = report["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("There is no NPU here") && verdict.contains("librknnrt.so 2.1"), "{verdict}");
    assert_eq!(item(&report, "chip")["state"], "wrong");
    assert_eq!(item(&report, "driver version")["found"], "no RKNPU driver");
}

#[test]
fn the_mainline_kernel_is_named() {
    let dir = board();
    let root = dir.path();
    fs::remove_dir_all(root.join("dev/dri")).unwrap();
    fs::remove_dir_all(root.join("sys/kernel")).unwrap();
    put(root, "dev/accel/accel0", "");
    put(root, "sys/class/accel/accel0/device/uevent", "DRIVER=rocket\n");
    let report = without_library(&dir);
    assert!(report["verdict"].as_str().unwrap().contains("rocket driver"), "{report:#}");
    let node = item(&report, "device node");
    assert!(node["found"].as_str().unwrap().contains("librknnrt cannot be used"), "{node}");
    // Another accelerator is not the NPU.
    put(root, "sys/class/accel/accel0/device/uevent", "DRIVER=ivpu\n");
    assert!(!without_library(&dir)["verdict"].as_str().unwrap().contains("rocket"));
}

#[test]
fn what_is_scarce_slow_or_old_is_wrong() {
    let dir = board();
    let root = dir.path();
    put(root, "proc/self/limits", "Max open files   1024   1024   files\n");
    put(root, "proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 300000 kB\n");
    put(root, "sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.2\n");
    put(root, "sys/kernel/debug/rknpu/load", "NPU load:  Core0: 91%, Core1:  0%, Core2:  0%,\n");
    put(root, "sys/class/devfreq/dmc/governor", "powersave\n");
    let report = without_library(&dir);
    for (name, part) in [
        ("file descriptors", "ulimit -n"),
        ("memory", "end other programs"),
        ("driver version", "update the kernel"),
        ("NPU load", "another program"),
        ("memory clock", "echo performance"),
    ] {
        let item = item(&report, name);
        assert_eq!(item["state"], "wrong", "{item}");
        assert!(advice(item).contains(part), "{item}");
    }
}
