//! The symbols of the shared library, and nothing else; `include/ggml-rknpu.h` is generated from this file.
//!
//! Pointers are opaque here: a C caller takes their types from ggml's own headers.

use std::ffi::{c_int, c_void};

use super::{backend, device, registry, shield};

/// The registration of this backend (`ggml_backend_reg_t`), or null where the host's ggml cannot be served.
///
/// ggml calls it after it has opened the library; a library that is linked into a program calls
/// `ggml_backend_register` with it.
#[no_mangle]
pub extern "C" fn ggml_backend_rknpu_reg() -> *mut c_void {
    shield("ggml_backend_rknpu_reg", std::ptr::null_mut(), || registry::reg().cast())
}

/// As `ggml_backend_rknpu_reg`, under the name that ggml's loader looks for.
#[no_mangle]
pub extern "C" fn ggml_backend_init() -> *mut c_void {
    ggml_backend_rknpu_reg()
}

/// 0 when `RKNPU_DISABLE` is set, so that ggml's loader passes the library over; otherwise 1.
#[no_mangle]
pub extern "C" fn ggml_backend_score() -> c_int {
    shield("ggml_backend_score", 0, registry::score)
}

/// A new backend (`ggml_backend_t`) on the NPU, or null when there is none; free it with `ggml_backend_free`.
#[no_mangle]
pub extern "C" fn ggml_backend_rknpu_init() -> *mut c_void {
    shield("ggml_backend_rknpu_init", std::ptr::null_mut(), || backend::create().cast())
}

/// Whether `backend` (`ggml_backend_t`, may be null) is one of this library's.
///
/// # Safety
/// `backend` is null or a live backend.
#[no_mangle]
pub unsafe extern "C" fn ggml_backend_is_rknpu(backend: *const c_void) -> bool {
    // SAFETY: null or live by this function's own contract.
    shield("ggml_backend_is_rknpu", false, || unsafe { backend::is_ours(backend.cast_mut().cast()) })
}

/// The NPU's buffer type (`ggml_backend_buffer_type_t`), or null when there is no NPU.
#[no_mangle]
pub extern "C" fn ggml_backend_rknpu_buffer_type() -> *mut c_void {
    shield("ggml_backend_rknpu_buffer_type", std::ptr::null_mut(), || device::buffer_type().cast())
}
