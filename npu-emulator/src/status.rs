//! The vendor's return codes as an error type.

use rknn_sys::sys;

use crate::strict::{line, misuse};

/// A negative return code of the vendor's ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub i32);

impl Status {
    /// -1: the call cannot be done now, or not at all.
    pub const FAIL: Self = Self(sys::RKNN_ABI_ERR_FAIL);
    /// -3: there is no such NPU.
    pub const NO_DEVICE: Self = Self(sys::RKNN_ABI_ERR_DEVICE_UNAVAILABLE);
    /// -4: out of memory or of I/O address space.
    pub const NO_MEMORY: Self = Self(sys::RKNN_ABI_ERR_MALLOC_FAIL);
    /// -5: an argument is wrong.
    pub const PARAM: Self = Self(sys::RKNN_ABI_ERR_PARAM_INVALID);
    /// -7: no such context.
    pub const CONTEXT: Self = Self(sys::RKNN_ABI_ERR_CTX_INVALID);
    /// -8: an input is not bound.
    pub const INPUT: Self = Self(sys::RKNN_ABI_ERR_INPUT_INVALID);
    /// -9: the output is not bound.
    pub const OUTPUT: Self = Self(sys::RKNN_ABI_ERR_OUTPUT_INVALID);

    /// Whether a call gets this code by what its caller did, so that a correct caller never sees it.
    pub fn is_misuse(self) -> bool {
        [Self::FAIL, Self::PARAM, Self::CONTEXT, Self::INPUT, Self::OUTPUT].contains(&self)
    }
}

/// A result whose error is the vendor's code.
pub type Result<T> = std::result::Result<T, Status>;

/// Logs `message` and gives `status` back; misuse, by its code, is [`misuse`].
pub fn refuse<T>(status: Status, message: std::fmt::Arguments<'_>) -> Result<T> {
    if status.is_misuse() {
        misuse(message);
        return Err(status);
    }
    fail(status, message)
}

/// As [`refuse`] for what is no fault of the caller, whatever its code: never ends the process.
pub fn fail<T>(status: Status, message: std::fmt::Arguments<'_>) -> Result<T> {
    line(message);
    Err(status)
}
