//! Asking the library for what this project does not use, to learn whether it is there.

use crate::context::dimension;
use crate::error::Error;
use crate::library::{check, Library};
use crate::sys;

impl Library {
    /// Creates a context of the vendor's matmul type `code`, all operands row-major, and destroys it again.
    ///
    /// # Errors
    /// The vendor's code when it refuses; [`Error::Range`] for sizes past the ABI's 32 bits.
    pub fn try_type(&self, code: i32, rows: usize, k: usize, n: usize) -> Result<(), Error> {
        // SAFETY: all-zero is valid for these plain structs, and the ABI asks for zeroed reserved fields.
        let (mut info, mut io): (sys::rknn_matmul_info, Box<sys::rknn_matmul_io_attr>) =
            unsafe { (std::mem::zeroed(), Box::new(std::mem::zeroed())) };
        info.M = dimension("M", rows)?;
        info.K = dimension("K", k)?;
        info.N = dimension("N", n)?;
        info.type_ = code;
        let mut handle: sys::rknn_context = 0;
        let create = self.fns.create.expect("resolved at open");
        // SAFETY: three valid pointers to structs of the ABI's layout, written during the call only.
        let result = unsafe { create(&mut handle, &mut info, &mut *io) };
        check("rknn_matmul_create", result, || format!("M={rows}, K={k}, N={n}, type={code}"))?;
        let destroy = self.fns.destroy.expect("resolved at open");
        // SAFETY: the handle was just made and nothing uses it after this.
        let result = unsafe { destroy(handle) };
        check("rknn_matmul_destroy", result, || format!("type={code}"))
    }
}
