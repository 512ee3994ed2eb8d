//! Where a page is run: a folder that is a checkout, a home and a board, with programs that are real or stand in.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::common::Lab;
use super::page::Page;
use super::script::{program, Script};

/// The system's own programs that pages may use. Builtins of bash need no entry.
const SYSTEM: [&str; 25] = [
    "bash", "cat", "cp", "curl", "cut", "date", "env", "false", "find", "getent", "grep", "head", "id", "jq",
    "kill", "ls", "mkdir", "sleep", "tail", "taskset", "tee", "timeout", "tr", "true", "uname",
];
/// What needs root, a network, a daemon or half an hour: called, it writes down its arguments and does nothing.
const STAND_INS: [&str; 13] = [
    "apt",
    "cargo",
    "cmake",
    "dmesg",
    "docker",
    "git",
    "journalctl",
    "systemctl",
    "tar",
    "udevadm",
    "ufw",
    "usermod",
    "useradd",
];
/// Parts of a call, and calls, end with these.
const PART: char = '\u{1f}';
const CALL: char = '\u{1e}';
/// Seconds that a page may take.
const MOST: &str = "300";
/// Bytes of the evaluation text: one chunk of 512 tokens needs 1024.
const TEXT: usize = 14_000;

/// The folder.
pub struct Stage {
    lab: Lab,
    dir: tempfile::TempDir,
}

/// What a page did.
pub struct Done {
    /// All that was written.
    pub output: String,
    /// Calls of stand-ins, each with the page's line.
    pub calls: Vec<(String, Vec<String>)>,
    /// Lines that were run as they are, and those that met a stand-in.
    pub run: usize,
    /// See `run`.
    pub met: usize,
}

