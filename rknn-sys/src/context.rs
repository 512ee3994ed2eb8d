//! A matmul context: one shape, one element type, one core.

use std::sync::Arc;

use crate::dtype::MatmulType;
use crate::error::Error;
use crate::library::{check, Library, Version};
use crate::memory::{Binding, Memory, Raw};
use crate::sys;

/// How the elements of an operand lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Row-major: A is M×K, B is K×N, C is M×N.
    Norm,
    /// The NPU's own sub-blocks.
    Native,
}

impl Layout {
    fn code(self) -> i16 {
        (match self {
            Self::Norm => sys::RKNN_ABI_LAYOUT_NORM,
            Self::Native => sys::RKNN_ABI_LAYOUT_NATIVE,
        }) as i16
    }
}

/// What a context computes: C (`rows`×`n`) = A (`rows`×`k`) · B (`k`×`n`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatmulSpec {
    /// Element types.
    pub dtype: MatmulType,
    /// M.
    pub rows: usize,
    /// K, aligned as the chip wants it.
    pub k: usize,
    /// N, aligned as the chip wants it.
    pub n: usize,
    /// Layout of B.
    pub b_layout: Layout,
    /// Layout of A and C.
    pub ac_layout: Layout,
    /// The I/O domain, 0 to 15.
    pub domain: u8,
}

impl MatmulSpec {
    /// The ABI's struct.
    pub(crate) fn info(&self) -> Result<sys::rknn_matmul_info, Error> {
        // SAFETY: all-zero is valid for this plain struct, and the ABI asks for zeroed reserved fields.
        let mut info: sys::rknn_matmul_info = unsafe { std::mem::zeroed() };
        info.M = dimension("M", self.rows)?;
        info.K = dimension("K", self.k)?;
        info.N = dimension("N", self.n)?;
        info.type_ = self.dtype.code();
        info.B_layout = self.b_layout.code();
        info.AC_layout = self.ac_layout.code();
        info.iommu_domain_id = i32::from(self.domain);
        Ok(info)
    }
}

/// A dimension as the ABI carries it.
pub(crate) fn dimension(what: &'static str, value: usize) -> Result<i32, Error> {
    i32::try_from(value).ok().filter(|v| *v > 0).ok_or_else(|| Error::Range {
        what,
        value: value as u64,
        expected: "1 to 2147483647".to_owned(),
    })
}

impl std::fmt::Display for MatmulSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "M={}, K={}, N={}, type={}, B {:?}, A/C {:?}, domain {}",
            self.rows,
            self.k,
            self.n,
            self.dtype.code(),
            self.b_layout,
            self.ac_layout,
            self.domain
        )
    }
}

/// The three operands of a matmul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// Activations.
    A,
    /// Weights.
    B,
    /// Results.
    C,
}

/// A context of the vendor's library; destroyed on drop.
///
/// One thread at a time uses it (`&mut self` where the NPU is involved); it may move between threads.
pub struct Context {
    library: Library,
    handle: sys::rknn_context,
    io: Box<sys::rknn_matmul_io_attr>,
    spec: MatmulSpec,
    /// What is bound, so that it outlives the binding.
    bound: [Option<Arc<Raw>>; 3],
}

impl Context {
    /// Creates the context on the core that the library picks.
    ///
    /// # Errors
    /// The vendor's code with the shape asked for; [`Error::Range`] for sizes past the ABI's 32 bits.
    pub fn create(library: &Library, spec: MatmulSpec) -> Result<Self, Error> {
        let mut info = spec.info()?;
        // SAFETY: all-zero is valid for this plain struct, which the call fills.
        let mut io: Box<sys::rknn_matmul_io_attr> = unsafe { Box::new(std::mem::zeroed()) };
        let mut handle: sys::rknn_context = 0;
        let create = library.fns.create.expect("resolved at open");
        // SAFETY: three valid pointers to structs of the ABI's layout, written during the call only.
        let code = unsafe { create(&mut handle, &mut info, &mut *io) };
        check("rknn_matmul_create", code, || spec.to_string())?;
        Ok(Self::from_parts(library, handle, io, spec))
    }

    /// Owns a live handle from here on.
    pub(crate) fn from_parts(
        library: &Library,
        handle: sys::rknn_context,
        io: Box<sys::rknn_matmul_io_attr>,
        spec: MatmulSpec,
    ) -> Self {
        Self { library: library.clone(), handle, io, spec, bound: [None, None, None] }
    }

