//! Where the host's ggml lives.
//!
//! A host opens its backends with `RTLD_LOCAL`, and may itself have been opened that way (an addon of another
//! program), so the default scope may hold none of ggml's symbols. Three places are tried, in this order:
//!
//! 1. the object that called us: a handle on it searches its dependencies, libggml-base among them;
//! 2. the default scope: a static host that exports its symbols;
//! 3. any loaded object whose file name begins with `libggml-base`.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr::NonNull;

/// A place to look symbols up in.
#[derive(Debug, Clone)]
pub struct Scope {
    handle: *mut c_void,
    /// What it is, for error messages.
    pub name: String,
}

impl Scope {
    /// The address of `symbol`, if this scope or its dependencies define it.
    pub fn symbol(&self, symbol: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is a live dlopen handle or RTLD_DEFAULT; the name ends with NUL.
        NonNull::new(unsafe { libc::dlsym(self.handle, symbol.as_ptr()) })
    }

    /// An object that is already loaded; it is kept loaded from now on.
    fn loaded(path: &CStr) -> Option<Self> {
        // SAFETY: RTLD_NOLOAD opens nothing new, so no constructor runs.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        (!handle.is_null()).then(|| Self { handle, name: path.to_string_lossy().into_owned() })
    }

    fn default_scope() -> Self {
        Self { handle: libc::RTLD_DEFAULT, name: "the process's own symbols".to_owned() }
    }
}

/// The first scope that defines `marker`; `Err` names what was tried.
///
/// # Errors
/// The places that were tried, one after the other.
pub fn find(marker: &CStr) -> Result<Scope, String> {
    let mut tried = Vec::new();
    let candidates = caller()
        .and_then(|path| Scope::loaded(&path))
        .into_iter()
        .chain(std::iter::once(Scope::default_scope()))
        .chain(loaded("libggml-base"));
    for scope in candidates {
        if scope.symbol(marker).is_some() {
            return Ok(scope);
        }
        tried.push(scope.name);
    }
    Err(tried.join(", "))
}

/// The object file that holds `address`, and where it is mapped.
fn object_of(address: *const c_void) -> Option<(CString, *mut c_void)> {
    // SAFETY: an all-zero Dl_info is valid; dladdr fills it on success.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked about.
    let found = unsafe { libc::dladdr(address, &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated path that belongs to the loader.
    let path = unsafe { CStr::from_ptr(info.dli_fname) }.to_owned();
    Some((path, info.dli_fbase))
}

#[repr(C)]
struct UnwindContext {
    _opaque: [u8; 0],
}

extern "C" {
    // Of the unwinder that every Rust cdylib carries (the C++ ABI's unwinding interface, level I).
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut UnwindContext, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut UnwindContext) -> usize;
}

/// The file of the first object on the stack that is not ours: the host's loader.
fn caller() -> Option<CString> {
    struct Search {
        ours: *mut c_void,
        found: Option<CString>,
    }
    extern "C" fn visit(context: *mut UnwindContext, argument: *mut c_void) -> c_int {
        const GO_ON: c_int = 0;
        const STOP: c_int = 5;
        // SAFETY: `argument` is the `Search` below, alive during the walk; nobody else holds it.
        let search = unsafe { &mut *argument.cast::<Search>() };
        // SAFETY: the unwinder's own context, as this callback got it.
        let ip = unsafe { _Unwind_GetIP(context) };
        match object_of(ip as *const c_void) {
            Some((_, base)) if base == search.ours => GO_ON,
            Some((path, _)) => {
                search.found = Some(path);
                STOP
            }
            None => GO_ON,
        }
    }
    let (_, ours) = object_of(caller as *const c_void)?;
    let mut search = Search { ours, found: None };
    // SAFETY: the callback matches the unwinder's contract; `search` outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut search).cast()) };
    search.found
}

/// The loaded objects whose file name begins with `prefix`.
pub fn loaded(prefix: &str) -> impl Iterator<Item = Scope> {
    struct Search<'a> {
        prefix: &'a [u8],
        paths: Vec<CString>,
    }
    extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, argument: *mut c_void) -> c_int {
        // SAFETY: `argument` is the search below; `info` is the loader's, alive during the callback.
        let (search, name) = unsafe { (&mut *argument.cast::<Search>(), (*info).dlpi_name) };
        if !name.is_null() {
            // SAFETY: a NUL-terminated path that belongs to the loader.
            let path: &CStr = unsafe { CStr::from_ptr(name.cast::<c_char>()) };
            let file = path.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            if file.starts_with(search.prefix) {
                search.paths.push(path.to_owned());
            }
        }
        0
    }
    let mut search = Search { prefix: prefix.as_bytes(), paths: Vec::new() };
    // SAFETY: the callback matches dl_iterate_phdr's contract; `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.paths.into_iter().filter_map(|path| Scope::loaded(&path))
}
