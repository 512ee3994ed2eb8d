//! ggml's table of functions of a device.

use std::ffi::{c_char, c_void};

use ggml_sys::sys;

use super::registry::with_device;
use super::{backend, buffer, shield, tensor};
use crate::host::device::NAME;
use crate::host::machine;

/// The device's C struct.
pub fn c_device(reg: sys::ggml_backend_reg_t) -> sys::ggml_backend_device {
    sys::ggml_backend_device {
        iface: sys::ggml_backend_device_i {
            get_name: Some(get_name),
            get_description: Some(get_description),
            get_memory: Some(get_memory),
            get_type: Some(get_type),
            get_props: Some(get_props),
            init_backend: Some(init_backend),
            get_buffer_type: Some(get_buffer_type),
            get_host_buffer_type: None,
            buffer_from_host_ptr: Some(buffer_from_host_ptr),
            supports_op: Some(supports_op),
            supports_buft: Some(supports_buft),
            offload_op: None,
            event_new: None,
            event_free: None,
            event_synchronize: None,
        },
        reg,
        context: std::ptr::null_mut(),
    }
}

/// The C struct that the backends of a loaded model are of: the same device, whose buffer type is the CPU's. llama.cpp's
/// scheduler then gives both the same memory for results, and us what it had set aside for the CPU, if we do it: norms.
pub fn c_device_of_backends(device: &sys::ggml_backend_device) -> sys::ggml_backend_device {
    let mut of_backends = *device;
    of_backends.iface.get_buffer_type = Some(get_cpu_buffer_type);
    of_backends
}

/// The device's buffer type, or null.
pub fn buffer_type() -> sys::ggml_backend_buffer_type_t {
    with_device().map_or(std::ptr::null_mut(), |(_, registered)| registered.c_buffer_type.get())
}

unsafe extern "C" fn get_name(_dev: sys::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn get_description(_dev: sys::ggml_backend_dev_t) -> *const c_char {
    with_device().map_or(NAME.as_ptr(), |(_, registered)| registered.device.description().as_ptr())
}

unsafe extern "C" fn get_memory(_dev: sys::ggml_backend_dev_t, free: *mut usize, total: *mut usize) {
    let memory = shield("get_memory", (0, 0), machine::memory);
    // SAFETY: the host passes two places to write to.
    unsafe { (*free, *total) = memory };
}

unsafe extern "C" fn get_type(_dev: sys::ggml_backend_dev_t) -> i32 {
    sys::GGML_HOST_DEVICE_ACCEL as i32
}

unsafe extern "C" fn get_props(dev: sys::ggml_backend_dev_t, props: *mut sys::ggml_backend_dev_props) {
    let (memory_free, memory_total) = shield("get_props", (0, 0), machine::memory);
    // SAFETY: the host passes a place to write to; the functions called are this file's own.
    unsafe {
        *props = sys::ggml_backend_dev_props {
            name: get_name(dev),
            description: get_description(dev),
            memory_free,
            memory_total,
            type_: get_type(dev),
            device_id: std::ptr::null(),
            caps: sys::ggml_backend_dev_caps {
                async_: false,
                host_buffer: false,
                buffer_from_host_ptr: true,
                events: false,
                mmap_support: true,
            },
        };
    }
}

unsafe extern "C" fn init_backend(
    _dev: sys::ggml_backend_dev_t,
    _params: *const c_char,
) -> sys::ggml_backend_t {
    shield("init_backend", std::ptr::null_mut(), backend::create)
}

unsafe extern "C" fn get_buffer_type(_dev: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t {
    buffer_type()
}

unsafe extern "C" fn get_cpu_buffer_type(_dev: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: a plain function of the host's.
    with_device()
        .map_or(std::ptr::null_mut(), |(state, _)| unsafe { (state.host.fns.cpu_buffer_type.get())() })
}

unsafe extern "C" fn buffer_from_host_ptr(
    _dev: sys::ggml_backend_dev_t,
    ptr: *mut c_void,
    size: usize,
    _max_tensor_size: usize,
) -> sys::ggml_backend_buffer_t {
    shield("buffer_from_host_ptr", std::ptr::null_mut(), || buffer::from_host_ptr(ptr.cast(), size))
}

unsafe extern "C" fn supports_op(_dev: sys::ggml_backend_dev_t, op: *const sys::ggml_tensor) -> bool {
    shield("supports_op", false, || {
        // SAFETY: the host passes a live tensor with live sources, or null.
        let (Some(op), Some((state, registered))) = (unsafe { op.as_ref() }, with_device()) else {
            return false;
        };
        // SAFETY: as above.
        unsafe { tensor::supports(state, &registered.device, op) }
    })
}

unsafe extern "C" fn supports_buft(
    _dev: sys::ggml_backend_dev_t,
    buft: sys::ggml_backend_buffer_type_t,
) -> bool {
    shield("supports_buft", false, || {
        let Some((state, _)) = with_device() else { return false };
        // SAFETY: the host passes a live buffer type; activations are read where they lie, if the CPU can.
        !buft.is_null() && (buft == buffer_type() || unsafe { (state.host.fns.buft_is_host.get())(buft) })
    })
}