impl Stage {
    /// Sets it up; what is missing on this machine, if something is.
    pub fn new(lab: &Lab) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let stage = Self { lab: lab.clone(), dir };
        let bin = stage.dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        for name in SYSTEM {
            let found =
                path.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
            symlink(found.ok_or_else(|| format!("{name} is not installed"))?, bin.join(name)).unwrap();
        }
        // It provokes refusals, which abort a strict emulator.
        let doctor = format!("#!/bin/bash\nunset RKNPU_EMU_STRICT\nexec {} \"$@\"\n", doctor(lab)?.display());
        program_file(&bin.join("rknpu-doctor"), &doctor);
        let record = stage.record();
        for name in STAND_INS {
            // Part by part, since an argument may have spaces.
            let script = format!(
                "#!/bin/bash\nprintf '{name}' >> {0}\nfor part in \"$@\"; do printf '\\037%s' \"$part\" >> {0}; done\nprintf '\\036' >> {0}\n",
                record.display()
            );
            program_file(&bin.join(name), &script);
        }
        program_file(&bin.join("sudo"), "#!/bin/bash\nexec \"$@\"\n");
        stage.board();
        stage.checkout()?;
        Ok(stage)
    }

    /// The working folder of the page.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("checkout")
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("calls")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("board")
    }

    /// The text of a file of the board.
    pub fn on_board(&self, path: &str) -> String {
        let path = self.root().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// An RK3588 as the pages have people look at it.
    fn board(&self) {
        let governor = "ondemand\n";
        for (path, text) in [
            ("proc/device-tree/compatible", "xunlong,orangepi-5\0rockchip,rk3588s\0"),
            ("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8\n"),
            ("sys/class/devfreq/fdab0000.npu/governor", governor),
            ("sys/class/devfreq/dmc/governor", governor),
            ("sys/devices/system/cpu/cpu4/cpufreq/scaling_governor", governor),
            ("sys/devices/system/cpu/cpu6/cpufreq/scaling_governor", governor),
            ("dev/dri/renderD128", ""),
            ("dev/dma_heap/system", ""),
            ("etc/udev/rules.d/README", ""),
            ("etc/systemd/system/README", ""),
            ("usr/lib/aarch64-linux-gnu/README", ""),
        ] {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let lib = self.root().join("usr/lib");
        symlink(&self.lab.emulator, lib.join("librknnrt.so")).unwrap();
        symlink(&self.lab.plugin, lib.join("aarch64-linux-gnu/libggml-rknpu.so")).unwrap();
    }

    /// The folder in which people type: their models, the text, and what the pages take from a checkout.
    fn checkout(&self) -> Result<(), String> {
        let folder = self.folder();
        fs::create_dir_all(&folder).unwrap();
        symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging"), folder.join("packaging")).unwrap();
        for (name, model) in [("model.gguf", "Q8_0"), ("draft.gguf", "Q4_0"), ("f16.gguf", "F16")] {
            symlink(self.lab.model(model), folder.join(name)).unwrap();
        }
        let text = std::env::var_os("GGML_RKNPU_TEST_TEXT").ok_or("GGML_RKNPU_TEST_TEXT names no text")?;
        let text = fs::read(text).map_err(|error| format!("GGML_RKNPU_TEST_TEXT: {error}"))?;
        fs::write(folder.join("wiki.test.raw"), &text[..TEXT.min(text.len())]).unwrap();
        Ok(())
    }

    /// Runs all commands of a page, one page at a time: they are given all processors. Fails the test when one fails.
    pub fn run(&self, page: &Page) -> Done {
        static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = self.folder();
        for (name, text) in &page.files {
            fs::write(folder.join(name), text).unwrap();
        }
        let paths = [("@PLUGIN@", &self.lab.plugin), ("@EMULATOR@", &self.lab.emulator)];
        let lines = page.lines.iter().map(|line| {
            // Those of the packages name files by where they will be: already on this machine.
            paths
                .iter()
                .fold(line.clone(), |line, (name, path)| line.replace(name, &path.display().to_string()))
        });
        let lines: Vec<String> = lines.collect();
        let (script, record) = (Script::new(&self.root()), self.record());
        fs::write(&record, "").unwrap();
        let text = if page.name.ends_with(".md") {
            script.text(&lines, &record)
        } else {
            // Real paths, and nothing else than what is said.
            Script::new(Path::new("")).text(&lines, &record)
        };
        let file = self.dir.path().join("page.sh");
        fs::write(&file, text).unwrap();
        let all = self.dir.path().join("output");

        let mut bash = Command::new("timeout");
        bash.args(["-k", "10", MOST, "bash"]).arg(&file).current_dir(&folder);
        self.lab.apply(&mut bash, Some("rk3588"));
        let path = format!("{}:{}", self.dir.path().join("bin").display(), self.lab.host.display());
        bash.env("PATH", path).env("HOME", self.dir.path()).env("USER", "somebody");
        bash.env("OMP_WAIT_POLICY", "passive").env_remove("XDG_CACHE_HOME");
        let out = fs::File::create(&all).unwrap();
        bash.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let status = bash.status().unwrap();
        let output = String::from_utf8_lossy(&fs::read(&all).unwrap()).into_owned();
        assert!(status.success(), "{}: {status} in the last line that begins with +:\n{output}", page.name);

        let mut done = Done { output, calls: Vec::new(), run: 0, met: 0 };
        let calls = self.calls();
        for (number, line) in lines.iter().enumerate() {
            let mark = vec!["line".to_owned(), number.to_string()];
            let at = calls.iter().position(|call| *call == mark);
            let at = at.unwrap_or_else(|| panic!("{}: {line} was not reached", page.name));
            let met: Vec<_> = calls[at + 1..].iter().take_while(|call| call[0] != "line").collect();
            // A stand-in that is written in a line is called by it.
            let first = program(line.trim_start_matches("sudo "));
            assert!(!STAND_INS.contains(&first) || !met.is_empty(), "{}: {line}", page.name);
            if met.is_empty() {
                done.run += 1;
            } else {
                done.met += 1;
            }
            for call in met {
                let call = call.iter().map(|part| script.restore(part)).collect();
                done.calls.push((line.clone(), call));
            }
        }
        done
    }

    /// What was written down, marks of lines included.
    fn calls(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.record()).unwrap();
        let calls = text.split(CALL).filter(|call| !call.is_empty());
        calls.map(|call| call.split(PART).map(str::to_owned).collect()).collect()
    }

    /// The stand-ins that were called.
    pub fn programs(&self) -> BTreeSet<String> {
        self.calls().into_iter().map(|call| call[0].clone()).filter(|name| name != "line").collect()
    }

    /// What the servers wrote.
    pub fn logs(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder()).unwrap().map(|file| file.unwrap().path());
        let logs = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("server-"));
        logs.map(|path| fs::read_to_string(path).unwrap()).collect()
    }
}

fn program_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The doctor beside the plugin, or beside this test's own folder, where the doctor's tests have it built.
fn doctor(lab: &Lab) -> Result<PathBuf, String> {
    let here = std::env::current_exe().unwrap();
    let folders = [lab.plugin.parent(), here.ancestors().nth(2)];
    let found =
        folders.into_iter().flatten().map(|folder| folder.join("rknpu-doctor")).find(|path| path.is_file());
    found.ok_or_else(|| "no rknpu-doctor is built, run cargo build -p rknpu-doctor".to_owned())
}
