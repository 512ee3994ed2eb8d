//! Lines on stderr, each beginning with `ggml-rknpu:`. `RKNPU_LOG` says which (error, warn, info, debug).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::names::value_of;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work and will not.
    Error,
    /// Something works otherwise than asked for.
    Warn,
    /// What was found and chosen.
    Info,
    /// Each decision.
    Debug,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Warn as u8);

impl Level {
    /// What may be said, for error messages.
    pub const ALLOWED: &'static str = "error, warn, info or debug";

    /// The level of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(
            &[("error", Self::Error), ("warn", Self::Warn), ("info", Self::Info), ("debug", Self::Debug)],
            name,
        )
    }
}

/// Shows lines of `level` and above from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of `level` are shown.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes a line if its level is shown. A closed stderr is no reason to panic.
pub fn line(level: Level, text: std::fmt::Arguments) {
    use std::io::Write as _;
    if enabled(level) {
        let _ = writeln!(std::io::stderr(), "ggml-rknpu: {text}");
    }
}

/// `log!(Warn, "…")`: formats only when the level is shown.
#[macro_export]
#[doc(hidden)]
macro_rules! log {
    ($level:ident, $($arg:tt)*) => {
        $crate::observe::log::line($crate::observe::log::Level::$level, format_args!($($arg)*))
    };
}
