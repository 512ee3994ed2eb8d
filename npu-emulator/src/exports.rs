//! The vendor's C symbols. Each checks its pointers and handles, never unwinds, and returns the vendor's code.
//!
//! The functions are also Rust functions, so that tests can misuse them without loading the shared library.
//!
//! # Safety
//! The same holds for all of them: a pointer is null (refused), or points to a struct of the ABI's type that
//! nobody else uses during the call. Memory handles and context handles may be anything: they are looked up.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{null, null_mut};

use rknn_sys::sys::{self, rknn_context, rknn_matmul_info, rknn_matmul_io_attr, rknn_tensor_mem};

use crate::chip::Chip;
use crate::layout::{b_to_native, Layout};
use crate::memory::View;
use crate::status::{refuse, Result, Status};
use crate::{context, memory, strict};

/// Runs `body`; a panic, which is a bug of the emulator, becomes -1 instead of unwinding into C.
fn guard(call: &'static str, body: impl FnOnce() -> Result<()>) -> c_int {
    let body = || {
        crate::faults::before(call)?;
        body()
    };
    match strict::within(call, || catch_unwind(AssertUnwindSafe(body))) {
        Ok(Ok(())) => {
            crate::clock::called(call);
            0
        }
        Ok(Err(Status(code))) => code,
        Err(_) => {
            crate::log::line(format_args!("{call}: internal error"));
            Status::FAIL.0
        }
    }
}

/// As [`guard`], for the calls that return a memory.
fn guard_memory(
    call: &'static str,
    body: impl FnOnce() -> Result<*mut rknn_tensor_mem>,
) -> *mut rknn_tensor_mem {
    let mut memory = null_mut();
    guard(call, || {
        memory = body()?;
        Ok(())
    });
    memory
}

/// A reference to what the caller passed, or -5.
///
/// # Safety
/// `pointer` is null or valid for `'a`, as the module says.
unsafe fn required<'a, T>(call: &str, pointer: *mut T) -> Result<&'a mut T> {
    // SAFETY: null is told apart here; otherwise valid by contract.
    match unsafe { pointer.as_mut() } {
        Some(value) => Ok(value),
        None => refuse(Status::PARAM, format_args!("{call}: a pointer is null")),
    }
}

/// The live memory of a call, whose context must be live too unless the memory was made without one.
fn live_memory(ctx: rknn_context, mem: *const rknn_tensor_mem) -> Result<View> {
    let view = memory::view(mem)?;
    if !(view.contextless && ctx == 0) {
        context::find(ctx)?;
    }
    Ok(view)
}

/// Makes a context; `ctx` gets its handle and `io_attr` what to bind.
/// Codes: -3 no chip, -5 null, or a shape, type, layout, quantisation or domain that the chip refuses, -4 no address
/// space left for it in the domain.
///
/// # Safety
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_create(
    ctx: *mut rknn_context,
    info: *mut rknn_matmul_info,
    io_attr: *mut rknn_matmul_io_attr,
) -> c_int {
    let call = "rknn_matmul_create";
    guard(call, || {
        // SAFETY: by this function's contract.
        let (ctx, info, io_attr) =
            unsafe { (required(call, ctx)?, required(call, info)?, required(call, io_attr)?) };
        (*ctx, *io_attr) = context::create(info)?;
        Ok(())
    })
}

/// Makes a context for several M; `info`'s own M, K and N do not count, and the first shape is current until
/// another is set (both assumed: the vendor's manual does not say). `io_attrs` gets what to bind for each.
/// Codes: as `rknn_matmul_create`, and -5 for no shape or one that differs from the first in more than M.
///
/// # Safety
/// See the module; `shapes` and `io_attrs` hold `shape_num` structs each.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_create_dynamic_shape(
    ctx: *mut rknn_context,
    info: *mut rknn_matmul_info,
    shape_num: c_int,
    shapes: *mut sys::rknn_matmul_shape,
    io_attrs: *mut rknn_matmul_io_attr,
) -> c_int {
    let call = "rknn_matmul_create_dynamic_shape";
    guard(call, || {
        let Some(count) = usize::try_from(shape_num).ok().filter(|count| *count > 0) else {
            return refuse(Status::PARAM, format_args!("{call}: {shape_num} shapes"));
        };
        // SAFETY: by this function's contract.
        let (ctx, info, shapes, io_attrs) = unsafe {
            let (first, attrs) = (required(call, shapes)?, required(call, io_attrs)?);
            (
                required(call, ctx)?,
                required(call, info)?,
                std::slice::from_raw_parts(first, count),
                std::slice::from_raw_parts_mut(attrs, count),
            )
        };
        let (handle, attrs) = context::create_dynamic(info, shapes)?;
        *ctx = handle;
        io_attrs.copy_from_slice(&attrs);
        Ok(())
    })
}

