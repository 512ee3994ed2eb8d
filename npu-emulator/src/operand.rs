//! What a context has bound, and how its operands become what the kernels take and give.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::dtype::{Dtype, Element};
use crate::kernels::{self, Isa, Panel, Segment};
use crate::layout::{blocked, BShape};
use crate::memory::View;
use crate::status::{refuse, Result, Status};

/// A bound B: device memory in native layout, or the native snapshot of a row-major one.
pub enum BoundB {
    /// Read where it lies, at each run.
    Native(View),
    /// Converted when it was bound; the view only keeps the memory.
    Converted(Vec<u8>, View),
}

impl BoundB {
    /// The device memory that each run reads, if one does.
    pub fn native(&self) -> Option<&View> {
        match self {
            Self::Native(view) => Some(view),
            Self::Converted(..) => None,
        }
    }

    fn base(&self) -> *const u8 {
        match self {
            Self::Native(view) => view.device(),
            Self::Converted(bytes, _) => bytes.as_ptr(),
        }
    }

    /// Whether a run would read a memory that was destroyed. One that was converted is not read again.
    pub fn is_freed(&self) -> bool {
        match self {
            Self::Native(view) => view.is_freed(),
            Self::Converted(..) => false,
        }
    }
}

/// The sizes of one product, fixed when its context is made but for M. Blocks are in elements; a row-major A or C has
/// one block a row.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Element types.
    pub dtype: Dtype,
    /// M.
    pub rows: usize,
    /// B.
    pub b: BShape,
    /// A is (K/a, M, a).
    pub a_block: usize,
    /// C is (N/c, M, c).
    pub c_block: usize,
    /// What the sums are multiplied by where C is i8, as [`crate::quant`] tells. No other C has it.
    pub ratio: f64,
}

/// Buffers that a context keeps between runs, so that a warm run does not allocate.
#[derive(Default)]
pub struct Scratch {
    a_wide: Vec<i16>,
    a_float: Vec<f32>,
    nibbles: Vec<i8>,
    halves: Vec<u16>,
    tile_int: Vec<i32>,
    tile_byte: Vec<i8>,
    tile_short: Vec<i16>,
    tile_float: Vec<f32>,
    tile_half: Vec<f16>,
    segments: Vec<Segment>,
}

// SAFETY: the segments' pointers are written by a run before it reads them, and mean nothing between runs.
unsafe impl Send for Scratch {}

/// At least `count` elements of `buffer`, grown without aborting when there is no memory.
fn take<T: Copy + Default>(buffer: &mut Vec<T>, count: usize) -> Result<&mut [T]> {
    if buffer.len() < count {
        if buffer.try_reserve_exact(count - buffer.len()).is_err() {
            return refuse(Status::NO_MEMORY, format_args!("no host memory for {count} elements of scratch"));
        }
        buffer.resize(count, T::default());
    }
    Ok(&mut buffer[..count])
}

/// Every sum, brought to what C can hold.
fn saturate<T>(sums: &[i32], out: &mut [T], narrow: impl Fn(i32) -> T) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = narrow(sum);
    }
}

impl Product {
    /// Elements of A.
    pub fn a_elements(&self) -> usize {
        self.rows * self.b.k
    }

    /// Bytes of A.
    pub fn a_bytes(&self) -> usize {
        self.dtype.a().bytes(self.a_elements())
    }

    /// Bytes of B.
    pub fn b_bytes(&self) -> usize {
        self.dtype.b().bytes(self.b.k * self.b.n)
    }

    /// Bytes of C.
    pub fn c_bytes(&self) -> usize {
        self.dtype.c().bytes(self.rows * self.b.n)
    }

    /// C = A·B from device memory to device memory, panel of columns by panel of columns.
    ///
    /// # Errors
    /// -4 when there is no memory for scratch.
    ///
    /// # Safety
    /// `a`, `b` and `c` hold the product's operands; no one else writes A and B or touches C meanwhile.
    pub unsafe fn compute(&self, a: &View, b: &BoundB, c: &View, scratch: &mut Scratch) -> Result<()> {
        let isa = Isa::best();
        let (bn, bk) = self.b.block;
        let tile = self.rows * bn;
        // SAFETY: A is readable by contract.
        unsafe { self.read_a(isa, a.device(), scratch)? };
        for n_block in 0..self.b.n / bn {
            self.find_segments(isa, b, n_block, scratch)?;
            let panel = Panel { segments: &scratch.segments, columns: bn, block_k: bk };
            // SAFETY: the segments of this panel lie within B or are its copy; C holds its columns, by contract.
            unsafe {
                if self.dtype.a() == Element::F16 {
                    let out = take(&mut scratch.tile_float, tile)?;
                    kernels::f16_panel(isa, &scratch.a_float, self.rows, &panel, out);
                    if self.dtype.c() == Element::F16 {
                        let half = take(&mut scratch.tile_half, tile)?;
                        half.convert_from_f32_slice(out);
                        self.write_c(half, n_block * bn, c.device());
                    } else {
                        self.write_c(out, n_block * bn, c.device());
                    }
                    continue;
                }
                let out = take(&mut scratch.tile_int, tile)?;
                kernels::i8_panel(isa, &scratch.a_wide, self.rows, &panel, out);
                match self.dtype.c() {
                    Element::I8 => {
                        let narrow = take(&mut scratch.tile_byte, tile)?;
                        // A cast saturates.
                        saturate(out, narrow, |sum| (f64::from(sum) * self.ratio).round_ties_even() as i8);
                        self.write_c(narrow, n_block * bn, c.device());
                    }
                    Element::I16 => {
                        let narrow = take(&mut scratch.tile_short, tile)?;
                        saturate(out, narrow, |sum| sum.clamp(i16::MIN.into(), i16::MAX.into()) as i16);
                        self.write_c(narrow, n_block * bn, c.device());
                    }
                    _ => self.write_c(out, n_block * bn, c.device()),
                }
            }
        }
        Ok(())
    }