    /// Goes on with another M and its attributes; A and C must be bound again.
    pub(crate) fn reshape(&mut self, rows: usize, io: sys::rknn_matmul_io_attr) {
        self.spec.rows = rows;
        *self.io = io;
        self.bound[Operand::A as usize] = None;
        self.bound[Operand::C as usize] = None;
    }

    /// The shape and types it was made for.
    pub fn spec(&self) -> &MatmulSpec {
        &self.spec
    }

    /// The library's version.
    ///
    /// # Errors
    /// The vendor's code when the query is refused.
    pub fn version(&self) -> Result<Version, Error> {
        self.library.version(self.handle)
    }

    /// Pins the context to one core of the NPU, 0 to 2.
    ///
    /// # Errors
    /// The vendor's code, for a core that the chip does not have.
    pub fn set_core(&mut self, core: usize) -> Result<(), Error> {
        self.set_core_mask(1i32 << core.min(15))
    }

    /// Passes any core mask on: 0 is auto, bit n is core n. The library decides what it takes.
    ///
    /// # Errors
    /// The vendor's code, for a mask that it refuses.
    pub fn set_core_mask(&mut self, mask: i32) -> Result<(), Error> {
        let set = self.library.fns.set_core_mask.expect("resolved at open");
        // SAFETY: the handle is live until drop.
        let code = unsafe { set(self.handle, mask) };
        check("rknn_matmul_set_core_mask", code, || format!("mask {mask}"))
    }

    /// Bytes that `operand` must have at least.
    pub fn operand_bytes(&self, operand: Operand) -> usize {
        self.attr(operand).size as usize
    }

    fn attr(&self, operand: Operand) -> &sys::rknn_matmul_tensor_attr {
        match operand {
            Operand::A => &self.io.A,
            Operand::B => &self.io.B,
            Operand::C => &self.io.C,
        }
    }

    /// Binds `memory` to an operand; does nothing when it is the one already bound.
    ///
    /// # Errors
    /// [`Error::Range`] when the memory is too small, or the vendor's code (-4: out of I/O address space).
    pub fn bind(&mut self, operand: Operand, memory: &Binding) -> Result<(), Error> {
        let slot = operand as usize;
        if self.bound[slot].as_ref().is_some_and(|bound| Arc::ptr_eq(bound, &memory.raw)) {
            return Ok(());
        }
        let need = self.operand_bytes(operand);
        if memory.raw.bytes < need {
            return Err(Error::Range {
                what: "the memory bound to an operand",
                value: memory.raw.bytes as u64,
                expected: format!("at least {need} bytes for {operand:?} of {}", self.spec),
            });
        }
        let mut attr = *self.attr(operand);
        let set = self.library.fns.set_io_mem.expect("resolved at open");
        // SAFETY: handle and memory are live; the attribute is the library's own, copied.
        let code = unsafe { set(self.handle, memory.raw.as_ptr(), &mut attr) };
        check("rknn_matmul_set_io_mem", code, || {
            format!("{operand:?}, {} bytes, {}", memory.raw.bytes, self.spec)
        })?;
        self.bound[slot] = Some(memory.raw.clone());
        Ok(())
    }

    /// Runs the product and waits for it. C must be synced from the device before it is read.
    ///
    /// # Errors
    /// The vendor's code; an operand that was never bound is refused here, not by the library.
    pub fn run(&mut self) -> Result<(), Error> {
        if self.bound.iter().any(Option::is_none) {
            return Err(Error::Call {
                call: "rknn_matmul_run",
                args: format!("an operand is not bound, {}", self.spec),
                code: sys::RKNN_ABI_ERR_INPUT_INVALID,
            });
        }
        let run = self.library.fns.run.expect("resolved at open");
        // SAFETY: the handle is live and its three operands are bound to live memory.
        let code = unsafe { run(self.handle) };
        check("rknn_matmul_run", code, || self.spec.to_string())
    }

    /// Allocates memory of `bytes` bytes that any context of the same domain can bind.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; [`Error::Range`] past 4 GiB.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Memory, Error> {
        Memory::allocate(self.clone(), bytes)
    }

    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    pub(crate) fn handle(&self) -> sys::rknn_context {
        self.handle
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let destroy = self.library.fns.destroy.expect("resolved at open");
        // SAFETY: the handle is live, and nothing uses it after this.
        unsafe { destroy(self.handle) };
    }
}
