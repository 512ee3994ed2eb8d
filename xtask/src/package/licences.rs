//! Licences of what is inside: each must be one that deny.toml allows, and its text goes along.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::inventory::Package;
use crate::error::{Error, IoContext, Result};

/// The file that says what is allowed; cargo-deny reads it too.
const RULES: &str = "deny.toml";
/// How the texts begin. What no package of cargo's brings is named here.
const ABOUT: &str = "The Rust packages inside ggml-rknpu, with the texts of their licences. Besides them there are parts of\n\
    the Rust standard library (MIT OR Apache-2.0) and of LLVM's unwinder (Apache-2.0 WITH LLVM-exception).\n";
/// How files with the text of a licence begin, in capitals.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "UNLICENSE", "NOTICE"];

/// deny.toml, as far as this looks at it.
#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate", alias = "name")]
    package: String,
    allow: Vec<String>,
}

/// What deny.toml allows.
#[derive(Debug)]
struct Rules {
    all: Vec<Licensee>,
    exceptions: BTreeMap<String, Vec<Licensee>>,
}

impl Rules {
    fn read(text: &str) -> Result<Self, String> {
        let deny: Deny = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let parse = |name: &String| {
            Licensee::parse(name).map_err(|error| format!("{name} is no licence: {}", error.reason))
        };
        let list = |names: &[String]| names.iter().map(parse).collect::<Result<Vec<_>, String>>();
        let exceptions = deny.licenses.exceptions.iter();
        let exceptions = exceptions.map(|one| Ok((one.package.clone(), list(&one.allow)?)));
        Ok(Self { all: list(&deny.licenses.allow)?, exceptions: exceptions.collect::<Result<_, String>>()? })
    }

    fn check(&self, package: &Package) -> Result<(), String> {
        let who = format!("{} {}", package.name, package.version);
        let text = package.licence.as_deref().ok_or(format!("{who} names no licence"))?;
        let expression = Expression::parse_mode(text, ParseMode::LAX)
            .map_err(|error| format!("{who} has the licence {text:?}: {}", error.reason))?;
        let own = self.exceptions.get(&package.name).into_iter().flatten();
        let allowed: Vec<&Licensee> = self.all.iter().chain(own).collect();
        if expression.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted))) {
            return Ok(());
        }
        Err(format!(
            "{who} has the licence {text}, which {RULES} does not allow; do without it, or allow it there"
        ))
    }
}

/// Checks all of them against the deny.toml at `root`.
///
/// # Errors
/// The first that is not allowed, or what is wrong with deny.toml.
pub fn check(root: &Path, packages: &[Package]) -> Result<()> {
    let path = root.join(RULES);
    let text = fs::read_to_string(&path).at("read", &path)?;
    let rules = Rules::read(&text).map_err(|why| Error::Refused(format!("{}: {why}", path.display())))?;
    packages.iter().try_for_each(|package| rules.check(package)).map_err(Error::Refused)
}

/// The texts, each once, below the names of those whose it is.
///
/// # Errors
/// A disk's.
pub fn texts(packages: &[Package]) -> Result<String> {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.iter().filter(|package| !package.is_own) {
        let licence = package.licence.as_deref().unwrap_or("?");
        for text in texts_in(&package.folder)? {
            let of = format!("{} {} ({licence})", package.name, package.version);
            holders.entry(text).or_default().push(of);
        }
    }
    let mut parts: Vec<(String, String)> =
        holders.into_iter().map(|(text, of)| (of.join("\n"), text)).collect();
    parts.sort();
    let line = "-".repeat(80);
    let mut out = ABOUT.to_owned();
    for (of, text) in parts {
        out += &format!("\n{line}\n{of}\n{line}\n\n{}\n", text.trim_matches('\n'));
    }
    Ok(out)
}

/// In the order of the files' names.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && TEXTS.iter().any(|start| name.starts_with(start)) {
            let bytes = fs::read(&path).at("read", &path)?;
            found.insert(name, String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::setup::plugin::workspace;

    fn package(name: &str, licence: Option<&str>, folder: &Path) -> Package {
        Package {
            name: name.to_owned(),
            version: "1.2.3".to_owned(),
            licence: licence.map(str::to_owned),
            folder: folder.to_owned(),
            is_own: false,
            needs: BTreeSet::new(),
        }
    }

    fn verdict(name: &str, licence: Option<&str>) -> Result<(), String> {
        let packages = [package(name, licence, Path::new(""))];
        check(&workspace(), &packages).map_err(|error| error.to_string())
    }

    #[test]
    fn what_deny_toml_allows_is_let_in() {
        for licence in ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "GPL-3.0-only OR ISC", "Zlib AND MIT"] {
            assert_eq!(verdict("x", Some(licence)), Ok(()), "{licence}");
        }
        assert_eq!(verdict("cbindgen", Some("MPL-2.0")), Ok(()), "an exception of its own");
    }

    #[test]
    fn anything_else_is_kept_out_and_named() {
        let error = verdict("x", Some("GPL-3.0-only")).unwrap_err();
        assert!(
            error.starts_with("x 1.2.3 has the licence GPL-3.0-only, which deny.toml does not allow"),
            "{error}"
        );
        for licence in ["MPL-2.0", "MIT AND GPL-2.0-or-later", "Apache-2.0 WITH LLVM-exception"] {
            assert!(verdict("x", Some(licence)).unwrap_err().contains(licence));
        }
        assert_eq!(verdict("x", None).unwrap_err(), "x 1.2.3 names no licence");
        assert!(verdict("x", Some("whatever")).unwrap_err().contains("\"whatever\""));
    }

    #[test]
    fn rules_that_say_nothing_are_an_error() {
        for (text, why) in [
            ("x = ", ""),
            ("[bans]", "missing field `licenses`"),
            ("[licenses]", "missing field `allow`"),
            ("[licenses]\nallow = [\"nonsense\"]", "nonsense is no licence"),
        ] {
            let error = Rules::read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_that_several_share_is_there_once() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(a.path().join("LICENSE-MIT"), "be free\r\n").unwrap();
        fs::write(b.path().join("license"), "be free\n").unwrap();
        fs::write(b.path().join("README"), "no licence").unwrap();
        let packages = [package("a", Some("MIT"), a.path()), package("b", Some("MIT"), b.path())];
        let text = texts(&packages).unwrap();
        assert_eq!(text.matches("be free").count(), 1);
        assert!(text.contains("a 1.2.3 (MIT)\nb 1.2.3 (MIT)\n") && !text.contains("no licence"), "{text}");
    }
}
