//! Allocations with two sides: what the host maps, and a shadow that stands for what the device sees.
//!
//! An allocation is one memfd, hence one file descriptor. The shadow is an anonymous mapping of the same size,
//! so that pages that are never synced are never touched. `rknn_mem_sync` copies between the two.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use rknn_sys::sys;

use crate::status::{refuse, Result, Status};
use crate::strict::misuse;

/// I/O domains of an NPU.
pub const DOMAINS: usize = 16;

/// What a context takes of its domain until it is destroyed: measured as 0.3 to 0.5 MB each (`docs/facts.md`).
pub const CONTEXT_BYTES: u64 = 400_000;

/// Bytes in use of each domain.
static USED: Mutex<[u64; DOMAINS]> = Mutex::new([0; DOMAINS]);

/// Counts `bytes` more in `domain`.
///
/// # Errors
/// -4 when the domain's `space` bytes do not hold them too.
fn add(used: &mut [u64; DOMAINS], domain: usize, bytes: u64, what: &str, space: u64) -> Result<()> {
    let in_use = used[domain];
    if in_use + bytes > space {
        return refuse(
            Status::NO_MEMORY,
            format_args!(
                "no I/O address space for {what}{bytes} bytes in domain {domain}: {in_use} of {space} in use"
            ),
        );
    }
    used[domain] += bytes;
    Ok(())
}

/// A context's part of its domain, given back on drop.
pub struct Share(usize);

impl Share {
    /// Takes [`CONTEXT_BYTES`] of `domain`.
    ///
    /// # Errors
    /// -4 when the domain's `space` bytes do not hold them too.
    pub fn take(domain: usize, space: u64) -> Result<Self> {
        add(&mut USED.lock(), domain, CONTEXT_BYTES, "a context's ", space)?;
        Ok(Self(domain))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        USED.lock()[self.0] -= CONTEXT_BYTES;
    }
}

