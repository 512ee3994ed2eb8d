//! A context of several M: one B, one core, and the M of each run chosen among those named at creation.

use crate::context::{dimension, Context, MatmulSpec, Operand};
use crate::error::Error;
use crate::library::{check, Library};
use crate::sys;

/// A context whose M may be switched; destroyed on drop.
pub struct DynamicContext {
    context: Context,
    shapes: Vec<(usize, sys::rknn_matmul_io_attr)>,
}

impl DynamicContext {
    /// Creates a context for `spec` with each M of `rows`; it starts with the first. `spec.rows` is not used.
    ///
    /// # Errors
    /// [`Error::Call`] with the vendor's code, or with "failed" when the library lacks the call;
    /// [`Error::Range`] for no rows at all and for sizes past the ABI's 32 bits.
    pub fn create(library: &Library, spec: MatmulSpec, rows: &[usize]) -> Result<Self, Error> {
        let first = *rows.first().ok_or_else(|| Error::Range {
            what: "the number of shapes",
            value: 0,
            expected: "1 or more".to_owned(),
        })?;
        let spec = MatmulSpec { rows: first, ..spec };
        let mut info = spec.info()?;
        let (k, n) = (info.K, info.N);
        let mut shapes = rows
            .iter()
            .map(|rows| Ok(sys::rknn_matmul_shape { M: dimension("M", *rows)?, K: k, N: n }))
            .collect::<Result<Vec<_>, Error>>()?;
        let count = dimension("the number of shapes", shapes.len())?;
        // SAFETY: all-zero is valid for this plain struct, which the call fills.
        let empty: sys::rknn_matmul_io_attr = unsafe { std::mem::zeroed() };
        let mut attrs = vec![empty; shapes.len()];
        let call = "rknn_matmul_create_dynamic_shape";
        let Some(create) = library.fns.create_dynamic_shape else {
            return Err(missing(call));
        };
        let mut handle: sys::rknn_context = 0;
        // SAFETY: valid pointers to structs of the ABI's layout, `count` of shapes and of attributes.
        let code = unsafe { create(&mut handle, &mut info, count, shapes.as_mut_ptr(), attrs.as_mut_ptr()) };
        check(call, code, || format!("{spec}, M of {rows:?}"))?;
        let context = Context::from_parts(library, handle, Box::new(attrs[0]), spec);
        Ok(Self { context, shapes: rows.iter().copied().zip(attrs).collect() })
    }

    /// Goes on with M = `rows`. A and C must be bound again, B stays.
    ///
    /// # Errors
    /// [`Error::Range`] for an M that was not named at creation, or the vendor's code.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), Error> {
        let found = self.shapes.iter().find(|(named, _)| *named == rows).map(|(_, io)| *io);
        let io = found.ok_or_else(|| Error::Range {
            what: "M",
            value: rows as u64,
            expected: format!("one of {:?}", self.shapes.iter().map(|(rows, _)| rows).collect::<Vec<_>>()),
        })?;
        let call = "rknn_matmul_set_dynamic_shape";
        let Some(set) = self.context.library().fns.set_dynamic_shape else {
            return Err(missing(call));
        };
        let spec = *self.context.spec();
        let mut shape = sys::rknn_matmul_shape {
            M: dimension("M", rows)?,
            K: dimension("K", spec.k)?,
            N: dimension("N", spec.n)?,
        };
        // SAFETY: the handle is live and the shape is read during the call only.
        let code = unsafe { set(self.context.handle(), &mut shape) };
        check(call, code, || format!("M={rows} of {spec}"))?;
        self.context.reshape(rows, io);
        Ok(())
    }

    /// Bytes that `operand` must have for the largest M: what libraries want to be bound, whatever the present M.
    pub fn largest_bytes(&self, operand: Operand) -> usize {
        let bytes = self.shapes.iter().map(|(_, io)| match operand {
            Operand::A => io.A.size,
            Operand::B => io.B.size,
            Operand::C => io.C.size,
        });
        bytes.max().unwrap_or(0) as usize
    }

    /// The context with its present M, to bind and to run.
    pub fn context(&mut self) -> &mut Context {
        &mut self.context
    }
}

fn missing(call: &'static str) -> Error {
    Error::Call { call, args: "the library lacks it".to_owned(), code: sys::RKNN_ABI_ERR_FAIL }
}