/// Binds a memory to the operand that `attr` names. Codes: -7 context, -5 memory, name, size or domain, -4 address
/// space.
///
/// # Safety
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_set_io_mem(
    ctx: rknn_context,
    mem: *mut rknn_tensor_mem,
    attr: *mut sys::rknn_matmul_tensor_attr,
) -> c_int {
    let call = "rknn_matmul_set_io_mem";
    guard(call, || {
        let context = context::find(ctx)?;
        let view = memory::view(mem)?;
        // SAFETY: by this function's contract.
        let attr = unsafe { required(call, attr)? };
        let name: String =
            attr.name.iter().take(8).take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
        context.bind(&name, view)
    })
}

/// Pins a context to one core: 0 auto, 1, 2, 4. Codes: -7 context, -5 for another mask.
///
/// # Safety
/// Takes no pointer.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_set_core_mask(ctx: rknn_context, core_mask: i32) -> c_int {
    guard("rknn_matmul_set_core_mask", || context::find(ctx)?.set_core_mask(core_mask))
}

/// Sets scale and zero point of the operand that `params` names ("A", "B", "C"): one scale above 0 and one zero point
/// of 0, since no other is known to work on real libraries. Only an i8 C (type 3) depends on them: it is
/// saturate(round(sum · sA·sB/sC)), ties to even. Every other C holds the bare sums.
/// Codes: -7 context, -5 null or other parameters than these, -1 the context is in use by another thread.
///
/// # Safety
/// See the module; `scale` and `zp` are null or valid for their lengths.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_set_quant_params(
    ctx: rknn_context,
    params: *mut sys::rknn_quant_params,
) -> c_int {
    let call = "rknn_matmul_set_quant_params";
    guard(call, || {
        let context = context::find(ctx)?;
        // SAFETY: by this function's contract.
        unsafe { context.set_quant_params(required(call, params)?) }
    })
}

/// Points `params` at scale and zero point of the operand that it names, 1 and 0 until they are set; `scale`, which
/// may be null, gets the scale. The context owns what is pointed at, until it is destroyed or the next set of that
/// operand. Codes: as `rknn_matmul_set_quant_params`.
///
/// # Safety
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_get_quant_params(
    ctx: rknn_context,
    params: *mut sys::rknn_quant_params,
    scale: *mut f32,
) -> c_int {
    let call = "rknn_matmul_get_quant_params";
    guard(call, || {
        let context = context::find(ctx)?;
        // SAFETY: by this function's contract.
        let found = context.quant_params(unsafe { required(call, params)? })?;
        if !scale.is_null() {
            // SAFETY: not null, hence valid by contract.
            unsafe { scale.write(found) };
        }
        Ok(())
    })
}

/// Makes one of the context's shapes that of the next runs. Codes: -7 context, -5 null or a shape that it was not
/// made for, -1 the context is in use by another thread.
///
/// # Safety
/// See the module.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_set_dynamic_shape(
    ctx: rknn_context,
    shape: *mut sys::rknn_matmul_shape,
) -> c_int {
    let call = "rknn_matmul_set_dynamic_shape";
    guard(call, || {
        let context = context::find(ctx)?;
        // SAFETY: by this function's contract.
        context.set_shape(unsafe { required(call, shape)? })
    })
}

/// Computes C on the device side and returns when it is there.
/// Codes: -7 context, -8 A or B not bound or destroyed since, -9 C likewise, -1 the context is in use by another
/// thread.
///
/// # Safety
/// Takes no pointer.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_run(ctx: rknn_context) -> c_int {
    guard("rknn_matmul_run", || context::find(ctx)?.run())
}

/// Frees a context. Code: -7 when there is none of that handle.
///
/// # Safety
/// Takes no pointer.
#[no_mangle]
pub unsafe extern "C" fn rknn_matmul_destroy(ctx: rknn_context) -> c_int {
    guard("rknn_matmul_destroy", || context::destroy(ctx))
}

/// Allocates `size` bytes of cached memory; null, with a line, when it cannot.
///
/// # Safety
/// Takes no pointer.
#[no_mangle]
pub unsafe extern "C" fn rknn_create_mem(ctx: rknn_context, size: u32) -> *mut rknn_tensor_mem {
    guard_memory("rknn_create_mem", || {
        let domain = context::find(ctx)?.domain();
        Ok(memory::settle(memory::create(size.into(), sys::RKNN_ABI_MEM_CACHEABLE.into()), domain))
    })
}

/// Allocates `size` bytes by flags: cached 1, not cached 2 (both sides are one), SRAM 4 (ignored), without a
/// context 0x20000 (`ctx` may be 0). Null, with a line, when it cannot.
///
/// # Safety
/// Takes no pointer.
#[no_mangle]
pub unsafe extern "C" fn rknn_create_mem2(ctx: rknn_context, size: u64, flags: u64) -> *mut rknn_tensor_mem {
    guard_memory("rknn_create_mem2", || {
        if flags & u64::from(sys::RKNN_ABI_MEM_NO_CONTEXT) != 0 {
            return Ok(memory::create(size, flags));
        }
        let domain = context::find(ctx)?.domain();
        Ok(memory::settle(memory::create(size, flags), domain))
    })
}

