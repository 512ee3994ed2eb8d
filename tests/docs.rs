//! The documentation for people is held to what it says: each command of `docs/*.md` and of `packaging/README` is run, each
//! message of `docs/troubleshoot.md` is one of the sources' and the other way round, links lead to files, variables exist.
//!
//! A page is one script, run by bash in a folder of its own ([`stage`]) that looks like a board and a checkout: the host's
//! programs, the plugin and the emulator are real, and so is most of what a system has; what needs root, a network, a
//! compiler's half hour or a daemon is met by a stand-in that writes down how it was called, which [`rules`] then judge. A
//! program that is neither fails its page. Lines are made shorter and board's names replaced by [`script`], nothing else.
//! Of the packages, the service and the container nothing is installed, started or built.

mod common;
#[path = "docs/messages.rs"]
mod messages;
#[path = "docs/page.rs"]
mod page;
#[path = "docs/rules.rs"]
mod rules;
#[path = "docs/script.rs"]
mod script;
#[path = "docs/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{lab, skip};
use page::Page;
use stage::Stage;

/// The checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages, by their paths from the checkout.
fn pages() -> Vec<String> {
    let files = std::fs::read_dir(root().join("docs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    pages.sort();
    assert!(pages.len() >= 12, "{pages:?}");
    pages
}

/// Runs a page; its output has each of `said`. `after` looks at what it left.
fn run(test: &str, page: &str, said: &[&str], after: impl FnOnce(&Stage)) {
    let Some(lab) = lab(test) else { return };
    let page = Page::parse(page, &read(page));
    let stage = match Stage::new(&lab) {
        Ok(stage) => stage,
        Err(missing) => return skip(test, &missing),
    };
    let done = stage.run(&page);
    for text in said {
        assert!(done.output.contains(text), "{}: no {text:?} in\n{}", page.name, done.output);
    }
    for (line, call) in &done.calls {
        if let Err(wrong) = rules::check(root(), call) {
            panic!("{}: {line}: {wrong} ({call:?})", page.name);
        }
    }
    after(&stage);
    println!("{}: {} commands run, {} met by stand-ins", page.name, done.run, done.met);
    assert!(done.run > 0, "{}: nothing was run", page.name);
}

#[test]
fn install_runs() {
    let said =
        ["rockchip,rk3588", "RKNPU driver: v0.9.8", "librknnrt.so", "RKNPU: emulated RK3588", "All is well"];
    run("install_runs", "docs/install.md", &said, |stage| {
        assert_eq!(
            stage.on_board("etc/udev/rules.d/49-rknpu.rules"),
            read("packaging/49-rknpu.rules"),
            "the rule is where udev looks"
        );
        let met = stage.programs();
        for program in ["apt", "tar", "udevadm", "usermod", "git", "cmake"] {
            assert!(met.contains(program), "no stand-in met {program}: {met:?}");
        }
    });
}

#[test]
fn models_runs() {
    let said = ["\"fallbacks\": 0", "W4A8", "W16A16"];
    run("models_runs", "docs/models.md", &said, |stage| {
        assert!(stage.folder().join("q4_k_m.gguf").metadata().unwrap().len() > 50_000_000);
    });
}

#[test]
fn measure_runs() {
    let said = [
        "| RKNPU ",
        "| CPU ",
        "not supported on this system",
        "Mean    KLD",
        "Same top p",
        "roofline",
        "\"busy_ns\"",
        "\"fallbacks\": 0",
    ];
    run("measure_runs", "docs/measure.md", &said, |stage| {
        let trace: serde_json::Value = common::report(&stage.folder().join("trace.json"));
        let events = trace["traceEvents"].as_array().unwrap();
        assert!(events.iter().any(|event| event["args"]["name"] == "NPU core 0"), "no lane of a core");
    });
}

#[test]
fn tune_runs() {
    run("tune_runs", "docs/tune.md", &["ondemand", "| RKNPU "], |stage| {
        for file in ["class/devfreq/fdab0000.npu/governor", "class/devfreq/dmc/governor"] {
            assert_eq!(stage.on_board(&format!("sys/{file}")), "performance\n");
        }
        for cpu in ["cpu4", "cpu6"] {
            let file = format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor");
            assert_eq!(stage.on_board(&file), "performance\n");
        }
        let report = common::report(&stage.folder().join("report.json"));
        assert_ne!(
            report["weights_loaded"], 0,
            "the second start takes the weights from the disk, of which 9 GiB have to be free"
        );
    });
}

#[test]
fn serve_runs() {
    let said = ["\"status\":\"ok\"", "\"choices\"", "\"predicted_per_second\"", "\"draft_n\": "];
    run("serve_runs", "docs/serve.md", &said, |stage| {
        let unit = "ggml-rknpu-llama-server.service";
        assert_eq!(
            stage.on_board(&format!("etc/systemd/system/{unit}")),
            read(&format!("packaging/examples/{unit}"))
        );
        let met = stage.programs();
        assert!(met.contains("systemctl") && met.contains("docker"), "{met:?}");
    });
}

#[test]
fn cluster_runs() {
    run("cluster_runs", "docs/cluster.md", &["| RPC "], |stage| {
        let met = stage.programs();
        assert!(met.contains("ufw") && met.contains("cargo"), "{met:?}");
        for name in stage.logs() {
            assert!(name.contains("Accepted client connection"), "a server that nobody asked:\n{name}");
        }
        assert_eq!(stage.logs().len(), 2);
    });
}

#[test]
fn board_report_runs() {
    run("board_report_runs", "docs/board-report.md", &["\"npu_runs\"", "RKNPU: emulated RK3588"], |stage| {
        let doctor = common::report(&stage.folder().join("doctor.json"));
        assert_eq!(doctor["well"], true);
        // What the page says is not in there.
        let text = doctor.to_string();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert!(host.trim().len() < 3 || !text.contains(host.trim()), "the host's name is in the report");
    });
}

#[test]
fn the_packages_readme_runs() {
    run("the_packages_readme_runs", "packaging/README", &["All is well"], |_| ());
}

/// Pages with commands have a test above; those without have none.
#[test]
fn no_page_is_left_out() {
    let tested = ["install", "models", "measure", "tune", "serve", "cluster", "board-report"];
    for name in pages() {
        let page = Page::parse(&name, &read(&name));
        let is_tested = tested.iter().any(|tested| name == format!("docs/{tested}.md"));
        assert_eq!(!page.lines.is_empty(), is_tested, "{name}");
    }
}

#[test]
fn links_lead_to_files() {
    let mut links = 0;
    for name in pages().into_iter().chain(["README.md".to_owned()]) {
        let folder = Path::new(&name).parent().unwrap().to_owned();
        for link in page::links(&read(&name)) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if file.is_empty() { PathBuf::from(&name) } else { folder.join(file) };
            assert!(root().join(&path).exists(), "{name}: no file for {link}");
            if !anchor.is_empty() {
                let anchors = page::anchors(&read(path.to_str().unwrap()));
                assert!(anchors.contains(anchor), "{name}: no heading for {link} in {anchors:?}");
            }
            links += 1;
        }
    }
    assert!(links > 30, "{links}");
}

#[test]
fn the_index_has_every_page() {
    let links = page::links(&read("docs/README.md"));
    for name in pages() {
        let name = name.strip_prefix("docs/").unwrap();
        assert!(name == "README.md" || links.iter().any(|link| link == name), "{name} is not in the index");
    }
}

#[test]
fn variables_are_in_the_readmes_table() {
    let known: BTreeSet<String> = read("README.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| page::variables(line.split('|').nth(1).unwrap()))
        .collect();
    assert!(known.len() > 20, "{known:?}");
    let config = read("src/host/config.rs");
    let examples = ["Containerfile", "ggml-rknpu-llama-server.service"];
    let examples = examples.map(|name| format!("packaging/examples/{name}"));
    let mut seen = 0;
    for name in pages().into_iter().chain(examples).chain(["packaging/README".to_owned()]) {
        for variable in page::variables(&read(&name)) {
            assert!(known.contains(&variable), "{name}: {variable} is not in the README's table");
            // The emulator and xtask read the others.
            let others = variable.starts_with("RKNPU_EMU_") || variable == "RKNPU_MODEL";
            assert!(others || config.contains(&format!("\"{variable}\"")), "{name}: nobody reads {variable}");
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn each_message_is_the_sources_and_each_of_theirs_is_told() {
    let sources = messages::Sources::read(root());
    let told = messages::told(&read("docs/troubleshoot.md"));
    assert!(told.len() > 60 && sources.shown.len() > 60, "{} {}", told.len(), sources.shown.len());
    let invented: Vec<_> = told.difference(&sources.all).collect();
    assert!(invented.is_empty(), "nothing in the sources says so: {invented:#?}");
    let untold: Vec<_> = sources.shown.difference(&told).collect();
    assert!(untold.is_empty(), "docs/troubleshoot.md does not tell of: {untold:#?}");
}

/// `systemd-analyze verify` looks for the program, so that its path is one that is there.
#[test]
fn the_unit_is_one() {
    let test = "the_unit_is_one";
    if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return skip(test, "systemd-analyze is not installed");
    }
    let unit = read("packaging/examples/ggml-rknpu-llama-server.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let program = start.split_whitespace().next().unwrap();
    assert!(program.ends_with("/llama-server"), "{start}");
    let dir = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let path = dir.path().join("ggml-rknpu-llama-server.service");
        std::fs::write(&path, text).unwrap();
        let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Other units of this machine may have faults of their own.
        said.lines().filter(|line| line.contains("ggml-rknpu")).map(str::to_owned).collect::<Vec<_>>()
    };
    let unit = unit.replace(program, "/bin/true");
    assert_eq!(verify(&unit), [""; 0]);
    let wrong = verify(&unit.replace("DeviceAllow=char-drm rw", "DeviceAlow=char-drm rw"));
    assert!(!wrong.is_empty(), "a misspelt key is not noticed: this tries nothing");
    for line in [
        "DynamicUser=yes",
        "SupplementaryGroups=render video",
        "DeviceAllow=char-drm rw",
        "PrivateDevices=no",
    ] {
        assert!(unit.lines().any(|one| one == line), "{line}");
    }
}

/// The commands that build the image are judged as those of the pages; no daemon builds it.
#[test]
fn the_containers_commands_are_right() {
    let text = read("packaging/examples/Containerfile").replace("\\\n", " ");
    let mut judged = 0;
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (word, rest) = line.split_once(' ').unwrap();
        match word {
            "RUN" => {
                for command in rest.split("&&") {
                    let call: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
                    rules::check(root(), &call).unwrap_or_else(|wrong| panic!("{command}: {wrong}"));
                    judged += 1;
                }
            }
            "COPY" if !rest.starts_with("--from=build ") => {
                assert_eq!(rest.split(' ').next().unwrap(), rules::deb(root()));
            }
            "FROM" | "COPY" | "ENV" | "USER" | "EXPOSE" | "ENTRYPOINT" => {}
            _ => panic!("no rule for {word}"),
        }
    }
    assert!(judged >= 6, "{judged}");
}
