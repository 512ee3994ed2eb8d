//! ggml's tensors as plain numbers and slices.

use ggml_sys::sys;

use super::registry::State;
use super::{attention, buffer, epilogue};
use crate::engine::Activations;
use crate::host::device::{Device, HostWeight, Job};
use crate::host::experts::ExpertProduct;
use crate::host::mixture::ExpertJob;
use crate::host::product::{Batch, Operand, Product};
use crate::pool::Divided;
use crate::weights::Source;

/// Whether the device does `op`, or `op` is none.
///
/// # Safety
/// `op`, its sources and what they are views of are live tensors.
pub unsafe fn supports(state: &State, device: &Device, op: &sys::ggml_tensor) -> bool {
    let ops = &state.host.ops;
    if op.op == ops.none || ops.views.contains(&op.op) {
        return true;
    }
    // SAFETY: by this function's contract.
    unsafe {
        (op.op == ops.mul_mat && taken_product(state, device, op).is_ok())
            || (op.op == ops.mul_mat_id && taken_experts(state, device, op).is_ok())
            || (op.op == ops.flash_attn_ext
                && attention::node(state, op).is_ok_and(|node| device.attends(&node)))
            || (ops.glu.is_some_and(|glu| glu.op == op.op) && is_between_products(state, device, op))
            || epilogue::product(ops, op).is_some_and(|product| taken_product(state, device, product).is_ok())
    }
}

/// Whether a GLU is of two products that are the device's, of experts or not: it then comes in one graph with them and with
/// the product that reads it.
///
/// # Safety
/// As [`supports`].
unsafe fn is_between_products(state: &State, device: &Device, op: &sys::ggml_tensor) -> bool {
    let ops = &state.host.ops;
    // SAFETY: sources are null or live, with live sources of their own.
    op.src[..2].iter().all(|source| unsafe {
        source.as_ref().is_some_and(|source| {
            source.op == ops.mul_mat && taken_product(state, device, source).is_ok()
                || source.op == ops.mul_mat_id && taken_experts(state, device, source).is_ok()
        })
    })
}

/// Whether the user left the weight to the CPU by its name.
///
/// # Safety
/// As [`supports`].
unsafe fn is_left_to_cpu(device: &Device, op: &sys::ggml_tensor) -> bool {
    // SAFETY: a source is null or live.
    unsafe { op.src[0].as_ref() }.is_some_and(|weight| device.leaves_to_cpu(weight_name(weight)))
}

/// The node's product if it is the device's, or why the CPU does it.
///
/// # Safety
/// As [`supports`].
pub unsafe fn taken_product(
    state: &State,
    device: &Device,
    op: &sys::ggml_tensor,
) -> Result<Product, &'static str> {
    // SAFETY: by the contract.
    let product = unsafe { product(state, op) }?;
    // SAFETY: as above.
    if unsafe { multiplies_by_weight(state, device, op) } || device.multiplies_computed(&product) {
        Ok(product)
    } else {
        Err("no weight of the device's, and no attention that is worth it")
    }
}

/// The node's product with experts if it is the device's, or why the CPU does it.
///
/// # Safety
/// As [`supports`].
pub unsafe fn taken_experts(
    state: &State,
    device: &Device,
    op: &sys::ggml_tensor,
) -> Result<ExpertProduct, &'static str> {
    // SAFETY: by the contract.
    let product = unsafe { experts(state, op) }?;
    // SAFETY: as above.
    if unsafe { multiplies_by_weight(state, device, op) } {
        Ok(product)
    } else {
        Err("no weights of the device's")
    }
}

/// Whether the node multiplies by a weight that is ours and not left to the CPU by its name.
///
/// # Safety
/// As [`supports`].
unsafe fn multiplies_by_weight(state: &State, device: &Device, op: &sys::ggml_tensor) -> bool {
    // SAFETY: by the contract.
    unsafe { op.src[0].as_ref().is_some_and(|weight| lasts(state, weight)) && !is_left_to_cpu(device, op) }
}

/// Whether the tensor is a weight that may be ours: in one of our buffers, or without a place yet, and a leaf of the
/// graph. In a buffer that is not marked as weights what is seen through a view is none, but a cache.
///
/// What the graph computes has to be converted on every use, which pays for attention's long prompts alone.
///
/// # Safety
/// `weight`, its buffer and what it is a view of are live.
unsafe fn lasts(state: &State, weight: &sys::ggml_tensor) -> bool {
    let none = state.host.ops.none;
    // SAFETY: as above; ggml keeps view_src at the root. A tensor's buffer is null or live.
    unsafe {
        let place = place(weight);
        weight.view_src.as_ref().unwrap_or(weight).op == none
            && (place.is_null()
                || buffer::is_ours(place) && (buffer::is_of_weights(place) || weight.op == none))
    }
}

