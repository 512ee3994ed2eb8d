//! The way through A, B and C: written once over a [`Step`], the instructions of one machine and one type.
//!
//! Everything is bytes here. 16 bytes along K, a piece, are what one step takes of each row and each column: every
//! block of every chip is whole pieces. Up to four rows are done together. For each block of columns and each chunk of
//! [`CHUNK`] pieces, the rows' pieces are first widened into a buffer that stays in the level-1 cache, 32 bytes each,
//! which costs about as much as a column or two; then tiles of rows × columns stay in registers over the chunk.

use super::Dot;

/// Bytes along K that a step takes.
pub const PIECE: usize = 16;
/// Pieces that are added up in registers. A chunk's bytes of B are read a few columns at a time, so they are not to be
/// many. The order of f32 sums and the room of AVX2's i4 sums depend on it.
pub const CHUNK: usize = 32;
/// How far ahead of a tile's bytes B is asked for, from its first byte to its last: tiles read it in strides, which the
/// CPU's own guesses do not follow well. About a chunk, so that what waits in the level-1 cache stays that small. It
/// makes one row from memory a third faster, 12 GB/s of i8 instead of 9 where a plain read does 15 (Zen 3).
const AHEAD: usize = 16 * 1024;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Rows that are done together.
const ROWS: usize = 4;
/// Columns of the largest block.
const COLUMNS_MAX: usize = 64;
/// Columns of the widest tile: blocks are whole ones.
const COLUMNS_STEP: usize = 8;
/// Bytes of a widened piece.
const WIDE: usize = 32;

/// A [`Dot`] in bytes, of blocks that there are steps for.
#[derive(Debug, Clone, Copy)]
pub struct Tiling {
    m: usize,
    row_start: usize,
    rows: usize,
    /// Pieces of K.
    pieces: usize,
    /// A's runs are half a piece long.
    halved: bool,
    block_n: usize,
    /// Bytes of a column in a block of B.
    pub run: usize,
    c_block: usize,
}

impl Tiling {
    /// Of elements of `bits` bits, of which a column's run in B is one of `runs` bytes: whole pieces. `None` for blocks
    /// that there are no steps for.
    pub fn new(dot: &Dot, bits: usize, runs: &[usize]) -> Option<Self> {
        let (a_run, run) = (dot.a_block * bits / 8, dot.block_k * bits / 8);
        let fits = [PIECE / 2, PIECE].contains(&a_run)
            && runs.contains(&run)
            && dot.block_n % COLUMNS_STEP == 0
            && dot.block_n <= COLUMNS_MAX
            && dot.block_n % dot.c_block == 0;
        fits.then_some(Self {
            m: dot.m,
            row_start: dot.row_start,
            rows: dot.rows,
            pieces: dot.k * bits / 8 / PIECE,
            halved: a_run < PIECE,
            block_n: dot.block_n,
            run,
            c_block: dot.c_block,
        })
    }

    /// A piece of a row of A.
    #[inline(always)]
    fn piece(&self, a: &[u8], piece: usize, row: usize) -> [u8; PIECE] {
        let mut bytes = [0; PIECE];
        if self.halved {
            for (half, bytes) in bytes.chunks_exact_mut(PIECE / 2).enumerate() {
                let at = (piece * 2 + half) * self.m + row;
                bytes.copy_from_slice(&a[at * (PIECE / 2)..][..PIECE / 2]);
            }
        } else {
            bytes.copy_from_slice(&a[(piece * self.m + row) * PIECE..][..PIECE]);
        }
        bytes
    }
}

/// The instructions for a piece of one type.
///
/// # Safety
/// All functions ask for the machine that the implementation names.
pub trait Step {
    /// What is summed up.
    type Sum: Copy + Default;
    /// Running sums of a row and a column, side by side.
    type Running: Copy;
    /// A widened piece of A.
    type A: Copy;
    /// A piece of B, as it is multiplied.
    type B: Copy;

    /// Sums of nothing.
    unsafe fn zero() -> Self::Running;

    /// Widens a piece of A to 32 bytes at `to`. Adds to `start`, what a row's sums begin with, if the piece asks for it.
    ///
    /// `to` is writable for 32 bytes and aligned to as many.
    unsafe fn widen(piece: [u8; PIECE], start: Self::Running, to: *mut u8) -> Self::Running;

    /// Takes up what [`Step::widen`] wrote at `from`.
    unsafe fn a(from: *const u8) -> Self::A;

    /// Takes up the 16 bytes at `from`.
    unsafe fn b(from: *const u8) -> Self::B;

    /// Adds the products.
    unsafe fn add(running: Self::Running, a: Self::A, b: Self::B) -> Self::Running;

    /// The whole sums of two columns.
    unsafe fn total(two: [Self::Running; 2]) -> [Self::Sum; 2];

    /// A chunk's sum to those before it.
    fn join(before: Self::Sum, sum: Self::Sum) -> Self::Sum;
}

/// Widened pieces of a chunk: (pieces, rows, 32 bytes).
#[repr(align(32))]
struct Wide([u8; CHUNK * ROWS * WIDE]);

