//! A page's lines as a script: what is replaced so that a test has the time, the names and the ports for it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Programs that serve until they are ended, and the option that names their port.
const SERVERS: [&str; 2] = ["llama-server", "ggml-rpc-server"];
/// What is measured with fewer tokens than a board's figures should have.
const SHORTER: [(&str, &str); 3] =
    [(" -p 512", " -p 64 -r 1"), (" -n 128", " -n 4 -r 1"), ("--chunks 20", "--chunks 1")];
/// The addresses of the pages' boards, and those of this machine that stand for them.
const NETWORK: (&str, &str) = ("192.168.1.", "127.0.1.");

/// Runs before the page. `serve` starts a server, waits until it takes connections, and ends the one that had its address;
/// whatever runs at the end is ended by its id.
const HEAD: &str = r#"set -eo pipefail
command_not_found_handle() { echo "no rule for the program $1: see tests/docs/stage.rs" >&2; return 127; }
declare -A servers
stop() { kill "$1" 2>/dev/null || true; wait "$1" 2>/dev/null || true; }
trap 'for id in "${servers[@]}"; do stop "$id"; done' EXIT
takes() { case $1 in *llama-server) curl -sf "http://$2:$3/health" >/dev/null;; *) (: <"/dev/tcp/$2/$3") 2>/dev/null;; esac; }
serve() {
  local program=$1 host=$2 port=$3; shift 3
  if [ -n "${servers[$host:$port]}" ]; then stop "${servers[$host:$port]}"; fi
  "$@" >"server-$host-$port.log" 2>&1 </dev/null &
  servers[$host:$port]=$!
  for try in {1..600}; do
    if takes "$program" "$host" "$port"; then return 0; fi
    kill -0 "${servers[$host:$port]}" || { cat "server-$host-$port.log"; return 1; }
    sleep 0.2
  done
  echo "$program does not answer"; return 1
}
"#;

/// What replaces what.
pub struct Script {
    board: PathBuf,
    ports: Vec<(&'static str, String)>,
    cpus: String,
}

impl Script {
    /// For a board at this path.
    pub fn new(board: &Path) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let ports = vec![("8080", free()), ("50052", free())];
        Self { board: board.to_owned(), ports, cpus: format!("0-{last}") }
    }

    /// The whole script; `mark` is written before each line, with its number.
    pub fn text(&self, lines: &[String], mark: &Path) -> String {
        let mut text = HEAD.to_owned();
        for (number, line) in lines.iter().enumerate() {
            let shown = line.replace('\'', "'\\''");
            text += &format!("echo '+ {shown}'\nprintf 'line\\037{number}\\036' >> {}\n", mark.display());
            text += &self.line(line);
            text.push('\n');
        }
        text
    }

    fn line(&self, line: &str) -> String {
        let mut line = self.on_board(line).replace(NETWORK.0, NETWORK.1);
        for (long, short) in SHORTER {
            line = line.replace(long, short);
        }
        for (port, free) in &self.ports {
            line = line.replace(port, free);
        }
        line =
            line.replace(" 4-7 ", &format!(" {} ", self.cpus)).replace("=4-7 ", &format!("={} ", self.cpus));
        let program = program(&line).to_owned();
        if program == "curl" {
            let ours = line.matches("://").count() == line.matches("http://127.0.0.1:").count();
            assert!(ours, "a test asks nobody but itself: {line}");
        }
        // It does not end by itself.
        if program == "llama-cli" && !line.contains(" -st") {
            return format!("{line} <<< /exit");
        }
        if !SERVERS.contains(&program.as_str()) {
            return line;
        }
        let after = |names: [&str; 2]| {
            let mut words = line.split_whitespace().skip_while(|word| !names.contains(word));
            words.nth(1).unwrap_or_else(|| panic!("expected one of {names:?}: {line}")).to_owned()
        };
        format!("serve {program} {} {} env {line}", after(["-H", "--host"]), after(["-p", "--port"]))
    }

    /// Has absolute paths begin at the board instead of at this machine's root, which a test never touches.
    fn on_board(&self, line: &str) -> String {
        let mut out = String::new();
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            let next = line[at + 1..].chars().next().filter(|_| c == '/');
            let begins = " =:\"'<>(".contains(before) && next.is_some_and(|next| next.is_ascii_lowercase());
            if begins && !line[at..].starts_with("/dev/null") {
                out += &self.board.display().to_string();
            }
            out.push(c);
            before = c;
        }
        out
    }

    /// What the page had, of what a stand-in was called with.
    pub fn restore(&self, argument: &str) -> String {
        let mut text = argument.replace(&self.board.display().to_string(), "").replace(NETWORK.1, NETWORK.0);
        for (port, free) in &self.ports {
            text = text.replace(free, port);
        }
        text
    }
}

/// The first program of a line, after its variables.
pub fn program(line: &str) -> &str {
    let mut words = line.split_whitespace();
    words
        .find(|word| !word.split('=').next().unwrap().chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .unwrap_or("")
}