/// The buffer in which a tensor's data lies, or null: its own, or that of what it is a view of.
///
/// # Safety
/// What it is a view of is live.
unsafe fn place(tensor: &sys::ggml_tensor) -> sys::ggml_backend_buffer_t {
    // SAFETY: by the contract.
    match unsafe { tensor.view_src.as_ref() } {
        Some(source) if tensor.buffer.is_null() => source.buffer,
        _ => tensor.buffer,
    }
}

/// The node's product, or why the CPU does it.
///
/// # Safety
/// `op` and its sources are live tensors.
pub unsafe fn product(state: &State, op: &sys::ggml_tensor) -> Result<Product, &'static str> {
    // SAFETY: a source is null or live.
    let (weight, activations) = unsafe { (op.src[0].as_ref(), op.src[1].as_ref()) };
    let (Some(weight), Some(activations)) = (weight, activations) else {
        return Err("a source is missing");
    };
    let reader = state.host.row_reader(weight.type_);
    Product::new(operand(weight)?, operand(activations)?, operand(op)?, reader)
}

/// The node's product with experts, or why the CPU does it.
///
/// # Safety
/// As [`product`].
pub unsafe fn experts(state: &State, op: &sys::ggml_tensor) -> Result<ExpertProduct, &'static str> {
    // SAFETY: a source is null or live.
    let sources = unsafe { [op.src[0].as_ref(), op.src[1].as_ref(), op.src[2].as_ref()] };
    let [Some(weight), Some(activations), Some(ids)] = sources else {
        return Err("a source is missing");
    };
    let reader = state.host.row_reader(weight.type_);
    ExpertProduct::new(operand(weight)?, operand(activations)?, operand(ids)?, operand(op)?, reader)
}

/// The ids of a node's experts, token by token; nothing for data that cannot be reached.
///
/// # Safety
/// `op` is a MUL_MAT_ID node with allocated sources, of which `product` was made; nobody writes to them meanwhile.
pub unsafe fn ids<'a>(
    op: &'a sys::ggml_tensor,
    product: &'a ExpertProduct,
) -> Option<impl Iterator<Item = i32> + Clone + 'a> {
    // SAFETY: the product was made of these sources, so they are there.
    let base = unsafe { (*op.src[2]).data.cast::<u8>().cast_const() };
    if base.is_null() || base as usize % 4 != 0 {
        return None;
    }
    let ExpertProduct { used, id_strides: [one, token], .. } = *product;
    Some((0..used * product.tokens).map(move |index| {
        let at = index / used * token + index % used * one;
        // SAFETY: within the tensor, by its extents and strides; aligned, since all of these are multiples of 4.
        unsafe { base.add(at).cast::<i32>().read() }
    }))
}

/// A node's experts and result as plain slices, and its rows of activations; nothing for data that cannot be reached.
///
/// # Safety
/// As [`jobs`], of a MUL_MAT_ID node.
pub unsafe fn expert_job<'a>(
    state: &State,
    op: &'a sys::ggml_tensor,
    product: &ExpertProduct,
) -> Option<(ExpertJob<'a>, Activations<'a>)> {
    // SAFETY: the product was made of these sources, so they are there.
    let (weight, activations) = unsafe { (&*op.src[0], &*op.src[1]) };
    if !are_reachable(weight, activations, op) {
        return None;
    }
    let each = &product.each;
    let bytes = (product.experts - 1) * product.expert_stride + each.weight_bytes();
    // SAFETY: lengths follow from the tensors' extents and strides, which the host allocated for. The rest by this function's
    // contract.
    let (all, rows, out) = unsafe {
        (
            std::slice::from_raw_parts(weight.data.cast::<u8>().cast_const(), bytes),
            std::slice::from_raw_parts(activations.data.cast::<f32>(), each.activation_elements()),
            Divided::at(op.data.cast::<f32>(), product.out_elements()),
        )
    };
    // SAFETY: by this function's contract.
    let first = unsafe { host_weight(state, weight, &all[..each.weight_bytes()], each) };
    let job = ExpertJob { first, all, stride: product.expert_stride, out };
    Some((job, Activations::new(rows, each.activation_stride(), each.rows)))
}