/// A view of `size` bytes at `offset` of the allocation behind `fd`, which the caller maps, whole, at `virt_addr`.
/// It belongs to the domain of `ctx`, whatever that of the allocation: so one file can serve several domains.
/// Null, with a line, for a foreign descriptor or a range out of bounds.
///
/// # Safety
/// `virt_addr` is handed back and not read.
#[no_mangle]
pub unsafe extern "C" fn rknn_create_mem_from_fd(
    ctx: rknn_context,
    fd: i32,
    virt_addr: *mut c_void,
    size: u32,
    offset: i32,
) -> *mut rknn_tensor_mem {
    guard_memory("rknn_create_mem_from_fd", || {
        let domain = context::find(ctx)?.domain();
        Ok(memory::settle(memory::create_from_fd(fd, virt_addr, size, offset), domain))
    })
}

/// Frees a memory. Codes: -5 memory, -7 context. Contexts that have it bound refuse to run until they get another.
///
/// # Safety
/// `mem` may be anything; the struct is invalid after success.
#[no_mangle]
pub unsafe extern "C" fn rknn_destroy_mem(ctx: rknn_context, mem: *mut rknn_tensor_mem) -> c_int {
    guard("rknn_destroy_mem", || {
        live_memory(ctx, mem)?;
        memory::destroy(mem)
    })
}

/// Copies a memory's bytes to the device (1), from it (2). Codes: -5 memory or mode, -7 context.
///
/// # Safety
/// `mem` may be anything; nobody else uses its bytes during the call.
#[no_mangle]
pub unsafe extern "C" fn rknn_mem_sync(ctx: rknn_context, mem: *mut rknn_tensor_mem, mode: i32) -> c_int {
    guard("rknn_mem_sync", || memory::sync(&live_memory(ctx, mem)?, mode))
}

/// Answers command 5 (SDK version). Codes: -7 context, -5 another command, null or too small a struct.
///
/// # Safety
/// `info` is null or valid for `size` bytes.
#[no_mangle]
pub unsafe extern "C" fn rknn_query(ctx: rknn_context, cmd: i32, info: *mut c_void, size: u32) -> c_int {
    let call = "rknn_query";
    guard(call, || {
        context::find(ctx)?;
        let enough = size as usize >= std::mem::size_of::<sys::rknn_sdk_version>();
        if cmd != sys::RKNN_ABI_QUERY_SDK_VERSION as i32 || !enough || info.is_null() {
            return refuse(
                Status::PARAM,
                format_args!("{call}: command {cmd} with {size} bytes is not emulated"),
            );
        }
        let mut version = sys::rknn_sdk_version { api_version: [0; 256], drv_version: [0; 256] };
        let fill = |to: &mut [c_char; 256], text: &CStr| {
            to.iter_mut().zip(text.to_bytes()).for_each(|(to, byte)| *to = *byte as c_char);
        };
        fill(&mut version.api_version, c"2.3.2 (emulated)");
        fill(&mut version.drv_version, c"0.9.8 (emulated)");
        // SAFETY: not null, and valid for the struct's size by contract; perhaps not aligned.
        unsafe { info.cast::<sys::rknn_sdk_version>().write_unaligned(version) };
        Ok(())
    })
}

/// Rewrites a row-major K×N B to native layout (TP_NORM input, N×K, when `info` says so). Four-bit input comes
/// one value a byte; the output is packed. Codes: -3 no chip, -5 null or what a create would refuse.
///
/// # Safety
/// See the module; `b_in` and `b_out` hold K·N elements and do not overlap.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn rknn_B_normal_layout_to_native_layout(
    b_in: *mut c_void,
    b_out: *mut c_void,
    K: i32,
    N: i32,
    info: *mut rknn_matmul_info,
) -> c_int {
    let call = "rknn_B_normal_layout_to_native_layout";
    guard(call, || {
        let Some(chip) = Chip::chosen() else {
            return refuse(Status::NO_DEVICE, format_args!("{call}: no chip"));
        };
        if b_in.is_null() || b_out.is_null() {
            return refuse(Status::PARAM, format_args!("{call}: a pointer is null"));
        }
        // SAFETY: by this function's contract.
        let info = unsafe { required(call, info)? };
        let (row, shape) = context::checked_row(chip, info.type_, K, N)?;
        let from = match Layout::from_code(info.B_layout) {
            Some(Layout::TpNorm) => Layout::TpNorm,
            _ => Layout::Norm,
        };
        // SAFETY: K·N elements each way, by this function's contract.
        unsafe {
            let out =
                std::slice::from_raw_parts_mut(b_out.cast::<u8>(), row.dtype.b().bytes(shape.k * shape.n));
            b_to_native(row.dtype.b(), &shape, from, false, b_in.cast(), out);
        }
        Ok(())
    })
}

/// Ours, not the vendor's: the emulated chip ("rk3588") as a static string, null when its name was unknown.
#[no_mangle]
pub extern "C" fn rknpu_emulator_soc() -> *const c_char {
    let name = catch_unwind(|| Chip::chosen().map(|chip| chip.name)).ok().flatten();
    name.map_or(null(), CStr::as_ptr)
}