    /// A to row-major numbers: `row·K + k` of scratch is element `blocked(M, a, row, k)` of memory.
    ///
    /// # Safety
    /// `a` is readable for A's bytes.
    unsafe fn read_a(&self, isa: Isa, a: *const u8, scratch: &mut Scratch) -> Result<()> {
        let (k, count) = (self.b.k, self.a_elements());
        if self.dtype.a() == Element::F16 {
            let out = take(&mut scratch.a_float, count)?;
            for (at, out) in out.chunks_exact_mut(self.a_block).enumerate() {
                let from = blocked(self.rows, self.a_block, at * self.a_block / k, at * self.a_block % k);
                // SAFETY: a block of A, within its bytes.
                unsafe { kernels::widen_f16(isa, a.add(2 * from), out) };
            }
            return Ok(());
        }
        let block = take(&mut scratch.nibbles, self.a_block)?;
        let out = take(&mut scratch.a_wide, count)?;
        for (at, out) in out.chunks_exact_mut(self.a_block).enumerate() {
            let from = blocked(self.rows, self.a_block, at * self.a_block / k, at * self.a_block % k);
            // SAFETY: a block of A, within its bytes; blocks of i4 begin at whole bytes.
            unsafe {
                if self.dtype.a() == Element::I4 {
                    kernels::unpack_i4(isa, a.add(from / 2), block);
                } else {
                    std::ptr::copy_nonoverlapping(a.add(from).cast::<i8>(), block.as_mut_ptr(), block.len());
                }
            }
            for (out, &value) in out.iter_mut().zip(block.iter()) {
                *out = i16::from(value);
            }
        }
        Ok(())
    }

    /// Where the panel's K segments lie. Those of i4 are unpacked to bytes first, and bytes that meet an f16 A
    /// become halves.
    fn find_segments(&self, isa: Isa, b: &BoundB, n_block: usize, scratch: &mut Scratch) -> Result<()> {
        let (bn, bk) = self.b.block;
        let kind = self.dtype.b();
        scratch.segments.clear();
        let unpacked = if kind == Element::I4 { self.b.k * bn } else { 0 };
        let nibbles = take(&mut scratch.nibbles, unpacked.max(self.a_block))?;
        let widened = if self.dtype.a() == Element::F16 && kind != Element::F16 { self.b.k * bn } else { 0 };
        let halves = take(&mut scratch.halves, widened)?;
        let mut done = 0;
        for index in 0..self.b.segments() {
            let count = self.b.segment_k(index) * bn;
            // SAFETY: the panel's first byte lies within B.
            let mut base = unsafe { b.base().add(kind.bytes(self.b.panel(index, n_block))) };
            if unpacked > 0 {
                let part = &mut nibbles[done..done + count];
                // SAFETY: the panel's bytes lie within B, and a panel begins at a whole byte.
                unsafe { kernels::unpack_i4(isa, base, part) };
                base = part.as_ptr().cast();
            }
            if widened > 0 {
                let part = &mut halves[done..done + count];
                // SAFETY: as many bytes lie there, in B or unpacked just now.
                unsafe { kernels::halve_i8(isa, base.cast(), part) };
                base = part.as_ptr().cast();
            }
            done += count;
            scratch.segments.push(Segment { base, k_blocks: count / bn / bk });
        }
        Ok(())
    }

    /// Stores a row-major tile of sub-block-many columns, the first being column `first` of C.
    ///
    /// # Safety
    /// `c` is writable for C's bytes.
    unsafe fn write_c<T>(&self, tile: &[T], first: usize, c: *mut u8) {
        let columns = self.b.block.0;
        let piece = self.c_block.min(columns);
        let size = std::mem::size_of::<T>();
        let (from_step, to_step) = (columns * size, self.c_block * size);
        for at in (0..columns).step_by(piece) {
            let from = tile[at..].as_ptr().cast::<u8>();
            let to = blocked(self.rows, self.c_block, 0, first + at) * size;
            // SAFETY: a piece does not cross a block of C, so that it is contiguous and within its bytes; the next
            // row's is one row of the tile and one of the block further.
            unsafe {
                let to = c.add(to);
                // Most are of one of these sizes, known to the compiler one copy is one instruction.
                match piece * size {
                    4 => copy_rows(self.rows, from, from_step, to, to_step, 4),
                    8 => copy_rows(self.rows, from, from_step, to, to_step, 8),
                    16 => copy_rows(self.rows, from, from_step, to, to_step, 16),
                    bytes => copy_rows(self.rows, from, from_step, to, to_step, bytes),
                }
            }
        }
    }
}

/// Copies `bytes` bytes for each row, the rows being so many bytes apart.
///
/// # Safety
/// The source is readable and the target writable for every row; they do not overlap.
#[inline(always)]
unsafe fn copy_rows(
    rows: usize,
    from: *const u8,
    from_step: usize,
    to: *mut u8,
    to_step: usize,
    bytes: usize,
) {
    for row in 0..rows {
        // SAFETY: by contract; copied as bytes since a view need not be aligned.
        unsafe { std::ptr::copy_nonoverlapping(from.add(row * from_step), to.add(row * to_step), bytes) };
    }
}
