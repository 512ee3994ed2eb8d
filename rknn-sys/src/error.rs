//! What can go wrong between us and the vendor's library.

use crate::sys;

/// A failed call, or a library that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shared library could not be opened.
    #[error(
        "cannot open the NPU library {path}: {reason}; install librknnrt.so or set RKNPU_LIBRARY to its path"
    )]
    Open {
        /// The path or name that was tried.
        path: String,
        /// The loader's own words.
        reason: String,
    },
    /// The library lacks a function that we need.
    #[error("the NPU library {path} has no function {symbol}: librknnrt 2.1 or later is needed")]
    Symbol {
        /// The library.
        path: String,
        /// The missing function.
        symbol: &'static str,
    },
    /// A call returned a negative code.
    #[error("{call}({args}) failed: {} ({code})", code_name(*code))]
    Call {
        /// The vendor's function.
        call: &'static str,
        /// What was asked for.
        args: String,
        /// What came back.
        code: i32,
    },
    /// An allocation returned no memory.
    #[error("{call}({size} bytes) gave no memory: the NPU's memory, its address space or the file descriptors are used up")]
    NoMemory {
        /// The vendor's function.
        call: &'static str,
        /// Bytes asked for.
        size: usize,
    },
    /// A size, offset or shape that the ABI cannot carry.
    #[error("{what} is {value}, expected {expected}")]
    Range {
        /// The name of the value.
        what: &'static str,
        /// The value.
        value: u64,
        /// What is possible.
        expected: String,
    },
}

impl Error {
    /// Whether memory, or addresses in the I/O domain, are used up.
    pub fn is_no_memory(&self) -> bool {
        matches!(self, Self::NoMemory { .. } | Self::Call { code: sys::RKNN_ABI_ERR_MALLOC_FAIL, .. })
    }
}

/// The vendor's name of a return code.
pub fn code_name(code: i32) -> &'static str {
    match code {
        sys::RKNN_ABI_ERR_FAIL => "failed",
        sys::RKNN_ABI_ERR_TIMEOUT => "timeout",
        sys::RKNN_ABI_ERR_DEVICE_UNAVAILABLE => "device unavailable",
        sys::RKNN_ABI_ERR_MALLOC_FAIL => "out of memory",
        sys::RKNN_ABI_ERR_PARAM_INVALID => "invalid parameter",
        sys::RKNN_ABI_ERR_MODEL_INVALID => "invalid model",
        sys::RKNN_ABI_ERR_CTX_INVALID => "invalid context",
        sys::RKNN_ABI_ERR_INPUT_INVALID => "invalid input",
        sys::RKNN_ABI_ERR_OUTPUT_INVALID => "invalid output",
        sys::RKNN_ABI_ERR_DEVICE_UNMATCH => "library and driver do not match",
        sys::RKNN_ABI_ERR_PRE_COMPILE => "incompatible pre-compiled model",
        sys::RKNN_ABI_ERR_OPTIMISATION => "incompatible optimisation level",
        sys::RKNN_ABI_ERR_TARGET_UNMATCH => "wrong target platform",
        _ => "unknown error",
    }
}
