//! A FLASH_ATTN_EXT node as plain numbers and slices, and how fast the host's CPU backend does one.

use std::time::Instant;

use ggml_sys::{sys, Host};

use super::cpu::HostCpu;
use super::host_copy::empty;
use super::registry::State;
use super::tensor::operand;
use crate::engine::{Attention, Cached, Mask, Queries};
use crate::host::attention::{AttentionNode, Operands};
use crate::host::host_copy::HostCosts;

/// Where sources are in the node.
const QUERIES: usize = 0;
const KEYS: usize = 1;
const VALUES: usize = 2;
const MASK: usize = 3;
const SINKS: usize = 4;

/// Tokens, heads, elements and positions of what the CPU is measured with: some milliseconds, of which most is work.
const SAMPLE: [i64; 4] = [64, 4, 64, 1024];

/// The node's attention, or why the CPU does it.
///
/// # Safety
/// `op` and its sources are live tensors.
pub unsafe fn node(state: &State, op: &sys::ggml_tensor) -> Result<AttentionNode, &'static str> {
    // SAFETY: a source is null or live.
    let sources = op.src.map(|source| unsafe { source.as_ref() });
    let [Some(q), Some(k), Some(v)] = [sources[QUERIES], sources[KEYS], sources[VALUES]] else {
        return Err("a source is missing");
    };
    let operands = Operands {
        matrices: [operand(q)?, operand(k)?, operand(v)?],
        mask: sources[MASK].map(operand).transpose()?,
        sinks: sources[SINKS].map(operand).transpose()?,
        out: operand(op)?,
    };
    let node = AttentionNode::new(&operands, [k, v].map(|of| state.host.row_reader(of.type_)))?;
    let [_, max_bias, _] = parameters(op);
    if max_bias > 0.0 && node.mask.is_none() {
        return Err("slopes without a mask");
    }
    Ok(node)
}

/// Scale, largest slope and cap.
fn parameters(op: &sys::ggml_tensor) -> [f32; 3] {
    [0, 1, 2].map(|index| f32::from_bits(op.op_params[index] as u32))
}

/// The operands of `node` as slices; nothing for data that cannot be reached.
///
/// # Safety
/// `op` is a FLASH_ATTN_EXT node with allocated sources, of which `node` was made; nobody else writes to them or to its data
/// while the attention lives.
pub unsafe fn attention<'a>(op: &'a sys::ggml_tensor, node: &AttentionNode) -> Option<Attention<'a>> {
    // SAFETY: a source is null or live.
    let data = |source: usize| unsafe { op.src[source].as_ref() }.map(|source| source.data);
    let present = |source: usize, align: usize| {
        data(source).filter(|data| !data.is_null() && *data as usize % align == 0)
    };
    let (q, k, v) = (present(QUERIES, 4)?, present(KEYS, 1)?, present(VALUES, 1)?);
    if op.data.is_null() || op.data as usize % 4 != 0 {
        return None;
    }
    let mask = match node.mask {
        Some(mask) => Some((present(MASK, 2)?, mask)),
        None => None,
    };
    let sinks = match data(SINKS) {
        Some(_) => Some(present(SINKS, 4)?),
        None => None,
    };
    let [scale, max_bias, softcap] = parameters(op);
    let cached = |data: *mut std::ffi::c_void, which: usize| {
        let (reader, halves) = node.readers[which];
        Cached {
            // SAFETY: the length follows from the tensor's extents and strides, which the host allocated for.
            data: unsafe { std::slice::from_raw_parts(data.cast::<u8>(), node.cache_bytes(which)) },
            reader,
            width: [node.shape.head, node.shape.value][which],
            strides: node.cache_strides[which],
            halves,
        }
    };
    let (keys, values) = (cached(k, 0), cached(v, 1));
    // SAFETY: as above, and aligned; the result overlaps no source in ggml's graphs.
    let (queries, out) = unsafe {
        (
            std::slice::from_raw_parts(q.cast::<f32>(), node.query_elements()),
            std::slice::from_raw_parts_mut(op.data.cast::<f32>(), node.out_elements()),
        )
    };
    Some(Attention {
        shape: node.shape,
        queries: Queries { data: queries, strides: node.query_strides },
        keys,
        values,
        mask: mask.map(|(data, (strides, extents))| Mask {
            // SAFETY: as above.
            data: unsafe { std::slice::from_raw_parts(data.cast::<u16>(), node.mask_elements()) },
            strides,
            extents,
        }),
        // SAFETY: as above.
        sinks: sinks.map(|data| unsafe { std::slice::from_raw_parts(data.cast::<f32>(), node.shape.heads) }),
        scale,
        softcap,
        max_bias,
        out,
    })
}

/// What the host's CPU backend takes, by doing some of it; `None` where it cannot.
pub fn costs(host: &Host, cpu: &mut HostCpu) -> Option<HostCosts> {
    let [tokens, heads, head, positions] = SAMPLE;
    let tensor = |kind: u32, unit: usize, ne: [i64; 4]| {
        let mut tensor = empty();
        let mut strides = [unit; 4];
        for i in 1..4 {
            strides[i] = strides[i - 1] * ne[i - 1] as usize;
        }
        let mut room = vec![0u64; (strides[3] * ne[3] as usize).div_ceil(8)];
        (tensor.type_, tensor.ne, tensor.nb) = (kind as i32, ne, strides);
        tensor.data = room.as_mut_ptr().cast();
        tensor.flags = sys::GGML_HOST_TENSOR_FLAG_COMPUTE as i32;
        (tensor, room)
    };
    let (mut q, _q) = tensor(sys::GGML_HOST_TYPE_F32, 4, [head, tokens, heads, 1]);
    let (mut k, _k) = tensor(sys::GGML_HOST_TYPE_F16, 2, [head, positions, heads, 1]);
    let (mut v, _v) = tensor(sys::GGML_HOST_TYPE_F16, 2, [head, positions, heads, 1]);
    let (mut mask, _mask) = tensor(sys::GGML_HOST_TYPE_F16, 2, [positions, tokens, 1, 1]);
    let (mut out, _out) = tensor(sys::GGML_HOST_TYPE_F32, 4, [head, heads, tokens, 1]);
    out.op = host.ops.flash_attn_ext;
    out.op_params[0] = 1f32.to_bits() as i32;
    out.src[..4].copy_from_slice(&[&raw mut q, &raw mut k, &raw mut v, &raw mut mask]);
    let (mut scores, _scores) = tensor(sys::GGML_HOST_TYPE_F32, 4, [positions, tokens, heads, 1]);
    scores.op = host.ops.mul_mat;
    scores.src[..2].copy_from_slice(&[&raw mut k, &raw mut q]);
    let mut time = |node: &mut sys::ggml_tensor| {
        let mut best = f64::INFINITY;
        // The first time makes threads and room.
        for _ in 0..3 {
            let started = Instant::now();
            // SAFETY: a complete node, whose sources are in memory.
            if unsafe { cpu.compute(host, &[&raw mut *node]) } != sys::GGML_HOST_STATUS_SUCCESS as i32 {
                return None;
            }
            best = best.min(started.elapsed().as_nanos() as f64);
        }
        Some(best / (tokens * heads * head * positions) as f64)
    };
    // Two products, and one, of two operations each.
    Some(HostCosts { attention_ns: time(&mut out)? / 4.0, product_ns: time(&mut scores)? / 2.0 })
}
