//! A node of the host's that is the root-mean-square norm of rows, and the factors of its columns after it: by our kernel, which
//! makes several rows at once, if that gives the host's bits.

use ggml_sys::{sys, Ops};

use crate::kernels::norm::{rms_scales, scale_in_place, scale_rows};

/// Rows at a time.
const ROWS: usize = 32;

/// The nodes, whose rows are made of those of another one.
#[derive(Debug)]
pub struct Norm {
    /// Elements of a row, and how many rows there are.
    k: usize,
    rows: usize,
    epsilon: f32,
    /// The rows that are normed, `stride` elements apart.
    source: *const f32,
    stride: usize,
    /// Where those go that are, one after the other.
    out: *mut f32,
    /// A factor for each column, and where the products go.
    factors: Option<(*const f32, *mut f32)>,
}

impl Norm {
    /// The first of `nodes`, if it is one, and the second, if it is the factors of its columns.
    ///
    /// # Safety
    /// All are live nodes with [`super::tile::sources`], or tiles of such.
    pub unsafe fn of(ops: &Ops, nodes: &[*mut sys::ggml_tensor]) -> Option<Self> {
        let [norm, ..] = ops.by_row;
        let [_, times] = ops.by_column;
        // SAFETY: by the contract.
        let node = unsafe { nodes.first()?.as_ref() }.filter(|node| node.op == norm)?;
        // SAFETY: as above.
        let source = unsafe { node.src[0].as_ref() }?;
        let (k, rows) = (node.ne[0] as usize, node.ne[1] as usize);
        // SAFETY: as above.
        let next = nodes.get(1).and_then(|next| unsafe { next.as_ref() });
        let next = next.filter(|next| next.op == times && std::ptr::eq(next.src[0], nodes[0]));
        let factors = next.and_then(|next| {
            // SAFETY: as above.
            let columns = unsafe { next.src[1].as_ref() }?;
            let plain = columns.type_ as u32 == sys::GGML_HOST_TYPE_F32
                && columns.ne == [k as i64, 1, 1, 1]
                && columns.nb[0] == 4
                && is_aligned(columns)
                && is_aligned(next);
            plain.then(|| (columns.data.cast::<f32>().cast_const(), next.data.cast::<f32>()))
        });
        let plain = k > 0 && rows > 0 && source.nb[1] % 4 == 0 && is_aligned(source) && is_aligned(node);
        plain.then(|| Self {
            k,
            rows,
            epsilon: f32::from_bits(node.op_params[0] as u32),
            source: source.data.cast::<f32>(),
            stride: source.nb[1] / 4,
            out: node.data.cast::<f32>(),
            factors,
        })
    }

    /// How many of the nodes it does.
    pub fn nodes(&self) -> usize {
        1 + usize::from(self.factors.is_some())
    }

    /// Makes the rows.
    ///
    /// # Safety
    /// The nodes' data are valid, and nobody else reads or writes what is written; rows of the source lie where those of a result
    /// lie, or nowhere near them.
    pub unsafe fn run(&self) {
        for first in (0..self.rows).step_by(ROWS) {
            let rows = ROWS.min(self.rows - first);
            let mut scales = [0.0; ROWS];
            let scales = &mut scales[..rows];
            // SAFETY: by the contract; the slice ends before anything is written.
            rms_scales(unsafe { self.some(first, rows) }, self.stride, self.k, self.epsilon, scales);
            let last = self.factors.map_or(self.out, |(_, out)| out);
            // The norm by itself, where somebody may look for it.
            if last != self.out {
                // SAFETY: by the contract.
                unsafe { self.put(first, scales, None, self.out) };
            }
            // SAFETY: a factor for each column.
            let factors = self.factors.map(|(of, _)| unsafe { std::slice::from_raw_parts(of, self.k) });
            // SAFETY: by the contract.
            unsafe { self.put(first, scales, factors, last) };
        }
    }

    /// Some rows of the source.
    ///
    /// # Safety
    /// Nobody writes to them while the slice lives.
    unsafe fn some<'a>(&self, first: usize, rows: usize) -> &'a [f32] {
        let len = (rows - 1) * self.stride + self.k;
        // SAFETY: so many elements, by the contract of `run`.
        unsafe { std::slice::from_raw_parts(self.source.add(first * self.stride), len) }
    }

    /// Puts rows from `first` on, times their scales and perhaps factors, into theirs of `out`.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn put(&self, first: usize, scales: &[f32], factors: Option<&[f32]>, out: *mut f32) {
        // SAFETY: by the contract.
        let own = unsafe { std::slice::from_raw_parts_mut(out.add(first * self.k), scales.len() * self.k) };
        if std::ptr::eq(out, self.source) {
            return scale_in_place(own, self.k, scales, factors);
        }
        // SAFETY: by the contract; they are not what is written.
        let rows = unsafe { self.some(first, scales.len()) };
        scale_rows(rows, self.stride, self.k, scales, factors, own);
    }

    /// Has `host` make the rows, and tells whether ours are the same to the bit; `None` if the host failed.
    ///
    /// # Safety
    /// As [`Self::run`].
    pub unsafe fn is_as_the_hosts(&self, host: impl FnOnce() -> bool) -> Option<bool> {
        // SAFETY: by the contract; they may be written over afterwards.
        let before = unsafe { self.some(0, self.rows) }.to_vec();
        let mut own = vec![0.0; self.rows * self.k];
        let own_at = own.as_mut_ptr();
        let ours = Self {
            source: before.as_ptr(),
            out: own_at,
            factors: self.factors.map(|(factors, _)| (factors, own_at)),
            ..*self
        };
        // SAFETY: rows and results of our own.
        unsafe { ours.run() };
        if !host() {
            return None;
        }
        let last = self.factors.map_or(self.out, |(_, out)| out);
        // SAFETY: by the contract; the host is done.
        let theirs = unsafe { std::slice::from_raw_parts(last, own.len()) };
        // What is no number may be any of them.
        let same =
            |(one, other): (&f32, &f32)| one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan();
        Some(own.iter().zip(theirs).all(same))
    }
}

fn is_aligned(tensor: &sys::ggml_tensor) -> bool {
    !tensor.data.is_null() && tensor.data as usize % 4 == 0
}
