//! Second copies of weights in the layout that the host's own CPU kernels like best, as llama.cpp itself would place
//! them: in one of the CPU device's extra buffer types (CPU_REPACK and its like). Where none of them takes a weight, the
//! kernels read the original.

use ggml_sys::{sys, Host};

use super::attention;
use super::registry::{state, State};
use crate::engine::Activations;
use crate::host::host_copy::{HostCopy, HostCosts, HostKernels};
use crate::log;
use crate::weights::Source;

/// The kernels of the host that loaded us.
pub struct Kernels;

/// A tensor that the host's CPU backend can multiply by.
struct Copy {
    tensor: Box<sys::ggml_tensor>,
    /// The buffer that the tensor lies in; null where it is the original.
    buffer: sys::ggml_backend_buffer_t,
    bytes: usize,
}

// SAFETY: the tensor is only read once it is made, and its bytes stay until the copy is dropped.
unsafe impl Send for Copy {}
// SAFETY: as above.
unsafe impl Sync for Copy {}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some(state) = state().filter(|_| !self.buffer.is_null()) {
            // SAFETY: made by the host for this copy, freed once.
            unsafe { (state.host.fns.buffer_free.get())(self.buffer) };
        }
    }
}

impl HostKernels for Kernels {
    fn copy(&self, weight: &Source) -> Option<Box<dyn HostCopy>> {
        let state = state()?;
        let row_bytes = weight.reader.row_bytes(weight.k)?;
        // The host's layouts are of whole tensors, rows one after the other.
        if weight.row_stride != row_bytes || weight.data.len() != row_bytes * weight.n {
            return None;
        }
        let mut tensor = tensor(weight, row_bytes)?;
        // SAFETY: the tensor is a matrix of the weight's own shape, and the types are the CPU device's own.
        let buffer = unsafe { repack(state, weight, &mut tensor) };
        let buffer = buffer.unwrap_or_else(|| {
            tensor.data = weight.data.as_ptr().cast_mut().cast();
            std::ptr::null_mut()
        });
        // Layouts may pad; what a product reads is about what the original has.
        Some(Box::new(Copy { tensor, buffer, bytes: weight.data.len() }))
    }

    fn costs(&self, threads: usize) -> Option<HostCosts> {
        let state = state()?;
        let mut cpu = state.cpu.lock();
        cpu.set_threads(threads);
        attention::costs(&state.host, &mut cpu)
    }
}

impl HostCopy for Copy {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_original(&self) -> bool {
        self.buffer.is_null()
    }

    fn multiply(&self, activations: &Activations, out: &mut [f32]) -> bool {
        let Some(state) = state() else { return false };
        // SAFETY: the tensor is complete, and outlives the call.
        unsafe { state.cpu.lock().multiply(&state.host, &self.tensor, activations, out) }
    }
}

/// The weight as a tensor that lies nowhere yet.
fn tensor(weight: &Source, row_bytes: usize) -> Option<Box<sys::ggml_tensor>> {
    let (k, n) = (i64::try_from(weight.k).ok()?, i64::try_from(weight.n).ok()?);
    let all = weight.data.len();
    let mut tensor = Box::new(empty());
    tensor.type_ = weight.reader.ggml_type();
    tensor.ne = [k, n, 1, 1];
    tensor.nb = [weight.reader.block_bytes(), row_bytes, all, all];
    Some(tensor)
}

/// A tensor of zeros: no op, no place, no sources.
pub fn empty() -> sys::ggml_tensor {
    // SAFETY: numbers and pointers, which may all be zero.
    unsafe { std::mem::zeroed() }
}

