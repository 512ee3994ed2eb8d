//! The vendor's shared library: found at run time, every call's code turned into a [`Result`].

use std::ffi::{c_void, CStr};
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::sys;

/// The library under its usual name, left to the loader's search path.
pub const DEFAULT_NAME: &str = "librknnrt.so";

/// An opened library. Cloning shares it; it is closed when the last context and memory are gone.
#[derive(Clone)]
pub struct Library {
    pub(crate) fns: Arc<Functions>,
}

/// The library's and the driver's version, as they tell them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The library, for example "2.3.2 (…)".
    pub api: String,
    /// The kernel driver, for example "0.9.8".
    pub driver: String,
}

/// The emulator's clock: modelled nanoseconds of a core, or of all calls when the core is negative.
type EmulatorClock = unsafe extern "C" fn(core: std::ffi::c_int) -> u64;

macro_rules! functions {
    ($($field:ident: $kind:ty = $symbol:literal),* $(,)?) => {
        /// The resolved functions, with the library that they live in.
        pub(crate) struct Functions {
            $(pub(crate) $field: $kind,)*
            pub(crate) emulated_soc: Option<String>,
            emulator_clock: Option<EmulatorClock>,
            /// Contexts of several M; some libraries lack them.
            pub(crate) create_dynamic_shape: sys::rknn_matmul_create_dynamic_shape_fn,
            pub(crate) set_dynamic_shape: sys::rknn_matmul_set_dynamic_shape_fn,
            /// Last, so that it is dropped after the pointers into it.
            _library: libloading::Library,
        }

        impl Functions {
            fn resolve(library: libloading::Library, path: &str) -> Result<Self, Error> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the symbol has this type by the vendor's ABI; the pointer is kept beside its library.
                        let found = unsafe { library.get::<$kind>(concat!($symbol, "\0").as_bytes()) };
                        let missing = || Error::Symbol { path: path.to_owned(), symbol: $symbol };
                        let symbol = found.map_err(|_| missing())?;
                        if symbol.is_none() { return Err(missing()); }
                        *symbol
                    },)*
                    emulated_soc: emulated_soc(&library),
                    emulator_clock: {
                        // SAFETY: only our emulator exports this name, with this type; kept beside its library.
                        unsafe { library.get::<EmulatorClock>(b"rknpu_emulator_clock_ns\0") }
                            .ok().map(|symbol| *symbol)
                    },
                    create_dynamic_shape: {
                        let name = b"rknn_matmul_create_dynamic_shape\0";
                        // SAFETY: as above, but null when it is not there.
                        unsafe { library.get::<sys::rknn_matmul_create_dynamic_shape_fn>(name) }
                            .ok().and_then(|symbol| *symbol)
                    },
                    set_dynamic_shape: {
                        let name = b"rknn_matmul_set_dynamic_shape\0";
                        // SAFETY: as above, but null when it is not there.
                        unsafe { library.get::<sys::rknn_matmul_set_dynamic_shape_fn>(name) }
                            .ok().and_then(|symbol| *symbol)
                    },
                    _library: library,
                })
            }
        }
    };
}

functions! {
    create: sys::rknn_matmul_create_fn = "rknn_matmul_create",
    set_io_mem: sys::rknn_matmul_set_io_mem_fn = "rknn_matmul_set_io_mem",
    set_core_mask: sys::rknn_matmul_set_core_mask_fn = "rknn_matmul_set_core_mask",
    run: sys::rknn_matmul_run_fn = "rknn_matmul_run",
    destroy: sys::rknn_matmul_destroy_fn = "rknn_matmul_destroy",
    create_mem: sys::rknn_create_mem_fn = "rknn_create_mem",
    create_mem_from_fd: sys::rknn_create_mem_from_fd_fn = "rknn_create_mem_from_fd",
    destroy_mem: sys::rknn_destroy_mem_fn = "rknn_destroy_mem",
    mem_sync: sys::rknn_mem_sync_fn = "rknn_mem_sync",
    query: sys::rknn_query_fn = "rknn_query",
}

/// The chip that the project's emulator plays; `None` for the vendor's library.
fn emulated_soc(library: &libloading::Library) -> Option<String> {
    // SAFETY: only our emulator exports this name, with this type.
    let symbol = unsafe { library.get::<sys::rknpu_emulator_soc_fn>(b"rknpu_emulator_soc\0") }.ok()?;
    let function = (*symbol)?;
    // SAFETY: the emulator's function takes nothing and returns a static string or null.
    let name = unsafe { function() };
    if name.is_null() {
        return Some("unknown".to_owned());
    }
    // SAFETY: not null, and static by contract.
    Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

impl Library {
    /// Opens the library at `path`, or `librknnrt.so` by the loader's search path.
    ///
    /// # Errors
    /// [`Error::Open`] when there is none, [`Error::Symbol`] when it is another or too old a library.
    pub fn open(path: Option<&Path>) -> Result<Self, Error> {
        let path = path.unwrap_or(Path::new(DEFAULT_NAME));
        let shown = path.display().to_string();
        // SAFETY: opening runs the library's constructors; that is what the user asks for by naming it.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|error| Error::Open { path: shown.clone(), reason: innermost(&error) })?;
        Ok(Self { fns: Arc::new(Functions::resolve(library, &shown)?) })
    }

    /// The chip that the emulator plays, or `None` when this is the vendor's library.
    pub fn emulated_soc(&self) -> Option<&str> {
        self.fns.emulated_soc.as_deref()
    }

    /// The modelled nanoseconds up to the end of `core`'s last run, or of the last call of any kind; `None` where
    /// time is real, and for an emulator that models none.
    pub fn modelled_ns(&self, core: Option<usize>) -> Option<u64> {
        let clock = self.fns.emulator_clock?;
        // SAFETY: the emulator's function takes a number and reads its own state.
        Some(unsafe { clock(core.and_then(|core| i32::try_from(core).ok()).unwrap_or(-1)) })
    }

    /// The versions of library and driver, asked through an existing context.
    pub(crate) fn version(&self, ctx: sys::rknn_context) -> Result<Version, Error> {
        // SAFETY: an all-zero value is valid for a struct of char arrays.
        let mut version: sys::rknn_sdk_version = unsafe { std::mem::zeroed() };
        let size = std::mem::size_of::<sys::rknn_sdk_version>() as u32;
        let query = self.fns.query.expect("resolved at open");
        // SAFETY: the command fills a struct of exactly this type and size.
        let code = unsafe {
            query(ctx, sys::RKNN_ABI_QUERY_SDK_VERSION as i32, (&raw mut version).cast::<c_void>(), size)
        };
        check("rknn_query", code, || "SDK_VERSION".to_owned())?;
        Ok(Version { api: text(&version.api_version), driver: text(&version.drv_version) })
    }
}

/// Turns a return code into a result; `args` is only made on failure.
pub(crate) fn check(call: &'static str, code: i32, args: impl FnOnce() -> String) -> Result<(), Error> {
    match code {
        0 => Ok(()),
        code => Err(Error::Call { call, args: args(), code }),
    }
}

/// The loader's message without the wrapper's.
fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

fn text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
