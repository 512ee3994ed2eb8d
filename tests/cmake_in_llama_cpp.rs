//! llama.cpp builds the plugin in with `-DLLAMA_RKNPU2=ON`: a clean unpacked tree by `CMAKE_PROJECT_INCLUDE`, a patched one by
//! itself; shared, loaded at run time, and static.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::{generate_with, lab, output, skip, Lab};

/// One build at a time: each takes all processors.
static BUILDING: Mutex<()> = Mutex::new(());

/// A kind of build: its folder, its options, and which of the host's programs are built.
type Kind = (&'static str, &'static [&'static str], &'static [&'static str]);
const KINDS: [Kind; 3] = [
    ("loaded", &["-DGGML_BACKEND_DL=ON", "-DBUILD_SHARED_LIBS=ON"], PROGRAMS),
    ("shared", &["-DGGML_BACKEND_DL=OFF", "-DBUILD_SHARED_LIBS=ON", QUICK], PROGRAMS),
    // Compiled a second time as a whole, so not the server, which llama-cli is made of.
    ("static", &["-DGGML_BACKEND_DL=OFF", "-DBUILD_SHARED_LIBS=OFF", QUICK], &["llama-completion"]),
];
const PROGRAMS: &[&str] = &["llama-cli", "llama-completion"];
/// Compiled anew, where the first one is what the tests' host is made of, so that ccache has it. Half of the time.
const QUICK: &str = "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG";

/// A copy of a host's sources, and builds of it.
struct Tree<'a> {
    lab: &'a Lab,
    dir: tempfile::TempDir,
    /// Options of the tests' own host, of the same sources.
    options: Vec<String>,
}

impl<'a> Tree<'a> {
    /// A copy of `source`, whose host is in `bin`.
    fn unpacked(lab: &'a Lab, source: &Path, bin: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        output(Command::new("cp").arg("-a").arg(source).arg(dir.path().join("source")));
        let cache = fs::read_to_string(bin.parent().unwrap().join("CMakeCache.txt")).unwrap_or_default();
        let ours = |line: &&str| {
            let names = ["GGML_", "LLAMA_"];
            names.iter().any(|name| line.starts_with(name)) && line.contains(":BOOL=")
        };
        let options = cache.lines().filter(ours).map(|line| format!("-D{line}")).collect();
        Self { lab, dir, options }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// Configures and builds; the folder of its programs.
    fn build(&self, (kind, options, programs): Kind, include: bool) -> PathBuf {
        let build = self.dir.path().join(format!("build-{kind}"));
        let mut cmake = Command::new("cmake");
        cmake.args(["-G", "Ninja", "-S"]).arg(self.source()).arg("-B").arg(&build);
        cmake.args(["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_RKNPU2=ON"]).args(&self.options).args(options);
        cmake.arg(format!("-DGGML_RKNPU_CARGO_DIR={}", self.lab.cargo_dir().display()));
        // The folder may have been configured with it before.
        cmake.arg("-UCMAKE_PROJECT_INCLUDE");
        if include {
            cmake.arg(concat!("-DCMAKE_PROJECT_INCLUDE=", env!("CARGO_MANIFEST_DIR"), "/cmake/rknpu.cmake"));
        }
        let (out, _) = output(&mut cmake);
        assert!(out.contains("Including RKNPU backend"), "{out}");
        let mut ninja = Command::new("ninja");
        output(ninja.arg("-C").arg(&build).args(programs).env("CCACHE_BASEDIR", self.dir.path()));
        build.join("bin")
    }

    /// Names the device and generates text on it, without a variable that names the plugin.
    fn serves(&self, bin: &Path, programs: &[&str]) {
        let mut lab = self.lab.clone();
        bin.clone_into(&mut lab.host);
        for program in programs {
            let list = |variable: Option<(&str, &str)>| {
                let mut command = lab.npu(program, "rk3588");
                command.env_remove("GGML_BACKEND_PATH").arg("--list-devices").envs(variable);
                output(&mut command).0
            };
            let listed = list(None);
            assert_eq!(listed.matches("RKNPU: emulated RK3588").count(), 1, "{program}: {listed}");
            let disabled = list(Some(("RKNPU_DISABLE", "1")));
            assert!(disabled.contains("(none)"), "{program}: {disabled}");
        }
        let prompt = ("The capital of France is", 16);
        let variables = [("RKNPU_DECODE", "npu"), ("OMP_WAIT_POLICY", "passive")];
        let (text, _, report) =
            generate_with(&lab, "F16", prompt, &variables, |command| command.env_remove("GGML_BACKEND_PATH"));
        let mut cpu = self.lab.cpu("llama-completion");
        cpu.arg("-m").arg(lab.model("F16")).args(["-p", prompt.0, "-n", "16", "--temp", "0", "-no-cnv"]);
        assert_eq!(text, output(cpu.args(["-t", "2"])).0, "the text of the CPU alone");
        assert!(report["npu_runs"].as_u64().unwrap() > 16 * 100 && report["fallbacks"] == 0, "{report}");
    }

    /// `cargo xtask patch` with these options; what it said.
    fn patch(&self, xtask: &Path, options: &[&str]) -> String {
        output(Command::new(xtask).arg("patch").arg(self.source()).args(options)).0
    }
}

/// Every file of `a` is in `b` and is the same, and `b` has no other.
fn assert_same(a: &Path, b: &Path) {
    output(Command::new("diff").args(["-r", "--no-dereference"]).arg(a).arg(b));
}

/// The lab, the sources of a host, its programs, and xtask.
fn needs(variable: &str, test: &str) -> Option<(Lab, PathBuf, PathBuf, PathBuf)> {
    let lab = lab(test)?;
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let found = (path(&format!("{variable}_SOURCE")), path(variable), path("GGML_RKNPU_XTASK"));
    let (Some(source), Some(bin), Some(xtask)) = found else {
        skip(test, &format!("{variable}_SOURCE is not set, run cargo xtask test"));
        return None;
    };
    Some((lab, source, bin, xtask))
}

#[test]
fn a_clean_tree_and_a_patched_one_build_it_in_each_way() {
    let test = "a_clean_tree_and_a_patched_one_build_it_in_each_way";
    let Some((lab, source, bin, xtask)) = needs("GGML_RKNPU_TEST_HOST", test) else { return };
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let tree = Tree::unpacked(&lab, &source, &bin);
    for kind in KINDS {
        let bin = tree.build(kind, true);
        assert_eq!(bin.join("libggml-rknpu.so").exists(), kind.0 != "static");
        tree.serves(&bin, kind.2);
    }
    assert_same(&source, &tree.source());

    assert!(tree.patch(&xtask, &["--check"]).contains("b11434, to which its patch can be applied"));
    assert!(tree.patch(&xtask, &[]).contains("b11434, patched; now: cmake -S"));
    assert!(tree.patch(&xtask, &["--check"]).contains("b11434, with its patch"));
    // Only what the patch changes is compiled anew.
    for kind in KINDS {
        let bin = tree.build(kind, false);
        tree.serves(&bin, kind.2);
    }
    assert!(tree.patch(&xtask, &["--revert"]).contains("every file is as it was"));
    assert_same(&source, &tree.source());
}

#[test]
fn the_tree_of_llama_cpp_python_builds_it_in() {
    let test = "the_tree_of_llama_cpp_python_builds_it_in";
    let Some((lab, source, bin, xtask)) = needs("GGML_RKNPU_TEST_HOST_V2_2D", test) else { return };
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let tree = Tree::unpacked(&lab, &source, &bin);
    assert!(tree.patch(&xtask, &[]).contains("llama-cpp-python-0.3.36, patched; now: cmake -S"));
    let kind = (KINDS[0].0, KINDS[0].1, &["llama-completion"][..]);
    tree.serves(&tree.build(kind, false), kind.2);
    tree.patch(&xtask, &["--revert"]);
    assert_same(&source, &tree.source());
    // And without the patch, in the same folder.
    tree.serves(&tree.build(kind, true), kind.2);
}
