//! The device's buffers: plain host memory that holds tensors as the host wrote them, so that every op, read-back
//! and test sees ordinary bytes. The NPU's converted copies of weights are kept elsewhere, by address; what these
//! functions add to plain memory is that a write, or the buffer's end, drops the copies that it concerns.

use std::alloc::Layout;
use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;

use ggml_sys::sys;
use parking_lot::Mutex;

use super::registry::{self, state, with_device, State};
use super::{generation, shield};
use crate::host::device::NAME;
use crate::log;

/// Tensors begin at multiples of this: a cache line pair, as on ggml's CPU.
const ALIGNMENT: usize = 128;
/// Allocations begin on a page.
const PAGE: usize = 4096;

/// The addresses of the buffers that are not freed yet.
static LIVE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// The memory behind a buffer.
struct Region {
    base: *mut u8,
    bytes: usize,
    /// How it was allocated; `None` for memory that the host lent (a mapped model file).
    owned: Option<Layout>,
}

impl Region {
    fn range(&self) -> Range<usize> {
        self.base as usize..self.base as usize + self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: allocated in `alloc_buffer` with this layout, freed once.
            unsafe { std::alloc::dealloc(self.base, layout) };
        }
    }
}

/// The buffer type's C struct.
pub fn c_buffer_type(device: sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type {
    sys::ggml_backend_buffer_type {
        iface: sys::ggml_backend_buffer_type_i {
            get_name: Some(get_name),
            alloc_buffer: Some(alloc_buffer),
            alloc_buffer_n: None,
            get_alignment: Some(get_alignment),
            get_max_size: None,
            get_alloc_size: None,
            get_alloc_size_n: Some(get_alloc_size_n),
            is_host: Some(is_host),
        },
        device,
        context: std::ptr::null_mut(),
    }
}

unsafe extern "C" fn get_name(_buft: sys::ggml_backend_buffer_type_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn get_alignment(_buft: sys::ggml_backend_buffer_type_t) -> usize {
    ALIGNMENT
}

/// Bytes that these tensors will take. llama.cpp asks when it fits a model into memory, and allocates nothing by it:
/// the converted copies count, though they lie elsewhere.
unsafe extern "C" fn get_alloc_size_n(
    buft: sys::ggml_backend_buffer_type_t,
    tensors: *mut *mut sys::ggml_tensor,
    count: c_int,
) -> usize {
    shield("get_alloc_size_n", 0, || {
        let (Some((state, registered)), Ok(count)) = (with_device(), usize::try_from(count)) else {
            return 0;
        };
        let mut bytes = 0usize;
        for index in 0..count {
            // SAFETY: the host passes `count` live tensors.
            let tensor = unsafe { &**tensors.add(index) };
            // What lies somewhere already takes nothing more.
            if tensor.data.is_null() && tensor.view_src.is_null() {
                // SAFETY: our type, and a live tensor.
                let own = unsafe { (state.host.fns.buft_alloc_size.get())(buft, tensor) };
                let elements = tensor.ne.iter().map(|extent| usize::try_from(*extent).unwrap_or(0));
                let copies = state.host.row_reader(tensor.type_).map_or(0, |reader| {
                    let elements = elements.fold(1, usize::saturating_mul);
                    registered.device.copies_take(&super::tensor::name(tensor), &reader, elements, own)
                });
                bytes = bytes.saturating_add(own.next_multiple_of(ALIGNMENT)).saturating_add(copies);
            }
        }
        bytes
    })
}

/// Originals are kept, so the CPU may read weights where they lie.
unsafe extern "C" fn is_host(_buft: sys::ggml_backend_buffer_type_t) -> bool {
    true
}

unsafe extern "C" fn alloc_buffer(
    _buft: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    shield("alloc_buffer", std::ptr::null_mut(), || {
        let Ok(layout) = Layout::from_size_align(size.max(1), PAGE) else { return std::ptr::null_mut() };
        // SAFETY: the layout's size is not zero. Zeroed, because fresh pages are zero anyway.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            log!(Error, "cannot allocate a buffer of {size} bytes");
            return std::ptr::null_mut();
        }
        create(Region { base, bytes: size, owned: Some(layout) })
    })
}

/// A buffer over memory that the host lends, for example a mapped model file.
pub fn from_host_ptr(base: *mut u8, bytes: usize) -> sys::ggml_backend_buffer_t {
    if base.is_null() {
        return std::ptr::null_mut();
    }
    create(Region { base, bytes, owned: None })
}

fn create(region: Region) -> sys::ggml_backend_buffer_t {
    let Some((state, registered)) = with_device() else { return std::ptr::null_mut() };
    let iface = sys::ggml_backend_buffer_i {
        free_buffer: Some(free_buffer),
        get_base: Some(get_base),
        init_tensor: None,
        memset_tensor: Some(memset_tensor),
        set_tensor: Some(set_tensor),
        get_tensor: Some(get_tensor),
        set_tensor_2d: None,
        get_tensor_2d: None,
        cpy_tensor: None,
        clear: Some(clear),
        reset: None,
    };
    registered.device.a_model_comes();
    let bytes = region.bytes;
    let context = Box::into_raw(Box::new(region));
    // SAFETY: our functions take the context for a region.
    let buffer = unsafe {
        generation::buffer(&state.host, registered.c_buffer_type.get(), iface, context.cast(), bytes)
    };
    if !buffer.is_null() {
        LIVE.lock().push(buffer as usize);
    }
    buffer
}

/// Whether there is a buffer of ours that the host said holds weights.
pub fn is_a_model_loaded() -> bool {
    // SAFETY: those in the list are live while it is locked.
    LIVE.lock().iter().any(|buffer| unsafe { is_of_weights(*buffer as sys::ggml_backend_buffer_t) })
}

/// The region of one of our buffers.
///
/// # Safety
/// `buffer` was made by [`create`] and is not freed yet.
unsafe fn region<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Region {
    // SAFETY: by the contract, the context is the region that `create` put there.
    unsafe { &*context(buffer) }
}

/// The context of one of our buffers; null before there is a host.
///
/// # Safety
/// As [`region`].
unsafe fn context(buffer: sys::ggml_backend_buffer_t) -> *mut Region {
    // SAFETY: live by the contract.
    state().map_or(std::ptr::null_mut(), |state| unsafe { generation::context(&state.host, buffer) }.cast())
}

/// Whether a buffer is one of ours over memory that the host lent.
///
/// # Safety
/// `buffer` is null or live.
pub unsafe fn is_lent(buffer: sys::ggml_backend_buffer_t) -> bool {
    // SAFETY: null or live; buffers of our type were made by `create`.
    unsafe { is_ours(buffer) && region(buffer).owned.is_none() }
}

/// Whether a buffer is one of ours.
///
/// # Safety
/// `buffer` is null or live.
pub unsafe fn is_ours(buffer: sys::ggml_backend_buffer_t) -> bool {
    let ours = super::device::buffer_type();
    // SAFETY: live if it is not null.
    !buffer.is_null()
        && state().is_some_and(|state| unsafe { (state.host.fns.buffer_type.get())(buffer) } == ours)
}

/// The addresses of a buffer, if it is one of ours.
///
/// # Safety
/// As [`is_ours`].
pub unsafe fn addresses(buffer: sys::ggml_backend_buffer_t) -> Option<(usize, usize)> {
    // SAFETY: live if it is not null; buffers of our type were made by `create`.
    let range = unsafe { is_ours(buffer).then(|| region(buffer).range())? };
    Some((range.start, range.end))
}

/// Whether a buffer is one of ours that the host did not say the use of.
///
/// # Safety
/// As [`is_ours`].
pub unsafe fn is_unmarked(buffer: sys::ggml_backend_buffer_t) -> bool {
    // SAFETY: live if it is not null.
    unsafe { is_ours(buffer) && is_for(buffer, sys::GGML_HOST_USAGE_ANY) }
}

/// Whether the host said that a buffer holds weights.
///
/// # Safety
/// As [`is_ours`].
pub unsafe fn is_of_weights(buffer: sys::ggml_backend_buffer_t) -> bool {
    // SAFETY: by the contract.
    unsafe { is_for(buffer, sys::GGML_HOST_USAGE_WEIGHTS) }
}

/// Whether the host said that a buffer has that use.
///
/// # Safety
/// As [`is_ours`].
unsafe fn is_for(buffer: sys::ggml_backend_buffer_t, usage: u32) -> bool {
    // SAFETY: live if it is not null.
    let is = |state: &State| unsafe { (state.host.fns.buffer_usage.get())(buffer) } as u32 == usage;
    !buffer.is_null() && state().is_some_and(is)
}

/// Forgets the converted copies of weights in `range`; whether there were any.
fn invalidate(range: &Range<usize>) -> bool {
    with_device().is_some_and(|(_, registered)| registered.device.invalidate(range))
}

unsafe extern "C" fn free_buffer(buffer: sys::ggml_backend_buffer_t) {
    shield("free_buffer", (), || {
        LIVE.lock().retain(|live| *live != buffer as usize);
        // SAFETY: made by `create`; the host frees it once.
        let region = unsafe { Box::from_raw(context(buffer)) };
        // A model goes. A server that is killed by a signal writes no report any more.
        if invalidate(&region.range()) {
            registry::write_report();
        }
    });
}

unsafe extern "C" fn get_base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: one of our buffers.
    unsafe { region(buffer) }.base.cast()
}

