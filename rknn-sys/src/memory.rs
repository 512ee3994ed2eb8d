//! Memory that host and NPU share. It is not coherent: sync to the device after writing, from it before reading.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::context::Context;
use crate::error::Error;
use crate::library::check;
use crate::sys;

/// An `rknn_tensor_mem`, freed on drop through the context it was made with.
///
/// Contexts share it with its [`Memory`], but only the `Memory` reaches its bytes.
pub(crate) struct Raw {
    keeper: Arc<Context>,
    mem: NonNull<sys::rknn_tensor_mem>,
    data: NonNull<u8>,
    pub(crate) bytes: usize,
    /// The allocation that a view is a part of.
    _parent: Option<Arc<Raw>>,
}

// SAFETY: the library allows its calls on one memory from any thread; the bytes are only reached through the
// one `Memory` that owns this, by the rules of `&` and `&mut`.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    pub(crate) fn as_ptr(&self) -> *mut sys::rknn_tensor_mem {
        self.mem.as_ptr()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let destroy = self.keeper.library().fns.destroy_mem.expect("resolved at open");
        // SAFETY: the memory is live and freed once.
        unsafe { destroy(self.keeper.handle(), self.mem.as_ptr()) };
    }
}

/// An allocation (one file descriptor) or, after [`Memory::split`], a part of one (none of its own).
///
/// It is the only way to the bytes, so Rust's borrows order the host's accesses; bound contexts keep it alive.
pub struct Memory {
    pub(crate) raw: Arc<Raw>,
}

/// What a context needs to bind a [`Memory`]: it keeps the memory alive and gives no access to its bytes.
#[derive(Clone)]
pub struct Binding {
    pub(crate) raw: Arc<Raw>,
}

impl Memory {
    /// What a context, perhaps on another thread, binds.
    pub fn binding(&self) -> Binding {
        Binding { raw: self.raw.clone() }
    }

    pub(crate) fn allocate(keeper: Arc<Context>, bytes: usize) -> Result<Self, Error> {
        let size = size_u32(bytes)?;
        let create = keeper.library().fns.create_mem.expect("resolved at open");
        // SAFETY: the context is live.
        let mem = unsafe { create(keeper.handle(), size) };
        let no_memory = || Error::NoMemory { call: "rknn_create_mem", size: bytes };
        let mem = NonNull::new(mem).ok_or_else(no_memory)?;
        // SAFETY: the library returned a live struct.
        let data = unsafe { mem.as_ref() }.virt_addr.cast::<u8>();
        let data = NonNull::new(data).ok_or_else(no_memory)?;
        Ok(Self { raw: Arc::new(Raw { keeper, mem, data, bytes, _parent: None }) })
    }

    /// Usable bytes.
    pub fn bytes(&self) -> usize {
        self.raw.bytes
    }

    /// The bytes as the host sees them; after a run they are stale until synced from the device.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `data` maps `bytes` bytes as long as `raw` lives; writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.raw.data.as_ptr(), self.raw.bytes) }
    }

    /// The bytes to write; the NPU sees them after [`Self::sync_to_device`].
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes it the only one.
        unsafe { std::slice::from_raw_parts_mut(self.raw.data.as_ptr(), self.raw.bytes) }
    }

    /// Makes the host's writes visible to the NPU.
    ///
    /// # Errors
    /// The vendor's code.
    pub fn sync_to_device(&self) -> Result<(), Error> {
        self.sync(sys::RKNN_ABI_SYNC_TO_DEVICE)
    }

    /// Makes what the NPU wrote visible to the host; `&mut`, since the bytes change.
    ///
    /// # Errors
    /// The vendor's code.
    pub fn sync_from_device(&mut self) -> Result<(), Error> {
        self.sync(sys::RKNN_ABI_SYNC_FROM_DEVICE)
    }

    fn sync(&self, mode: u32) -> Result<(), Error> {
        let keeper = &self.raw.keeper;
        let sync = keeper.library().fns.mem_sync.expect("resolved at open");
        // SAFETY: context and memory are live.
        let code = unsafe { sync(keeper.handle(), self.raw.as_ptr(), mode as i32) };
        check("rknn_mem_sync", code, || format!("{} bytes, mode {mode}", self.raw.bytes))
    }

    /// Cuts the allocation into disjoint views by `ranges` (bytes, ascending); it is freed with the last of them.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that is out of order or out of bounds, [`Error::NoMemory`] from the library.
    pub fn split(self, ranges: &[Range<usize>]) -> Result<Vec<Self>, Error> {
        let mut views = Vec::with_capacity(ranges.len());
        let mut end = 0;
        for range in ranges {
            if range.start < end || range.end < range.start || range.end > self.raw.bytes {
                return Err(Error::Range {
                    what: "the end of a view",
                    value: range.end as u64,
                    expected: format!("{end} to {}", self.raw.bytes),
                });
            }
            end = range.end;
            views.push(self.view(range)?);
        }
        Ok(views)
    }

    /// One view; `split` sees to it that views do not overlap and that the whole is no longer reachable.
    fn view(&self, range: &Range<usize>) -> Result<Self, Error> {
        let bytes = range.len();
        let size = size_u32(bytes)?;
        let offset = i32::try_from(range.start).map_err(|_| Error::Range {
            what: "the offset of a view",
            value: range.start as u64,
            expected: "below 2 GiB".to_owned(),
        })?;
        let keeper = self.raw.keeper.clone();
        // SAFETY: the allocation's struct is live.
        let fd = unsafe { self.raw.mem.as_ref() }.fd;
        let create = keeper.library().fns.create_mem_from_fd.expect("resolved at open");
        // SAFETY: fd and mapping belong to the allocation, which the view keeps alive.
        let mem = unsafe { create(keeper.handle(), fd, self.raw.data.as_ptr().cast(), size, offset) };
        let mem =
            NonNull::new(mem).ok_or(Error::NoMemory { call: "rknn_create_mem_from_fd", size: bytes })?;
        // SAFETY: the range lies within the mapping, as `split` checked.
        let data = unsafe { self.raw.data.add(range.start) };
        Ok(Self { raw: Arc::new(Raw { keeper, mem, data, bytes, _parent: Some(self.raw.clone()) }) })
    }
}

fn size_u32(bytes: usize) -> Result<u32, Error> {
    u32::try_from(bytes).ok().filter(|size| *size > 0).ok_or_else(|| Error::Range {
        what: "the size of a memory in bytes",
        value: bytes as u64,
        expected: "1 to 4294967295".to_owned(),
    })
}
