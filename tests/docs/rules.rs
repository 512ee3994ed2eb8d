//! What is right of commands that a test cannot run: names of files, options and targets are ones that exist.

use std::path::{Path, PathBuf};

/// Debian's packages that pages may install.
const PACKAGES: [&str; 8] =
    ["ca-certificates", "cmake", "g++", "git", "jq", "libgomp1", "libstdc++6", "ninja-build"];
/// Options of `docker run` with a value, and those without.
const DOCKER: [&str; 8] = ["-p", "--device", "--group-add", "--ulimit", "-e", "-v", "-t", "-f"];
const DOCKER_FLAGS: [&str; 1] = ["--rm"];

/// Judges a call: the program's name and its arguments.
pub fn check(root: &Path, call: &[String]) -> Result<(), String> {
    let words: Vec<&str> = call.iter().map(String::as_str).collect();
    let (program, words) = words.split_first().ok_or("nothing is called")?;
    match *program {
        "apt" | "apt-get" => apt(root, words),
        "tar" => expect(words, &["-xzf", &archive(root), "-C", "/opt"]),
        "rm" => all(words, |word| {
            word.starts_with("-rf") || word.starts_with("/var/lib/apt") || word.starts_with("/tmp/")
        }),
        "usermod" => expect(words, &["-aG", "render,video", "somebody"]),
        "udevadm" => {
            let script = read(root, "packaging/postinst")?;
            has(&script, &format!("udevadm {}", words.join(" ")))
        }
        "git" => git(root, words),
        "cmake" => cmake(words),
        "cargo" => xtask(root, words),
        "systemctl" => match words {
            ["daemon-reload"] => Ok(()),
            ["enable", "--now", unit] => example(root, &format!("{unit}.service")),
            _ => Err("not a rule of systemctl".to_owned()),
        },
        "journalctl" => match words {
            ["-u", unit, "-n", _] => example(root, &format!("{unit}.service")),
            _ => Err("not a rule of journalctl".to_owned()),
        },
        "ufw" => {
            expect(words, &["allow", "from", "192.168.1.0/24", "to", "any", "port", "50052", "proto", "tcp"])
        }
        "docker" => docker(root, words),
        "dmesg" => expect(words, &[]),
        _ => Err(format!("there is no rule for {program}: write one in tests/docs/rules.rs")),
    }
}

fn read(root: &Path, path: &str) -> Result<String, String> {
    std::fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))
}

fn expect(found: &[&str], expected: &[&str]) -> Result<(), String> {
    (found == expected).then_some(()).ok_or_else(|| format!("expected {expected:?}"))
}

fn all(words: &[&str], is_right: impl Fn(&str) -> bool) -> Result<(), String> {
    let wrong = words.iter().find(|word| !is_right(word));
    wrong.map_or(Ok(()), |word| Err(format!("{word} is not expected")))
}

fn has(text: &str, part: &str) -> Result<(), String> {
    text.contains(part).then_some(()).ok_or_else(|| format!("nothing says {part:?}"))
}

fn example(root: &Path, name: &str) -> Result<(), String> {
    read(root, &format!("packaging/examples/{name}")).map(|_| ())
}

/// The version of all packages.
fn version(root: &Path) -> String {
    let manifest = read(root, "Cargo.toml").unwrap();
    let rest = manifest.split("[workspace.package]").nth(1).unwrap();
    rest.split('"').nth(1).unwrap().to_owned()
}

/// What `cargo xtask package` calls its files, by its own words.
fn packaged(root: &Path, says: &str, name: String) -> String {
    let source = read(root, "xtask/src/package/mod.rs").unwrap();
    assert!(source.contains(says), "cargo xtask package does not say {says} any more");
    name
}

/// Debian's package.
pub fn deb(root: &Path) -> String {
    let name = format!("ggml-rknpu_{}-1_arm64.deb", version(root));
    packaged(root, "{SUBJECT}_{version}-1_{}.deb", name)
}

/// The archive.
fn archive(root: &Path) -> String {
    let name = format!("ggml-rknpu-{}-aarch64-unknown-linux-gnu.tar.gz", version(root));
    packaged(root, "{SUBJECT}-{version}-{}", name)
}

fn apt(root: &Path, words: &[&str]) -> Result<(), String> {
    match words {
        ["update"] => Ok(()),
        ["install", rest @ ..] => all(rest, |word| {
            let file = word.strip_prefix("./").or_else(|| word.strip_prefix("/tmp/"));
            PACKAGES.contains(&word)
                || ["-y", "--no-install-recommends"].contains(&word)
                || file.is_some_and(|file| file == deb(root))
        }),
        _ => Err("expected update or install".to_owned()),
    }
}