/// Puts the weight into the first extra buffer type of the CPU that takes it; its buffer, `None` where there is none,
/// with the tensor as it was.
///
/// # Safety
/// `tensor` is a matrix in no buffer, whose bytes are `weight.data`.
unsafe fn repack(
    state: &State,
    weight: &Source,
    tensor: &mut sys::ggml_tensor,
) -> Option<sys::ggml_backend_buffer_t> {
    let host = &state.host;
    let device = state.cpu.lock().device(host)?;
    // SAFETY: a live device; the function found has the type that the host's header gives for this name, and gives a
    // list that ends with null and lives as long as the host, or null.
    let mut types = unsafe {
        let reg = (host.fns.dev_reg.get())(device);
        let found = (host.fns.reg_proc.get())(reg, c"ggml_backend_dev_get_extra_bufts".as_ptr());
        let extra: sys::ggml_backend_dev_get_extra_bufts_fn = std::mem::transmute(found);
        extra?(device)
    };
    if types.is_null() {
        return None;
    }
    loop {
        // SAFETY: within the list, whose end is looked for at each step.
        let kind = unsafe { *types };
        if kind.is_null() {
            return None;
        }
        // SAFETY: a buffer type of the device; the tensor is as this function's contract says.
        if unsafe { takes(host, device, kind, tensor, state.host.ops.mul_mat) } {
            // SAFETY: as above, and the type takes the tensor.
            if let Some(buffer) = unsafe { fill(host, kind, weight, tensor) } {
                return Some(buffer);
            }
        }
        // SAFETY: not at the end.
        types = unsafe { types.add(1) };
    }
}

/// Whether the CPU multiplies by the tensor in a buffer of type `kind`: the question that llama.cpp asks before it
/// places a weight, with a buffer of no bytes.
///
/// # Safety
/// `device` is live, `kind` one of its types, `tensor` a matrix in no buffer.
unsafe fn takes(
    host: &Host,
    device: sys::ggml_backend_dev_t,
    kind: sys::ggml_backend_buffer_type_t,
    tensor: &mut sys::ggml_tensor,
    mul_mat: i32,
) -> bool {
    // SAFETY: the host gives a dummy buffer for no bytes.
    let dummy = unsafe { (host.fns.buft_alloc_buffer.get())(kind, 0) };
    if dummy.is_null() {
        return false;
    }
    let mut row = empty();
    shape(&mut row, [tensor.ne[0], 1], tensor.ne[0] as usize * 4);
    let mut node = empty();
    shape(&mut node, [tensor.ne[1], 1], tensor.ne[1] as usize * 4);
    node.op = mul_mat;
    node.src[0] = tensor;
    node.src[1] = &mut row;
    tensor.buffer = dummy;
    // SAFETY: live tensors, whose only buffer is live.
    let takes = unsafe { (host.fns.dev_supports_op.get())(device, &node) };
    tensor.buffer = std::ptr::null_mut();
    // SAFETY: made above, freed once.
    unsafe { (host.fns.buffer_free.get())(dummy) };
    takes
}

/// Makes `tensor` a matrix of f32 with rows `stride` bytes apart.
pub fn shape(tensor: &mut sys::ggml_tensor, [width, rows]: [i64; 2], stride: usize) {
    let all = stride * rows.max(0) as usize;
    tensor.type_ = sys::GGML_HOST_TYPE_F32 as i32;
    tensor.ne = [width, rows, 1, 1];
    tensor.nb = [4, stride, all, all];
}

/// Copies the weight into a new buffer of type `kind`, in which the tensor then lies.
///
/// # Safety
/// As [`takes`], which said yes; the tensor's bytes are `weight.data`.
unsafe fn fill(
    host: &Host,
    kind: sys::ggml_backend_buffer_type_t,
    weight: &Source,
    tensor: &mut sys::ggml_tensor,
) -> Option<sys::ggml_backend_buffer_t> {
    // SAFETY: the host's own functions on its own objects; the buffer has the bytes that its type asks for.
    unsafe {
        let bytes = (host.fns.buft_alloc_size.get())(kind, tensor);
        let buffer = (host.fns.buft_alloc_buffer.get())(kind, bytes);
        if buffer.is_null() {
            log!(Warn, "the host cannot allocate {bytes} bytes for its copy of a weight: its kernels read the original");
            return None;
        }
        (host.fns.buffer_set_usage.get())(buffer, sys::GGML_HOST_USAGE_WEIGHTS as i32);
        let base = (host.fns.buffer_base.get())(buffer);
        if (host.fns.tensor_alloc.get())(buffer, tensor, base) != sys::GGML_HOST_STATUS_SUCCESS as i32 {
            (host.fns.buffer_free.get())(buffer);
            (tensor.buffer, tensor.data, tensor.extra) =
                (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
            return None;
        }
        (host.fns.tensor_set.get())(tensor, weight.data.as_ptr().cast(), 0, weight.data.len());
        Some(buffer)
    }
}
