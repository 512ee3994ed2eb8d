//! What the plugin says to its user, by its sources, and what `docs/troubleshoot.md` tells of it.
//!
//! In both, `…` stands for a value: what is in braces in a format string. **Messages that are shown** are, outside of tests:
//!
//! 1. the text of each `log!(Warn, …)` and `log!(Error, …)`, and of each `#[error(…)]`, of two words or more;
//! 2. the text of each `format!(…)` of four words or more in the files that make sentences for the user ([`SENTENCES`]),
//!    unless it is of a line of a lower level;
//! 3. each text with a colon in `src/host/trust.rs`, which says what differs, and what is used instead.
//!
//! Shorter ones are frames of others ("line …: …"), and need not be told. What is told must be a text of the sources, shown
//! or not, from its first character to its last: a code span with `…` or of three words and more is such a message.

use std::collections::BTreeSet;
use std::path::Path;

/// Folders and files whose `format!` makes sentences for the user.
const SENTENCES: [&str; 4] = ["src/host/", "src/policy/", "ggml-sys/src/host.rs", "ggml-sys/src/sample.rs"];
/// Texts of theirs that are no messages: what may stand at the end of "… is …, expected …".
const NO_MESSAGES: [&str; 2] =
    ["numbers from 0 to … such as \"0\", \"0,2\" or \"0-3\"", "one of …, … (each as it is or with …)"];

/// The texts of the sources.
pub struct Sources {
    /// All of them.
    pub all: BTreeSet<String>,
    /// Those that a user sees without asking.
    pub shown: BTreeSet<String>,
}

impl Sources {
    /// Reads the plugin and the two crates below it.
    pub fn read(root: &Path) -> Self {
        let mut sources = Self { all: BTreeSet::new(), shown: BTreeSet::new() };
        for folder in ["src", "rknn-sys/src", "ggml-sys/src"] {
            sources.folder(root, &root.join(folder));
        }
        sources
    }

    fn folder(&mut self, root: &Path, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                self.folder(root, &path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.ends_with("sys.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                self.file(&name, text.split("#[cfg(test)]\nmod tests {").next().unwrap());
            }
        }
    }

    fn file(&mut self, name: &str, text: &str) {
        for (before, literal) in literals(text) {
            let message = message(&literal);
            let after = |ends: &[&str]| ends.iter().any(|end| before.ends_with(end));
            let words = words(&message);
            let shown = after(&["log!(Warn,", "log!(Error,", "#[error("]) && words >= 2
                || after(&["format!("])
                    && words >= 4
                    && SENTENCES.iter().any(|start| name.starts_with(start))
                || name == "src/host/trust.rs"
                    && message.contains(": ")
                    && !after(&["log!(Debug,", "log!(Info,"]);
            if shown && !NO_MESSAGES.contains(&message.as_str()) {
                self.shown.insert(message.clone());
            }
            self.all.insert(message);
        }
    }
}

/// Words of letters.
fn words(message: &str) -> usize {
    message.split_whitespace().filter(|word| word.contains(|c: char| c.is_ascii_alphabetic())).count()
}

/// A format string with `…` for its values.
fn message(literal: &str) -> String {
    let mut out = String::new();
    let mut chars = literal.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.peek() == Some(&c) => {
                chars.next();
                out.push(c);
            }
            '{' => {
                while chars.next().is_some_and(|c| c != '}') {}
                out.push('…');
            }
            _ => out.push(c),
        }
    }
    out
}

/// The plain string literals of Rust code, each with the code before it, as far as it matters and without white space.
fn literals(text: &str) -> Vec<(String, String)> {
    let (mut found, mut code) = (Vec::new(), String::new());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if c == '"' {
            let (literal, after) = literal(&rest[1..]);
            found.push((code.clone(), literal));
            code.clear();
            rest = after;
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            // A character that would begin a string.
            rest = &rest[rest[1..].find('\'').unwrap() + 2..];
        } else {
            if !c.is_whitespace() {
                code.push(c);
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// A literal from after its first quote on, and what follows it.
fn literal(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut rest = text;
    loop {
        let c = rest.chars().next().expect("a string ends");
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return (out, rest),
            '\\' if rest.starts_with('\n') => rest = rest.trim_start(),
            '\\' => {
                let escaped = rest.chars().next().unwrap();
                out.push(if escaped == 'n' { '\n' } else { escaped });
                rest = &rest[escaped.len_utf8()..];
            }
            _ => out.push(c),
        }
    }
}

/// The messages that a page tells of.
pub fn told(page: &str) -> BTreeSet<String> {
    let spans = page.split('`').skip(1).step_by(2);
    spans.filter(|span| span.contains('…') || words(span) >= 3).map(str::to_owned).collect()
}