/// The version that the README says the tests use.
fn git(root: &Path, words: &[&str]) -> Result<(), String> {
    let ["clone", "--depth", "1", "--branch", branch, "https://github.com/ggml-org/llama.cpp", ..] = words
    else {
        return Err("expected a clone of llama.cpp, of one version".to_owned());
    };
    has(&read(root, "README.md")?, &format!("| llama.cpp {branch} |"))
}

/// The host's own sources.
fn source() -> Result<PathBuf, String> {
    let path = std::env::var_os("GGML_RKNPU_TEST_HOST_SOURCE");
    path.map(PathBuf::from).ok_or_else(|| "GGML_RKNPU_TEST_HOST_SOURCE names no folder".to_owned())
}

/// All `CMakeLists.txt` of the host, below its folders of programs and backends.
fn lists(folder: &Path, depth: usize, text: &mut String) {
    *text += &std::fs::read_to_string(folder.join("CMakeLists.txt")).unwrap_or_default();
    if depth == 0 {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            lists(&entry.path(), depth - 1, text);
        }
    }
}

fn cmake(words: &[&str]) -> Result<(), String> {
    let source = source()?;
    let mut text = String::new();
    for (folder, depth) in [("", 0), ("ggml", 1), ("tools", 1)] {
        lists(&source.join(folder), depth, &mut text);
    }
    if let ["--build", _, "--target", targets @ ..] = words {
        if !targets.contains(&"ggml-cpu") {
            return Err("ggml-cpu must be named when targets are".to_owned());
        }
        return all(targets, |target| {
            let backend = target.strip_prefix("ggml-").map(str::to_uppercase);
            text.contains(&format!("set(TARGET {target})"))
                || backend.is_some_and(|name| text.contains(&format!("ggml_add_backend({name})")))
        });
    }
    let ["-S", _, "-B", _, rest @ ..] = words else {
        return Err("expected -S and -B, or --build".to_owned());
    };
    all(rest, |word| {
        let option = word.strip_prefix("-D").and_then(|option| option.split_once('='));
        let exists = |name: &str| {
            text.contains(&format!("option({name} ")) || text.contains(&format!("option({name}\t"))
        };
        ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"].contains(&word)
            || option.is_some_and(|(name, value)| exists(name) && ["ON", "OFF"].contains(&value))
    })
}

/// A command that the README lists, and options that its source has.
fn xtask(root: &Path, words: &[&str]) -> Result<(), String> {
    let ["xtask", command, rest @ ..] = words else { return Err("expected cargo xtask".to_owned()) };
    has(&read(root, "README.md")?, &format!("| `cargo xtask {command}"))?;
    let source = read(root, &format!("xtask/src/{command}.rs"))
        .or_else(|_| read(root, &format!("xtask/src/{command}/mod.rs")))?;
    for option in rest.iter().filter_map(|word| word.strip_prefix("--")) {
        has(&source, &format!("    {}: ", option.replace('-', "_")))?;
    }
    Ok(())
}

fn docker(root: &Path, words: &[&str]) -> Result<(), String> {
    match words {
        ["build", "-t", "llama-rknpu", "-f", file, "target/package"] => read(root, file).map(|_| ()),
        ["run", rest @ ..] => {
            let mut rest = rest.iter();
            loop {
                match *rest.next().ok_or("no image is named")? {
                    "llama-rknpu" => return Ok(()),
                    flag if DOCKER_FLAGS.contains(&flag) => {}
                    option if DOCKER.contains(&option) => {
                        value(root, option, rest.next().ok_or("no value")?)?
                    }
                    word => return Err(format!("{word} is no known option")),
                }
            }
        }
        _ => Err("expected build or run".to_owned()),
    }
}

/// The value of an option of `docker run`.
fn value(root: &Path, option: &str, value: &str) -> Result<(), String> {
    let is_right = match option {
        "--device" => ["/dev/dri", "/dev/dma_heap"].contains(&value),
        // Of this machine, where a group may be missing: empty then.
        "--group-add" => value.chars().all(|c| c.is_ascii_digit()),
        "--ulimit" => value.starts_with("nofile="),
        "-p" => value.starts_with("127.0.0.1:"),
        "-e" => {
            return has(
                &read(root, "src/host/config.rs")?,
                &format!("\"{}\"", value.split('=').next().unwrap()),
            )
        }
        "-v" => value.split(':').nth(1).is_some_and(|inside| inside.starts_with('/')),
        _ => true,
    };
    is_right.then_some(()).ok_or_else(|| format!("{option} {value} is not expected"))
}
