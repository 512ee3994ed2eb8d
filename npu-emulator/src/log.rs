//! What goes wrong, said once, in one line on stderr.

use std::fmt::Arguments;
use std::io::Write;

/// Writes `npu-emulator: <message>` and a newline to stderr in one call, so that lines of threads do not mix.
///
/// A closed stderr is ignored: a library must not bring its host down for a message.
pub fn line(message: Arguments<'_>) {
    let text = format!("npu-emulator: {message}\n");
    let _ = std::io::stderr().write_all(text.as_bytes());
}
