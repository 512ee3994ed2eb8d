//! A policy file: placements by patterns of tensor names.
//!
//! ```toml
//! mode = "lean"                  # for what no entry fits
//!
//! [[weights]]                    # the first entry that fits counts
//! name = "blk.*.ffn_*.weight"
//! pipeline = "W8A8"
//! ```

use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeArray, DeTable, DeValue};
use toml::Spanned;

use super::goal::Goal;
use super::pattern::Pattern;
use super::scheme::Placement;
use crate::observe::quoted;

/// A longer file is no policy.
pub const BYTES_MAX: usize = 1 << 20;

/// What a policy file says.
#[derive(Debug, Default, PartialEq)]
pub struct Rules {
    /// What to choose by where no entry fits.
    pub mode: Option<Goal>,
    entries: Vec<(Pattern, Placement)>,
}

/// What is wrong, and in which bytes of the file.
struct Wrong {
    span: Range<usize>,
    what: String,
}

impl Wrong {
    fn new(span: Range<usize>, what: impl Into<String>) -> Self {
        Self { span, what: what.into() }
    }
}

/// The bytes of the file at `path`, as far as [`Rules::parse`] needs them to tell whether it is too long.
///
/// # Errors
/// What the file system says.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Rules {
    /// The rules that a file of these bytes states.
    ///
    /// # Errors
    /// One line without the file's name: where in it what is wrong, and what may be there.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > BYTES_MAX {
            return Err(format!("the file is longer than {} KiB", BYTES_MAX / 1024));
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                return Err(format!("line {}: not UTF-8 text", line(bytes, error.valid_up_to())));
            }
        };
        let rules = DeTable::parse(text)
            .map_err(|error| {
                let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
                Wrong::new(error.span().unwrap_or_default(), format!("not TOML: {what}"))
            })
            .and_then(|table| Self::of_table(table.get_ref()));
        rules.map_err(|wrong| format!("line {}: {}", line(bytes, wrong.span.start), wrong.what))
    }

    fn of_table(table: &DeTable) -> Result<Self, Wrong> {
        let mut rules = Self::default();
        for (key, value) in table {
            match &**key.get_ref() {
                "mode" => rules.mode = Some(goal(value)?),
                "weights" => rules.entries = tables(value)?.iter().map(entry).collect::<Result<_, _>>()?,
                _ => return Err(unknown(key, "mode or [[weights]]")),
            }
        }
        Ok(rules)
    }

    /// The placements of all entries.
    pub fn placements(&self) -> impl Iterator<Item = Placement> + '_ {
        self.entries.iter().map(|(_, placement)| *placement)
    }

    /// The placement of the first entry that fits the weight called `tensor`.
    pub fn of(&self, tensor: &str) -> Option<Placement> {
        self.entries.iter().find_map(|(pattern, placement)| pattern.fits(tensor).then_some(*placement))
    }
}

/// The number, from 1, of the line that the byte at `offset` is in.
fn line(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count()
}

fn entry(value: &Spanned<DeValue>) -> Result<(Pattern, Placement), Wrong> {
    let table = match value.get_ref() {
        DeValue::Table(table) => table,
        other => return Err(no_entries(value.span(), other)),
    };
    let (mut pattern, mut placement) = (None, None);
    for (key, value) in table {
        match &**key.get_ref() {
            "name" => pattern = Some(named(value, "name", Pattern::new, || Pattern::ALLOWED.to_owned())?),
            "pipeline" => {
                placement = Some(named(value, "pipeline", Placement::by_name, Placement::allowed)?);
            }
            "mode" => return Err(unknown(key, "name and pipeline; mode goes above the first [[weights]]")),
            _ => return Err(unknown(key, "name and pipeline")),
        }
    }
    let missing =
        |key: &str| Wrong::new(value.span(), format!("an entry without {key}, expected name and pipeline"));
    Ok((pattern.ok_or_else(|| missing("name"))?, placement.ok_or_else(|| missing("pipeline"))?))
}

fn goal(value: &Spanned<DeValue>) -> Result<Goal, Wrong> {
    named(value, "mode", Goal::by_name, || Goal::ALLOWED.to_owned())
}

/// What `known` makes of the string that `key` is.
fn named<T>(
    value: &Spanned<DeValue>,
    key: &str,
    known: impl Fn(&str) -> Option<T>,
    allowed: impl Fn() -> String,
) -> Result<T, Wrong> {
    let wrong = |found: String| Wrong::new(value.span(), format!("{key} is {found}, expected {}", allowed()));
    match value.get_ref() {
        DeValue::String(text) => known(text).ok_or_else(|| wrong(quoted(text))),
        other => Err(wrong(format!("of type {}", other.type_str()))),
    }
}

fn tables<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Result<&'a DeArray<'i>, Wrong> {
    match value.get_ref() {
        DeValue::Array(array) => Ok(array),
        other => Err(no_entries(value.span(), other)),
    }
}

fn no_entries(span: Range<usize>, found: &DeValue) -> Wrong {
    Wrong::new(
        span,
        format!(
            "weights holds something of type {}, expected entries that begin with [[weights]]",
            found.type_str()
        ),
    )
}

