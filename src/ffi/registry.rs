//! What is registered with the host, once a process.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::OnceLock;

use ggml_sys::{sys, Host};
use parking_lot::Mutex;

use super::cpu::HostCpu;
use super::host_copy::Kernels;
use super::{backend, buffer, device, generation, shield};
use crate::host::config::Config;
use crate::host::device::{Device, NAME};
use crate::log;
use crate::observe::log as logging;

/// A C struct that lives as long as the process; the host may read it from any thread.
pub struct Leaked<T>(*mut T);

// SAFETY: the struct is written before it is shared and only read afterwards.
unsafe impl<T> Send for Leaked<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Leaked<T> {}

impl<T> Leaked<T> {
    pub fn new(value: T) -> Self {
        Self(Box::into_raw(Box::new(value)))
    }

    pub fn get(&self) -> *mut T {
        self.0
    }

    /// The same struct by another name of its type.
    pub fn cast<U>(self) -> Leaked<U> {
        Leaked(self.0.cast())
    }
}

/// The device with its C faces.
pub struct Registered {
    pub device: Device,
    pub c_device: Leaked<sys::ggml_backend_device>,
    /// The same, as the backends have it that run a loaded model.
    pub c_device_of_backends: Leaked<sys::ggml_backend_device>,
    pub c_buffer_type: Leaked<sys::ggml_backend_buffer_type>,
}

/// Everything that lives as long as the process.
pub struct State {
    pub host: Host,
    /// The host's CPU backend, for what the NPU does not do; made when it is first needed.
    pub cpu: Mutex<HostCpu>,
    /// Others, of one thread each, for those of our threads that make rows of the host's nodes at the same time.
    pub row_cpus: [Mutex<HostCpu>; ROW_CPUS],
    pub registered: Option<Registered>,
    c_reg: Leaked<sys::ggml_backend_reg>,
}

/// See [`State::row_cpus`]: as many as boards have processors; more threads wait for each other.
const ROW_CPUS: usize = 8;

static STATE: OnceLock<Option<State>> = OnceLock::new();

/// The state, once the host has registered us.
pub fn state() -> Option<&'static State> {
    STATE.get().and_then(Option::as_ref)
}

/// The state and the device, if there is one.
pub fn with_device() -> Option<(&'static State, &'static Registered)> {
    let state = state()?;
    Some((state, state.registered.as_ref()?))
}

/// What the environment asks for, read once: a policy that comes through a pipe can be read no second time.
fn config() -> &'static Result<Config, String> {
    static CONFIG: OnceLock<Result<Config, String>> = OnceLock::new();
    CONFIG.get_or_init(Config::of_environment)
}

/// 0 for a library that is switched off.
pub fn score() -> c_int {
    match config() {
        Ok(config) if config.disabled => 0,
        _ => 1,
    }
}

/// The registration; null where the host cannot be served.
pub fn reg() -> *mut sys::ggml_backend_reg {
    STATE.get_or_init(start).as_ref().map_or(std::ptr::null_mut(), |state| state.c_reg.get())
}

fn start() -> Option<State> {
    let config = config().as_ref();
    if let Some(level) = config.ok().and_then(|config| config.log) {
        logging::set_level(level);
    }
    let host = match Host::find() {
        Ok(host) => host,
        Err(error) => {
            log!(Error, "not loaded: {error}");
            return None;
        }
    };
    let c_reg = Leaked::new(sys::ggml_backend_reg {
        api_version: generation::api_version(&host) as c_int,
        iface: sys::ggml_backend_reg_i {
            get_name: Some(get_name),
            get_device_count: Some(get_device_count),
            get_device: Some(get_device),
            get_proc_address: Some(get_proc_address),
        },
        context: std::ptr::null_mut(),
    });
    let opened = match config {
        Err(error) => Err(error.clone()),
        Ok(config) if config.disabled => Ok(None),
        Ok(config) => Device::open(config, &Kernels).map(Some),
    };
    let registered = match opened {
        Ok(Some(device)) => {
            let c_device = device::c_device(c_reg.get());
            let c_device_of_backends = Leaked::new(device::c_device_of_backends(&c_device));
            let c_device = Leaked::new(c_device);
            let c_buffer_type = generation::buffer_type(&host, buffer::c_buffer_type(c_device.get()));
            Some(Registered { device, c_device, c_device_of_backends, c_buffer_type })
        }
        Ok(None) => {
            log!(Info, "RKNPU_DISABLE is set: no device");
            None
        }
        Err(error) => {
            log!(Error, "no NPU device, the CPU does everything: {error}");
            None
        }
    };
    if registered.is_some() {
        // SAFETY: a plain function; a failure to register only loses what is said at the end.
        unsafe { libc::atexit(at_exit) };
    }
    Some(State {
        host,
        cpu: Mutex::default(),
        row_cpus: std::array::from_fn(|_| Mutex::new(HostCpu::of_one_thread())),
        registered,
        c_reg,
    })
}

/// Writes the report, if one was asked for.
pub fn write_report() {
    if let (Some((_, registered)), Ok(config)) = (with_device(), config()) {
        if let Some(path) = &config.report {
            registered.device.write_report(path);
        }
    }
}

extern "C" fn at_exit() {
    shield("at_exit", (), || {
        if let (Some((_, registered)), Ok(config)) = (with_device(), config()) {
            registered.device.end(config);
        }
    });
}

unsafe extern "C" fn get_name(_reg: sys::ggml_backend_reg_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn get_device_count(_reg: sys::ggml_backend_reg_t) -> usize {
    usize::from(with_device().is_some())
}

unsafe extern "C" fn get_device(_reg: sys::ggml_backend_reg_t, index: usize) -> sys::ggml_backend_dev_t {
    match with_device() {
        Some((_, registered)) if index == 0 => registered.c_device.get(),
        _ => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn get_proc_address(_reg: sys::ggml_backend_reg_t, name: *const c_char) -> *mut c_void {
    if name.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: the host passes a NUL-terminated name.
    let name = unsafe { CStr::from_ptr(name) };
    if name == c"ggml_backend_set_n_threads" {
        return backend::set_n_threads as *mut c_void;
    }
    std::ptr::null_mut()
}
