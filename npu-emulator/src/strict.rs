//! What misuse does: a line, and under [`STRICT_VARIABLE`] the end of the process.
//!
//! Misuse is what a correct caller never does. That the machine runs out of something is none.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::OnceLock;

/// The environment variable, read once: anything but nothing and `0` makes misuse abort.
pub const STRICT_VARIABLE: &str = "RKNPU_EMU_STRICT";

thread_local! {
    /// The C call that the thread is in; empty outside.
    static CALL: Cell<&'static str> = const { Cell::new("") };
}

/// Runs `body` as part of the C call of that name, which its lines then begin with.
pub fn within<R>(call: &'static str, body: impl FnOnce() -> R) -> R {
    let before = CALL.replace(call);
    let result = body();
    CALL.set(before);
    result
}

fn strict() -> bool {
    static STRICT: OnceLock<bool> = OnceLock::new();
    *STRICT.get_or_init(|| {
        std::env::var_os(STRICT_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
    })
}

/// Writes `call: message`, or the message alone when it names the call or there is none.
pub fn line(message: Arguments<'_>) {
    let (call, text) = (CALL.get(), message.to_string());
    if call.is_empty() || text.starts_with(call) {
        crate::log::line(message);
    } else {
        crate::log::line(format_args!("{call}: {text}"));
    }
}

/// Writes the [`line`]; in strict mode a backtrace follows, and the process aborts.
pub fn misuse(message: Arguments<'_>) {
    line(message);
    if strict() {
        // A closed stderr changes nothing about the end.
        let _ = writeln!(std::io::stderr(), "{}", Backtrace::force_capture());
        std::process::abort();
    }
}
