//! The quick probe against the emulator: what is sound is found sound, what lies is found out.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ggml_rknpu::chip::{Chip, CHIPS};
use ggml_rknpu::mode::Mode;
use ggml_rknpu::probe::quick;
use rknn_sys::{Library, MatmulType};

/// The chip that a child process checks the emulator against.
const CHILD: &str = "GGML_RKNPU_TEST_PROBE_CHIP";

fn library() -> Library {
    let path = std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("a test knows its path");
        exe.parent().expect("target/profile/deps").join("libnpu_emulator.so")
    });
    Library::open(Some(&path)).unwrap_or_else(|error| panic!("{error}"))
}

/// What the probe finds in a child in which the emulator plays `played`, taken for a `believed`.
fn findings(played: &str, believed: &str) -> Mode {
    let exe = std::env::current_exe().expect("a test knows its path");
    let out = Command::new(exe)
        .args(["--exact", "child", "--nocapture"])
        .env("RKNPU_EMU_SOC", played)
        .env(CHILD, believed)
        .output()
        .expect("a test starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find_map(|line| line.split_once("findings ")).expect("the child says");
    serde_json::from_str(line.1).expect("findings are JSON")
}

/// Not a test of its own: what [`findings`] starts.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let chip = Chip::by_name(&name).expect("a chip's name");
    println!("\nfindings {}", serde_json::to_string(&quick(&library(), chip)).expect("plain data"));
}

#[test]
fn a_sound_device_of_each_chip_is_found_sound() {
    for chip in &CHIPS {
        assert_eq!(findings(chip.name, chip.name), Mode::believed(chip), "{}", chip.name);
    }
}

#[test]
fn wrong_layouts_are_found_out_and_row_major_ones_taken() {
    // RK3588 and RK3562 agree in native A and C, and for i8 and f16 not in B.
    let found = findings("rk3588", "rk3562");
    assert!(!found.native_b && found.native_ac, "{found:?}");
    // All of RK3566's are different; its alignments of f16 are finer than RK3588 takes.
    let found = findings("rk3562", "rk3566");
    assert!(found.has(MatmulType::I8) && !found.native_ac, "{found:?}");
}

#[test]
fn a_core_that_is_not_there_is_no_good_core() {
    let found = findings("rk3576", "rk3588");
    assert_eq!(found.cores, [true, true, false]);
    assert!(
        found.has(MatmulType::I8)
            && found.has(MatmulType::F16)
            && found.native_b
            && found.native_ac
            && found.views,
        "{found:?}"
    );
}

#[test]
fn a_device_that_refuses_everything_gives_nothing() {
    // An unknown chip: the emulator refuses every context.
    assert_eq!(findings("rk0000", "rk3588"), Mode::NONE);
}

#[test]
fn it_is_quick() {
    let (library, chip) = (library(), Chip::by_name("rk3588").expect("known"));
    let start = std::time::Instant::now();
    let modelled = library.modelled_ns(None);
    quick(&library, chip);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // By the published costs, where the emulator models them: 50 ms at most.
    if let Some((before, after)) = modelled.zip(library.modelled_ns(None)) {
        assert!(after - before <= 50_000_000, "{} ns", after - before);
        println!("{} µs modelled", (after - before) / 1000);
    }
}