/// Computes `tiling` with steps of `S`; B's columns are `RUN` bytes a block. A sum becomes an element of C by `finish`.
/// Three or four rows are done with `MANY` columns together: as many as the machine has registers for.
///
/// # Safety
/// The machine is the one that `S` asks for. `tiling` was made for a [`Dot`] that the lengths of `a`, `b` and `c` were
/// checked against, and for `RUN`.
#[inline(always)]
pub unsafe fn run<S: Step, const RUN: usize, const MANY: usize, T>(
    a: &[u8],
    b: &[u8],
    tiling: &Tiling,
    c: &mut [T],
    finish: impl Fn(S::Sum) -> T,
) {
    let mut wide = Wide([0; CHUNK * ROWS * WIDE]);
    let end = tiling.row_start + tiling.rows;
    for first in (tiling.row_start..end).step_by(ROWS) {
        // SAFETY: as the caller says; the rows are within those of the tiling.
        unsafe {
            match end - first {
                1 => rows::<S, RUN, 1, 8, T>(a, b, tiling, first, &mut wide, c, &finish),
                2 => rows::<S, RUN, 2, 4, T>(a, b, tiling, first, &mut wide, c, &finish),
                3 => rows::<S, RUN, 3, MANY, T>(a, b, tiling, first, &mut wide, c, &finish),
                _ => rows::<S, RUN, 4, MANY, T>(a, b, tiling, first, &mut wide, c, &finish),
            }
        }
    }
}

/// `R` rows from `first` on, in tiles of `C` columns.
///
/// # Safety
/// As of [`run`]; the rows are within those of the tiling, and `C` is even and divides [`COLUMNS_STEP`].
#[inline(always)]
unsafe fn rows<S: Step, const RUN: usize, const R: usize, const C: usize, T>(
    a: &[u8],
    b: &[u8],
    tiling: &Tiling,
    first: usize,
    wide: &mut Wide,
    c: &mut [T],
    finish: &impl Fn(S::Sum) -> T,
) {
    let Tiling { m, pieces, block_n, c_block, .. } = *tiling;
    let groups = b.chunks_exact(block_n * pieces * PIECE);
    for (group, c) in groups.zip(c.chunks_exact_mut(block_n * m)) {
        let mut sums = [[S::Sum::default(); COLUMNS_MAX]; R];
        for chunk in (0..pieces).step_by(CHUNK) {
            let len = CHUNK.min(pieces - chunk);
            // SAFETY: the machine is the caller's word. A chunk of `R` rows fits `wide`, and is aligned as it is. K is
            // whole runs and a chunk is as well, so that each tile's bytes lie within the group: see `tile`.
            unsafe {
                let mut start = [S::zero(); R];
                let mut to = wide.0.as_mut_ptr();
                for piece in chunk..chunk + len {
                    for (row, start) in start.iter_mut().enumerate() {
                        *start = S::widen(tiling.piece(a, piece, first + row), *start, to);
                        to = to.wrapping_add(WIDE);
                    }
                }
                let blocks = group.as_ptr().add(chunk * PIECE * block_n);
                for column in (0..block_n).step_by(C) {
                    let b = blocks.add(column * RUN);
                    let ahead = blocks.wrapping_add(AHEAD + column * len * PIECE);
                    let running =
                        tile::<S, RUN, R, C>(&wide.0, start, b, ahead, block_n * RUN, len * PIECE / RUN);
                    for (sums, running) in sums.iter_mut().zip(running) {
                        for j in (0..C).step_by(2) {
                            let two = S::total([running[j], running[j + 1]]);
                            for (sum, more) in sums[column + j..][..2].iter_mut().zip(two) {
                                *sum = S::join(*sum, more);
                            }
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (c, sums) in c.chunks_exact_mut(m * c_block).zip(sums.chunks_exact(c_block)) {
                let c = &mut c[(first + row) * c_block..][..c_block];
                c.iter_mut().zip(sums).for_each(|(c, sum)| *c = finish(*sum));
            }
        }
    }
}

/// The sums of `R` rows and `C` columns over `blocks` blocks of B, of which the first begins, for the first column, at
/// `b` and the next one `stride` bytes later. As many bytes from `ahead` on are asked for meanwhile.
///
/// # Safety
/// The machine is the one that `S` asks for. The `C` columns, `RUN` bytes each, are readable in each of the blocks, and
/// `wide` has `R` rows' pieces of as many bytes.
#[inline(always)]
unsafe fn tile<S: Step, const RUN: usize, const R: usize, const C: usize>(
    wide: &[u8],
    start: [S::Running; R],
    mut b: *const u8,
    mut ahead: *const u8,
    stride: usize,
    blocks: usize,
) -> [[S::Running; C]; R] {
    let mut running = start.map(|start| [start; C]);
    let mut a = wide.as_ptr();
    for _ in 0..blocks {
        for line in (0..C * RUN).step_by(LINE) {
            prefetch(ahead.wrapping_add(line));
        }
        ahead = ahead.wrapping_add(C * RUN);
        for inner in (0..RUN).step_by(PIECE) {
            // SAFETY: of the block's `C` · `RUN` bytes, and of a piece of each row, says the caller.
            unsafe {
                let mut pieces = [S::a(a); R];
                for (row, piece) in pieces.iter_mut().enumerate() {
                    *piece = S::a(a.wrapping_add(row * WIDE));
                }
                for j in 0..C {
                    let column = S::b(b.wrapping_add(j * RUN + inner));
                    for (running, piece) in running.iter_mut().zip(pieces) {
                        running[j] = S::add(running[j], piece, column);
                    }
                }
            }
            a = a.wrapping_add(R * WIDE);
        }
        b = b.wrapping_add(stride);
    }
    running
}

/// Asks for a cache line, wherever it lies.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(line: *const u8) {
    use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};

    // SAFETY: SSE is part of the target; a line that is not there is no fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn prefetch(line: *const u8) {
    // SAFETY: no register is changed; a line that is not there is no fault.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{line}]",
            line = in(reg) line,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// No vectors here, and so no tiles.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn prefetch(_: *const u8) {}
