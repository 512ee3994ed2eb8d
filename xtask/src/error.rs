//! The one error type of the tool: each value prints as a single clear line.

use std::io;
use std::path::{Path, PathBuf};

use crate::gguf;

/// Shorthand for results of this tool.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, worded for the person at the keyboard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A model file that cannot be used.
    #[error("model {path}: {source}", path = path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: gguf::Error,
    },
    /// An option or variable with a value that does not serve.
    #[error("{0}")]
    Refused(String),
    /// A download whose content is not the pinned one, twice in a row.
    #[error(
        "{file} is corrupt: sha256 is {found}, expected {expected}; it was fetched twice, \
         so look at what stands between this machine and the package index"
    )]
    Corrupt {
        /// The file's name.
        file: String,
        /// The pinned hash.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// A program that was started and did not succeed.
    #[error("{program} {outcome}{}", log_hint(log))]
    Tool {
        /// The program.
        program: String,
        /// How it ended.
        outcome: String,
        /// Its last lines, shown above the error.
        tail: Vec<String>,
        /// Where its whole output is kept.
        log: Option<PathBuf>,
    },
    /// System packages that only the administrator can install.
    #[error("missing system packages; run this line, then the same command again: {line}")]
    Packages {
        /// The exact shell line.
        line: String,
    },
}

impl Error {
    /// Lines worth showing above the error line.
    pub fn details(&self) -> &[String] {
        match self {
            Self::Tool { tail, .. } => tail,
            _ => &[],
        }
    }
}

fn log_hint(log: &Option<PathBuf>) -> String {
    log.as_ref().map(|path| format!("; the whole log is {}", path.display())).unwrap_or_default()
}

/// Adds what was being done, and to which path, to an I/O error.
pub trait IoContext<T> {
    /// Wraps the error as "cannot `verb` `path`".
    ///
    /// # Errors
    /// The wrapped error.
    fn at(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { doing: format!("{verb} {}", path.display()), source })
    }
}