/// An anonymous or memfd mapping, unmapped on drop.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is plain memory that any thread may use; who uses which bytes when is said in `Allocation`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize, fd: Option<&OwnedFd>) -> Option<Self> {
        let (kind, fd) = match fd {
            Some(fd) => (libc::MAP_SHARED, fd.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind | libc::MAP_NORESERVE, fd, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(base.cast()).map(|base| Self { base, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// What tells one file from another: device and inode.
type FileId = (u64, u64);

fn file_id(fd: i32) -> Option<FileId> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the struct or fails; a bad descriptor is an error, not undefined.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled, by the zero above.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

/// One memfd with its host mapping and its shadow; alive while a memory or a binding refers to it.
///
/// Its bytes are only reached through raw pointers: the host writes them behind our back, as it should. Two
/// calls that touch the same bytes at once race as on the device, and are the caller's to order.
pub struct Allocation {
    fd: OwnedFd,
    id: FileId,
    host: Mapping,
    /// None for memory that is not cached: both sides are the host's.
    shadow: Option<Mapping>,
    /// Bit d: charged to domain d.
    charged: AtomicU16,
}

impl Allocation {
    fn new(bytes: usize, cacheable: bool) -> Option<Self> {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"npu-emulator".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            let handle = BY_FILE.lock().len() + 1;
            crate::log::line(format_args!("failed to convert handle({handle}) to fd, errno {errno}"));
            return None;
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let failed = || {
            let error = std::io::Error::last_os_error();
            crate::log::line(format_args!("failed to allocate {bytes} bytes: {error}"));
            None
        };
        // SAFETY: the descriptor is ours and open.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) } != 0 {
            return failed();
        }
        let (Some(id), Some(host)) = (file_id(fd.as_raw_fd()), Mapping::new(bytes, Some(&fd))) else {
            return failed();
        };
        let shadow = if cacheable {
            match Mapping::new(bytes, None) {
                Some(mapping) => Some(mapping),
                None => return failed(),
            }
        } else {
            None
        };
        Some(Self { fd, id, host, shadow, charged: AtomicU16::new(0) })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.host.bytes
    }

    /// The device's side: valid for `bytes()` bytes as long as the allocation lives.
    pub fn device(&self) -> *mut u8 {
        self.shadow.as_ref().unwrap_or(&self.host).base.as_ptr()
    }

    /// Charges the allocation to `domain`, once however often it is asked; given back when it is freed.
    ///
    /// # Errors
    /// -4 when the domain's `space` bytes do not hold it too.
    pub fn charge(&self, domain: usize, space: u64) -> Result<()> {
        let mut used = USED.lock();
        let bit = 1 << domain;
        if self.charged.load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        add(&mut used, domain, self.bytes() as u64, "", space)?;
        self.charged.fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let charged = *self.charged.get_mut();
        let mut used = USED.lock();
        for (domain, used) in used.iter_mut().enumerate() {
            if charged & (1 << domain) != 0 {
                *used -= self.host.bytes as u64;
            }
        }
        drop(used);
        BY_FILE.lock().remove(&self.id);
        crate::clock::freed(self.device() as usize, self.bytes());
    }
}

/// Every allocation by its file, so that a descriptor leads to it. The file lives as long as the entry, because
/// the allocation holds a descriptor; hence no inode stands for two.
static BY_FILE: LazyLock<Mutex<HashMap<FileId, Weak<Allocation>>>> = LazyLock::new(Mutex::default);

/// What stands behind an `rknn_tensor_mem`: a range of an allocation.
#[derive(Clone)]
pub struct View {
    /// The allocation.
    pub allocation: Arc<Allocation>,
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
    /// Made without a context, so that calls on it need none.
    pub contextless: bool,
    /// The domain of the context that it was made with; none without one.
    pub domain: Option<usize>,
    /// Set when the memory is destroyed; bindings may outlive it.
    freed: Arc<AtomicBool>,
}

impl View {
    /// The device's side of the range: valid for `bytes` bytes while the view lives.
    pub fn device(&self) -> *mut u8 {
        // SAFETY: offset + bytes lie within the allocation, checked when the view was made.
        unsafe { self.allocation.device().add(self.offset) }
    }

    /// Whether the memory that this is of was destroyed.
    pub fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Relaxed)
    }

    fn copy(&self, to_device: bool) {
        if self.allocation.shadow.is_none() {
            return;
        }
        // SAFETY: the range lies within both mappings, which never overlap.
        unsafe {
            let host = self.allocation.host.base.as_ptr().add(self.offset);
            let device = self.device();
            let (from, to) = if to_device { (host, device) } else { (device, host) };
            std::ptr::copy_nonoverlapping(from, to, self.bytes);
        }
    }
}

/// The struct given out, at a stable address. We never read it back: the caller may write to it.
struct Public(NonNull<sys::rknn_tensor_mem>);

// SAFETY: a heap block that only this frees; the caller may read it from any thread.
unsafe impl Send for Public {}

impl Drop for Public {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `publish`, freed once, here.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A live `rknn_tensor_mem` and what stands behind it.
struct Record {
    public: Public,
    view: View,
}

/// How many structs of destroyed memories are kept.
const RETIRED_MOST: usize = 4096;

/// Structs of destroyed memories, oldest first: kept a while so that the allocator does not give their address
/// to a new memory, for which a stale handle would then pass.
static RETIRED: Mutex<VecDeque<Public>> = Mutex::new(VecDeque::new());

/// Every live memory by the address of its struct: what tells a handle from any other pointer.
static RECORDS: LazyLock<Mutex<HashMap<usize, Record>>> = LazyLock::new(Mutex::default);

fn publish(view: View, virt_addr: *mut libc::c_void, fd: i32, flags: u32) -> *mut sys::rknn_tensor_mem {
    let public = Box::into_raw(Box::new(sys::rknn_tensor_mem {
        virt_addr,
        phys_addr: 0,
        fd,
        // Both were an i32 or u32 of the caller's.
        offset: view.offset as i32,
        size: view.bytes as u32,
        flags,
        priv_data: std::ptr::null_mut(),
    }));
    let Some(handle) = NonNull::new(public) else { return std::ptr::null_mut() };
    RECORDS.lock().insert(public as usize, Record { public: Public(handle), view });
    public
}

/// A new allocation of `bytes` bytes with the vendor's memory `flags` (0: cached); null, with a line, when the
/// size is 0 or past 32 bits, the flags contradict themselves, or descriptors or address space are used up.
pub fn create(bytes: u64, flags: u64) -> *mut sys::rknn_tensor_mem {
    let bit = |flag: u32| flags & u64::from(flag) != 0;
    let known = sys::RKNN_ABI_MEM_CACHEABLE
        | sys::RKNN_ABI_MEM_NON_CACHEABLE
        | sys::RKNN_ABI_MEM_TRY_SRAM
        | sys::RKNN_ABI_MEM_NO_CONTEXT;
    let both = bit(sys::RKNN_ABI_MEM_CACHEABLE) && bit(sys::RKNN_ABI_MEM_NON_CACHEABLE);
    if flags & !u64::from(known) != 0 || both {
        misuse(format_args!("memory flags {flags:#x} are unknown or contradict each other"));
        return std::ptr::null_mut();
    }
    let Some(size) = u32::try_from(bytes).ok().filter(|size| *size > 0) else {
        misuse(format_args!("a memory cannot have {bytes} bytes"));
        return std::ptr::null_mut();
    };
    let Some(allocation) = Allocation::new(size as usize, !bit(sys::RKNN_ABI_MEM_NON_CACHEABLE)) else {
        return std::ptr::null_mut();
    };
    let allocation = Arc::new(allocation);
    BY_FILE.lock().insert(allocation.id, Arc::downgrade(&allocation));
    let (host, fd) = (allocation.host.base.as_ptr(), allocation.fd.as_raw_fd());
    let contextless = bit(sys::RKNN_ABI_MEM_NO_CONTEXT);
    let freed = Arc::default();
    let view = View { allocation, offset: 0, bytes: size as usize, contextless, domain: None, freed };
    publish(view, host.cast(), fd, flags as u32)
}

/// A view of `bytes` bytes at `offset` of the allocation that `fd` (or a duplicate of it) belongs to; null, with a
/// line, for another descriptor or a range out of bounds. `virt_addr` is where the caller maps the whole
/// allocation; it is handed back, and never written through, because our own mapping is of the same pages.
pub fn create_from_fd(
    fd: i32,
    virt_addr: *mut libc::c_void,
    bytes: u32,
    offset: i32,
) -> *mut sys::rknn_tensor_mem {
    let found = file_id(fd).and_then(|id| BY_FILE.lock().get(&id).and_then(Weak::upgrade));
    let Some(allocation) = found else {
        misuse(format_args!("fd {fd} is not of an allocation of mine"));
        return std::ptr::null_mut();
    };
    let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(bytes as usize));
    if virt_addr.is_null() || bytes == 0 || end.is_none_or(|end| end > allocation.bytes()) {
        misuse(format_args!(
            "a view of {bytes} bytes at {offset} does not fit {} bytes, or has no address",
            allocation.bytes()
        ));
        return std::ptr::null_mut();
    }
    let (offset, bytes, freed) = (offset as usize, bytes as usize, Arc::default());
    let view = View { allocation, offset, bytes, contextless: false, domain: None, freed };
    publish(view, virt_addr, fd, sys::RKNN_ABI_MEM_CACHEABLE)
}

/// Gives a new memory, which may be null, to a domain: contexts of another one refuse it.
pub fn settle(mem: *mut sys::rknn_tensor_mem, domain: usize) -> *mut sys::rknn_tensor_mem {
    if let Some(record) = RECORDS.lock().get_mut(&(mem as usize)) {
        record.view.domain = Some(domain);
    }
    mem
}

/// Refuses a pointer that is no live memory.
fn missing<T>(mem: *const sys::rknn_tensor_mem) -> Result<T> {
    let retired = RETIRED.lock().iter().any(|public| std::ptr::eq(public.0.as_ptr(), mem));
    let was = if retired { ": it was destroyed" } else { "" };
    refuse(Status::PARAM, format_args!("{mem:p} is no live memory{was}"))
}

/// What stands behind a handle.
///
/// # Errors
/// -5 for a pointer that is no live memory.
pub fn view(mem: *const sys::rknn_tensor_mem) -> Result<View> {
    let found = RECORDS.lock().get(&(mem as usize)).map(|record| record.view.clone());
    match found {
        Some(view) => Ok(view),
        None => missing(mem),
    }
}

/// Frees a memory; its allocation lives on while views or bindings use it.
///
/// # Errors
/// As [`view`].
pub fn destroy(mem: *const sys::rknn_tensor_mem) -> Result<()> {
    let record = RECORDS.lock().remove(&(mem as usize));
    match record {
        Some(record) => {
            record.view.freed.store(true, Ordering::Relaxed);
            let mut retired = RETIRED.lock();
            retired.push_back(record.public);
            if retired.len() > RETIRED_MOST {
                retired.pop_front();
            }
            Ok(())
        }
        None => missing(mem),
    }
}

/// Copies a view's range between the sides: mode 1 to the device, 2 from it, 3 to it and then back.
///
/// # Errors
/// -5 for another mode.
pub fn sync(view: &View, mode: i32) -> Result<()> {
    match u32::try_from(mode) {
        // Nothing is computed, so that nobody reads the other side: copying would only take the CPU's time.
        Ok(
            sys::RKNN_ABI_SYNC_TO_DEVICE | sys::RKNN_ABI_SYNC_FROM_DEVICE | sys::RKNN_ABI_SYNC_BIDIRECTIONAL,
        ) if crate::clock::pace::is_on() => {}
        Ok(sys::RKNN_ABI_SYNC_TO_DEVICE) => view.copy(true),
        Ok(sys::RKNN_ABI_SYNC_FROM_DEVICE) => view.copy(false),
        // The host's bytes win, after which the sides are equal and the way back is empty.
        Ok(sys::RKNN_ABI_SYNC_BIDIRECTIONAL) => view.copy(true),
        _ => return refuse(Status::PARAM, format_args!("sync mode {mode} is none of 1, 2, 3")),
    }
    let bytes = if view.allocation.shadow.is_some() { view.bytes } else { 0 };
    crate::clock::synced(view, mode != sys::RKNN_ABI_SYNC_FROM_DEVICE as i32, bytes);
    Ok(())
}
