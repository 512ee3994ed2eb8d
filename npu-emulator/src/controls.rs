//! C calls that are ours, not the vendor's, so that tests can switch faults and read the modelled clock.

use std::ffi::{c_char, c_int, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::status::Status;
use crate::{clock, faults};

/// Replaces every fault and quirk by those of `text` ([`crate::faults`] has the grammar); null or an empty text ends
/// them all. 0, or -5 with a line for a text that does not parse, which changes nothing.
///
/// # Safety
/// `text` is null or a C string.
#[no_mangle]
pub unsafe extern "C" fn rknpu_emulator_set_faults(text: *const c_char) -> c_int {
    let set = || {
        if text.is_null() {
            return faults::set("");
        }
        // SAFETY: not null, hence a C string by contract.
        match unsafe { CStr::from_ptr(text) }.to_str() {
            Ok(text) => faults::set(text),
            Err(_) => crate::status::refuse(Status::PARAM, format_args!("faults: not UTF-8")),
        }
    };
    match catch_unwind(AssertUnwindSafe(set)) {
        Ok(Ok(())) => 0,
        Ok(Err(Status(code))) => code,
        Err(_) => Status::FAIL.0,
    }
}

/// The modelled ns at which `core` ended its last run, or, for a negative `core`, at which the last call of any kind
/// did. 0 for a core that the chip lacks. Modelled by [`crate::clock`], never measured.
#[no_mangle]
pub extern "C" fn rknpu_emulator_clock_ns(core: c_int) -> u64 {
    catch_unwind(|| clock::now_ns(usize::try_from(core).ok())).ok().flatten().unwrap_or(0)
}