/// Type, extents and strides of a tensor.
pub fn operand(tensor: &sys::ggml_tensor) -> Result<Operand, &'static str> {
    let mut ne = [0; 4];
    for (out, extent) in ne.iter_mut().zip(tensor.ne) {
        *out = usize::try_from(extent).map_err(|_| "an extent is negative")?;
    }
    Ok(Operand { ggml_type: tensor.type_, ne, nb: tensor.nb })
}

/// Whether a tensor's bytes stay as they are until the host says otherwise: those of a buffer that it marked as weights.
/// So do leaves of a buffer of ours without a mark, until a graph of ours writes them, which the second tells; marks do not
/// cross a network, so that all buffers of an RPC server are such.
///
/// # Safety
/// `tensor`, its buffer and its view's source are live.
unsafe fn constancy(state: &State, tensor: &sys::ggml_tensor) -> (bool, bool) {
    // SAFETY: pointers are null or live.
    unsafe {
        let place = place(tensor);
        let watched = tensor.op == state.host.ops.none && buffer::is_unmarked(place);
        (watched || buffer::is_of_weights(place), watched)
    }
}

/// The job of each batch of a node; nothing for data that cannot be reached.
///
/// # Safety
/// `op` is a MUL_MAT node with allocated sources, of which `product` was made; nobody else writes to them or to
/// its data while the jobs live.
pub unsafe fn jobs<'a>(
    state: &'a State,
    op: &'a sys::ggml_tensor,
    product: &'a Product,
) -> Option<impl Iterator<Item = Job<'a>> + 'a> {
    // SAFETY: the product was made of these sources, so they are there.
    let (weight, activations) = unsafe { (&*op.src[0], &*op.src[1]) };
    if !are_reachable(weight, activations, op) {
        return None;
    }
    Some(product.batches().map(
        move |Batch { weight: at_weight, activations: at_activations, out: at_out }| {
            // SAFETY: offsets and lengths follow from the tensors' extents and strides, which the host allocated for.
            let (bytes, rows, out) = unsafe {
                (
                    std::slice::from_raw_parts(
                        weight.data.cast::<u8>().add(at_weight),
                        product.weight_bytes(),
                    ),
                    std::slice::from_raw_parts(
                        activations.data.cast::<u8>().add(at_activations).cast::<f32>(),
                        product.activation_elements(),
                    ),
                    Divided::at(op.data.cast::<u8>().add(at_out).cast::<f32>(), product.out_elements()),
                )
            };
            Job {
                // SAFETY: by this function's contract.
                weight: unsafe { host_weight(state, weight, bytes, product) },
                activations: Activations::new(rows, product.activation_stride(), product.rows),
                same: false,
                out,
            }
        },
    ))
}

/// Whether a product's matrices are in memory, and its floats aligned.
fn are_reachable(weight: &sys::ggml_tensor, activations: &sys::ggml_tensor, out: &sys::ggml_tensor) -> bool {
    !weight.data.is_null()
        && [activations.data, out.data].iter().all(|data| !data.is_null() && *data as usize % 4 == 0)
}

/// The weight of a product, whose bytes are `data`.
///
/// # Safety
/// `tensor`, its buffer and its view's source are live.
unsafe fn host_weight<'a>(
    state: &State,
    tensor: &'a sys::ggml_tensor,
    data: &'a [u8],
    product: &Product,
) -> HostWeight<'a> {
    let Product { reader, k, n, .. } = *product;
    // SAFETY: by this function's contract.
    let (constant, watched) = unsafe { constancy(state, tensor) };
    // SAFETY: as above.
    let (lent, buffer) = unsafe { (buffer::is_lent(tensor.buffer), buffer::addresses(place(tensor))) };
    let source = Source { data, reader, k, n, row_stride: product.weight_stride() };
    let name = weight_name(tensor);
    HostWeight { name, source, constant, buffer, watched, lent, computed: false }
}

/// A weight's name up to what is no UTF-8.
fn weight_name(tensor: &sys::ggml_tensor) -> &str {
    let bytes: &[u8] = bytemuck::cast_slice(&tensor.name);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = &bytes[..end];
    std::str::from_utf8(text)
        .unwrap_or_else(|error| std::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default())
}

/// A tensor's name; its bytes need not be UTF-8.
pub fn name(tensor: &sys::ggml_tensor) -> std::borrow::Cow<'_, str> {
    let bytes: &[u8] = bytemuck::cast_slice(&tensor.name);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}