fn unknown(key: &Spanned<impl AsRef<str>>, allowed: &str) -> Wrong {
    Wrong::new(key.span(), format!("unknown key {}, expected {allowed}", quoted(key.get_ref().as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rules, String> {
        Rules::parse(text.as_bytes())
    }

    #[test]
    fn the_first_entry_that_fits_counts() {
        let text = r#"
            mode = "Lean"
            [[weights]]
            name = "blk.0.*"
            pipeline = "cpu"
            [[weights]]
            pipeline = "w8a8_standard"
            name = "blk.*.ffn_*.weight"
            [[weights]]
            name = "blk.*"
            pipeline = "W16A16"
        "#;
        for text in [text.to_owned(), text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
            let rules = parse(&text).unwrap();
            assert_eq!(rules.mode, Some(Goal::Lean));
            let of = |name: &str| rules.of(name).map(|placement| placement.to_string());
            assert_eq!(of("blk.0.ffn_up.weight").as_deref(), Some("CPU"));
            assert_eq!(of("blk.1.ffn_up.weight").as_deref(), Some("W8A8_STANDARD"));
            assert_eq!(of("blk.1.attn_q.weight").as_deref(), Some("W16A16"));
            assert_eq!(of("output.weight"), None);
        }
    }

    #[test]
    fn a_file_may_say_nothing_or_a_mode_alone() {
        assert_eq!(parse("").unwrap(), Rules::default());
        assert_eq!(parse("# nothing\n").unwrap(), Rules::default());
        assert_eq!(parse("mode = 'fast'").unwrap().mode, Some(Goal::Fast));
        // The same entries, written on one line each.
        let inline = "weights = [{ name = 'a*', pipeline = 'W8A8' }, { name = '*', pipeline = 'CPU' }]";
        assert_eq!(parse(inline).unwrap().of("b"), Some(Placement::Cpu));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, said) in [
            ("mode = \"quick\"", "line 1: mode is \"quick\", expected accurate, lean or fast"),
            ("mode = 3", "line 1: mode is of type integer, expected accurate"),
            ("\nmodus = \"lean\"", "line 2: unknown key \"modus\", expected mode or [[weights]]"),
            (
                "[[weights]]\nname = \"a\"\npipeline = \"W2A2\"",
                "line 3: pipeline is \"W2A2\", expected one of W4A4",
            ),
            (
                "[[weights]]\nname = \"\"\npipeline = \"CPU\"",
                "line 2: name is \"\", expected letters, digits",
            ),
            ("[[weights]]\nname = \"blk.[0-3].*\"", "line 2: name is \"blk.[0-3].*\", expected letters"),
            ("[[weights]]\nname = [\"a\"]", "line 2: name is of type array, expected letters"),
            ("\n[[weights]]\nname = \"a\"", "line 2: an entry without pipeline"),
            ("[[weights]]\npipeline = \"CPU\"", "line 1: an entry without name"),
            ("[[weights]]\nnames = \"a\"", "line 2: unknown key \"names\", expected name and pipeline"),
            (
                "[[weights]]\nmode = \"lean\"",
                "line 2: unknown key \"mode\", expected name and pipeline; mode goes above",
            ),
            ("[weights]\nname = \"a\"", "line 1: weights holds something of type table, expected entries"),
            ("weights = [1]", "line 1: weights holds something of type integer, expected entries"),
            ("mode = \"lean\"\nmode = \"fast\"", "line 2: not TOML: duplicate key"),
            ("mode =\n", "line 1: not TOML"),
            ("mode = lean", "line 1: not TOML"),
            ("\n\n{\"mode\": 1}", "line 3: not TOML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(said) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_no_policy_is_refused() {
        assert_eq!(Rules::parse(b"mode = \"lean\"\n\xff").unwrap_err(), "line 2: not UTF-8 text");
        assert!(Rules::parse(b"\x7fELF\x02\x01\0\0").unwrap_err().contains("not TOML"));
        assert!(Rules::parse(&[b'#'; BYTES_MAX]).is_ok());
        assert!(Rules::parse(&[b'#'; BYTES_MAX + 1]).unwrap_err().contains("longer than 1024 KiB"));
        // What recurses without an end would take the host down with it.
        assert!(parse(&format!("mode = {}", "[".repeat(BYTES_MAX - 10))).unwrap_err().contains("not TOML"));
        assert!(parse(&format!("mode = {}", "{a=".repeat(300_000))).unwrap_err().contains("not TOML"));
        let long_key = "a.".repeat(500_000);
        assert!(parse(&format!("{long_key}a = 1")).is_err());
        assert!(parse(&format!("[{long_key}a]")).is_err());
    }

    #[test]
    fn no_more_is_read_than_is_needed() {
        assert_eq!(read(Path::new("/dev/zero")).unwrap().len(), BYTES_MAX + 1);
        assert!(read(Path::new("/nonexistent/policy.toml")).is_err());
        assert!(read(Path::new("/")).is_err());
    }
}