/// The `size` bytes at `offset` of a tensor of `buffer`; `None`, and a line, when they are not all inside of it.
///
/// # Safety
/// `buffer` is one of ours; `tensor` is a live tensor.
unsafe fn span(
    call: &str,
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    offset: usize,
    size: usize,
) -> Option<Range<usize>> {
    // SAFETY: by the contract.
    let (region, data) = unsafe { (region(buffer).range(), (*tensor).data as usize) };
    let start = data.checked_add(offset)?;
    let end = start.checked_add(size)?;
    if start < region.start || end > region.end {
        log!(
            Error,
            "{call}: {size} bytes at offset {offset} do not lie in the tensor's buffer; nothing is done"
        );
        return None;
    }
    Some(start..end)
}

unsafe extern "C" fn memset_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    shield("memset_tensor", (), || {
        // SAFETY: the host passes one of our buffers and a tensor in it.
        let Some(span) = (unsafe { span("memset_tensor", buffer, tensor, offset, size) }) else { return };
        // SAFETY: the span lies in the buffer's memory.
        unsafe { std::ptr::write_bytes(span.start as *mut u8, value, size) };
        invalidate(&span);
    });
}

unsafe extern "C" fn set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    shield("set_tensor", (), || {
        // SAFETY: the host passes one of our buffers and a tensor in it.
        let Some(span) = (unsafe { span("set_tensor", buffer, tensor, offset, size) }) else { return };
        // SAFETY: the span lies in the buffer's memory and `data` holds `size` bytes; `copy` allows overlap.
        unsafe { std::ptr::copy(data.cast::<u8>(), span.start as *mut u8, size) };
        invalidate(&span);
    });
}

unsafe extern "C" fn get_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    shield("get_tensor", (), || {
        // SAFETY: the host passes one of our buffers and a tensor in it.
        let Some(span) = (unsafe { span("get_tensor", buffer, tensor, offset, size) }) else { return };
        // SAFETY: the span lies in the buffer's memory and `data` has room for `size` bytes.
        unsafe { std::ptr::copy(span.start as *const u8, data.cast::<u8>(), size) };
    });
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    shield("clear", (), || {
        // SAFETY: one of our buffers.
        let region = unsafe { region(buffer) };
        // SAFETY: the whole of the buffer's memory.
        unsafe { std::ptr::write_bytes(region.base, value, region.bytes) };
        invalidate(&region.range());
    });
}
