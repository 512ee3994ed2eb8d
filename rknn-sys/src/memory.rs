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
    /// Where it begins in the allocation that has the file descriptor.
    offset: usize,
    /// What a view is a part of.
    parent: Option<Arc<Raw>>,
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
        Ok(Self { raw: Arc::new(Raw { keeper, mem, data, bytes, offset: 0, parent: None }) })
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
        sync(&self.raw, sys::RKNN_ABI_SYNC_TO_DEVICE)
    }

    /// Makes what the NPU wrote visible to the host; `&mut`, since the bytes change.
    ///
    /// # Errors
    /// The vendor's code.
    pub fn sync_from_device(&mut self) -> Result<(), Error> {
        sync(&self.raw, sys::RKNN_ABI_SYNC_FROM_DEVICE)
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
        Ok(Self { raw: Arc::new(view(&self.raw, range)?) })
    }

    /// As [`Self::sync_from_device`], for the bytes of a window of this memory; a window of another is refused.
    ///
    /// # Errors
    /// The vendor's code, or [`Error::Range`].
    pub fn sync_window_from_device(&mut self, window: &Window) -> Result<(), Error> {
        if !window.raw.parent.as_ref().is_some_and(|parent| Arc::ptr_eq(parent, &self.raw)) {
            return Err(Error::Range {
                what: "the memory of a window",
                value: window.raw.bytes as u64,
                expected: "the one that is synced".to_owned(),
            });
        }
        sync(&window.raw, sys::RKNN_ABI_SYNC_FROM_DEVICE)
    }

    /// A part of the memory for contexts to bind and for syncs that concern no more than it; parts may overlap.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that is empty or out of bounds, [`Error::NoMemory`] from the library.
    pub fn window(&self, range: &Range<usize>) -> Result<Window, Error> {
        window(&self.raw, 0, range)
    }

    /// Whether `next` begins where this ends, in the same allocation.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        let parents = self.raw.parent.as_ref().zip(next.raw.parent.as_ref());
        parents.is_some_and(|(one, other)| Arc::ptr_eq(one, other))
            && self.raw.offset + self.raw.bytes == next.raw.offset
    }

    /// As [`Self::window`], but the part may reach beyond the memory, into what follows it in its allocation: for contexts to
    /// read only.
    ///
    /// # Errors
    /// As of [`Self::window`]; of a memory that is no view, as [`Self::window`].
    pub fn window_onwards(&self, range: &Range<usize>) -> Result<Window, Error> {
        let Some(parent) = self.raw.parent.as_ref().filter(|_| range.end > self.raw.bytes) else {
            return self.window(range);
        };
        window(parent, self.raw.offset - parent.offset, range)
    }
}

/// The part `range` of what begins at `from` in `of`.
fn window(of: &Arc<Raw>, from: usize, range: &Range<usize>) -> Result<Window, Error> {
    if range.start >= range.end || from + range.end > of.bytes {
        return Err(Error::Range {
            what: "the end of a window",
            value: range.end as u64,
            expected: format!("{} to {}", range.start + 1, of.bytes - from),
        });
    }
    Ok(Window { raw: Arc::new(view(of, &(from + range.start..from + range.end))?) })
}

/// A part of a [`Memory`] as contexts and syncs see it; it gives no access to the bytes.
pub struct Window {
    raw: Arc<Raw>,
}

impl Window {
    /// What a context, perhaps on another thread, binds.
    pub fn binding(&self) -> Binding {
        Binding { raw: self.raw.clone() }
    }

    /// Makes the host's writes to the part visible to the NPU.
    ///
    /// # Errors
    /// The vendor's code.
    pub fn sync_to_device(&self) -> Result<(), Error> {
        sync(&self.raw, sys::RKNN_ABI_SYNC_TO_DEVICE)
    }
}

/// One allocation (one file descriptor) from which memories are taken one after the other.
///
/// It lives as long as any of them; what was taken is not given back singly, but all at once, when the last is gone.
pub struct Arena {
    raw: Arc<Raw>,
    used: usize,
}

impl Arena {
    /// Allocates an arena of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`Error::Range`] past 2 GiB, which no view's offset reaches.
    pub fn allocate(keeper: &Arc<Context>, bytes: usize) -> Result<Self, Error> {
        offset_i32(bytes)?;
        Ok(Self { raw: Memory::allocate(keeper.clone(), bytes)?.raw, used: 0 })
    }

    /// The next `bytes` bytes, from a multiple of `align` on; `None` when they are not there.
    ///
    /// # Errors
    /// [`Error::NoMemory`] from the library, [`Error::Range`] for no bytes.
    pub fn take(&mut self, bytes: usize, align: usize) -> Result<Option<Memory>, Error> {
        if self.is_free() {
            self.used = 0;
        }
        let start = self.used.next_multiple_of(align.max(1));
        let Some(end) = start.checked_add(bytes).filter(|end| *end <= self.raw.bytes) else {
            return Ok(None);
        };
        let memory = Memory { raw: Arc::new(view(&self.raw, &(start..end))?) };
        self.used = end;
        Ok(Some(memory))
    }

    /// Whether nothing that was taken is left.
    pub fn is_free(&self) -> bool {
        // Only views share it, and only `take` makes them.
        Arc::strong_count(&self.raw) == 1
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.raw.bytes
    }
}

/// A view of `parent` by a range that lies within it.
fn view(parent: &Arc<Raw>, range: &Range<usize>) -> Result<Raw, Error> {
    let bytes = range.len();
    let size = size_u32(bytes)?;
    let start = parent.offset + range.start;
    let offset = offset_i32(start)?;
    let keeper = parent.keeper.clone();
    // SAFETY: the parent's struct is live.
    let fd = unsafe { parent.mem.as_ref() }.fd;
    let create = keeper.library().fns.create_mem_from_fd.expect("resolved at open");
    // SAFETY: the parent begins `offset` bytes into the mapping of the allocation that has the descriptor.
    let base = unsafe { parent.data.sub(parent.offset) };
    // SAFETY: fd and mapping belong to the allocation, which the view keeps alive.
    let mem = unsafe { create(keeper.handle(), fd, base.as_ptr().cast(), size, offset) };
    let mem = NonNull::new(mem).ok_or(Error::NoMemory { call: "rknn_create_mem_from_fd", size: bytes })?;
    // SAFETY: the range lies within the parent, by this function's contract.
    let data = unsafe { parent.data.add(range.start) };
    Ok(Raw { keeper, mem, data, bytes, offset: start, parent: Some(parent.clone()) })
}

fn sync(raw: &Raw, mode: u32) -> Result<(), Error> {
    let keeper = &raw.keeper;
    let sync = keeper.library().fns.mem_sync.expect("resolved at open");
    // SAFETY: context and memory are live.
    let code = unsafe { sync(keeper.handle(), raw.as_ptr(), mode as i32) };
    check("rknn_mem_sync", code, || format!("{} bytes, mode {mode}", raw.bytes))
}

fn offset_i32(offset: usize) -> Result<i32, Error> {
    i32::try_from(offset).map_err(|_| Error::Range {
        what: "the offset of a view",
        value: offset as u64,
        expected: "below 2 GiB".to_owned(),
    })
}

fn size_u32(bytes: usize) -> Result<u32, Error> {
    u32::try_from(bytes).ok().filter(|size| *size > 0).ok_or_else(|| Error::Range {
        what: "the size of a memory in bytes",
        value: bytes as u64,
        expected: "1 to 4294967295".to_owned(),
    })
}
