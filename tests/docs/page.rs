//! A page of the documentation: its commands, links, headings and variables.

use std::collections::BTreeSet;

/// Kinds of fenced blocks that are not for a shell. Any other but `sh` is refused, so that no command hides in one.
const SILENT: [&str; 1] = ["toml"];

/// A page with the commands that it has people type.
pub struct Page {
    /// Its path from the checkout.
    pub name: String,
    /// Its commands, one a line, continued lines joined.
    pub lines: Vec<String>,
    /// Files that it shows, by name: blocks of TOML that begin with `# NAME`.
    pub files: Vec<(String, String)>,
}

impl Page {
    /// Reads Markdown, or a text whose indented lines are commands where its name has no `.md`.
    pub fn parse(name: &str, text: &str) -> Self {
        let mut page = Self { name: name.to_owned(), lines: Vec::new(), files: Vec::new() };
        if !name.ends_with(".md") {
            let commands = text.lines().filter_map(|line| line.strip_prefix("    "));
            // "…  # then log in again".
            page.lines = commands.map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect();
            return page;
        }
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(kind) = line.trim_start().strip_prefix("```") else { continue };
            let block: Vec<&str> =
                lines.by_ref().take_while(|line| !line.trim().starts_with("```")).collect();
            match kind {
                "sh" => page.lines.extend(joined(&block)),
                kind if SILENT.contains(&kind) => {
                    if let Some(file) = block.first().and_then(|line| line.strip_prefix("# ")) {
                        page.files.push((file.to_owned(), block.join("\n")));
                    }
                }
                _ => panic!("{name}: a block of kind {kind:?}, expected sh or one of {SILENT:?}"),
            }
        }
        page
    }
}

fn joined(block: &[&str]) -> Vec<String> {
    let text = block.join("\n").replace("\\\n", "");
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

/// The targets of relative links, without what is in code.
pub fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|link| !link.contains("://")).map(str::to_owned).collect()
}

/// The anchors of a page's headings.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

/// The names of our variables.
pub fn variables(text: &str) -> BTreeSet<String> {
    let is_of_a_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_of_a_name(c));
    words.filter(|word| word.starts_with("RKNPU_") && word.len() > 6).map(str::to_owned).collect()
}
