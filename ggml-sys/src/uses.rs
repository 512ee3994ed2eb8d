//! How many nodes of a graph read a tensor: what lets a result that one node alone reads stay where it is computed.
//!
//! The host counts that in its graphs, whose struct is no part of its public headers. So the struct is read only after a
//! graph of known uses was found to lie as believed, within memory that is ours; otherwise no use is known.

use std::mem::{align_of, size_of};

use crate::host::Functions;
use crate::sys;

/// The host's set of tensors: open addressing, by a tensor's address over 16.
#[repr(C)]
struct HashSet {
    size: usize,
    used: *const u32,
    keys: *const *mut sys::ggml_tensor,
}

/// The host's graph up to its uses.
#[repr(C)]
struct Graph {
    size: i32,
    n_nodes: i32,
    n_leafs: i32,
    nodes: *const *mut sys::ggml_tensor,
    grads: *const *mut sys::ggml_tensor,
    grad_accs: *const *mut sys::ggml_tensor,
    leafs: *const *mut sys::ggml_tensor,
    use_counts: *const i32,
    visited: HashSet,
}

/// The proof that graphs of this host lie as believed.
#[derive(Clone, Copy)]
pub struct Uses(());

/// Nodes that the graph that is looked at has room for.
const NODES: usize = 8;

impl Uses {
    /// Has the host make a graph and puts it to the test.
    ///
    /// # Safety
    /// `fns` are functions of a host whose tensors lie as believed.
    pub(crate) unsafe fn look(fns: &Functions) -> Option<Self> {
        // SAFETY: plain functions.
        let bytes =
            unsafe { 16 * (fns.tensor_overhead.get())() + (fns.graph_overhead.get())(NODES, false) + 4096 };
        let mut room = vec![0u128; bytes.div_ceil(size_of::<u128>())];
        let memory = room.as_mut_ptr().cast::<u8>();
        let within = memory as usize..memory as usize + bytes;
        // SAFETY: plain parameters, then the host's own objects, all of them within the room, which outlives them.
        unsafe {
            let context = (fns.init.get())(sys::ggml_init_params {
                mem_size: bytes,
                mem_buffer: memory.cast(),
                no_alloc: true,
            });
            if context.is_null() {
                return None;
            }
            let leaf = |columns, rows| {
                (fns.new_tensor_2d.get())(context, sys::GGML_HOST_TYPE_F32 as i32, columns, rows)
            };
            let product = |weight, rows| (fns.mul_mat.get())(context, weight, rows);
            let (rows, unknown) = (leaf(6, 5), leaf(6, 5));
            let middle = product(leaf(6, 3), rows);
            let ends = [2, 4].map(|columns| product(leaf(3, columns), middle));
            let graph = (fns.new_graph.get())(context, NODES, false);
            ends.into_iter().for_each(|end| (fns.build_forward.get())(graph, end));
            let counts = [(middle, 2), (rows, 1), (ends[0], 0), (ends[1], 0)];
            let right = is_within(graph.cast(), &within)
                && Self(()).of(graph, unknown).is_none()
                && counts.into_iter().all(|(tensor, count)| Self(()).of(graph, tensor) == Some(count));
            (fns.free.get())(context);
            right.then_some(Self(()))
        }
    }

    /// As often is `tensor` a source of the graph's nodes, those beyond a view of the graph counted; `None` for a tensor
    /// that the graph does not know.
    ///
    /// # Safety
    /// `graph` is a live graph of the host's.
    pub unsafe fn of(&self, graph: *const sys::ggml_cgraph, tensor: *const sys::ggml_tensor) -> Option<i32> {
        // SAFETY: graphs lie as believed, which the value is the proof of.
        let Graph { use_counts, visited: HashSet { size, used, keys }, .. } =
            unsafe { &*graph.cast::<Graph>() };
        if *size == 0 || use_counts.is_null() || used.is_null() || keys.is_null() {
            return None;
        }
        let first = (tensor as usize >> 4) % size;
        for at in (first..*size).chain(0..first) {
            // SAFETY: the set has `size` places, and as many counts.
            unsafe {
                if *used.add(at / 32) >> (at % 32) & 1 == 0 {
                    return None;
                }
                if (*keys.add(at)).cast_const() == tensor {
                    return Some(*use_counts.add(at));
                }
            }
        }
        None
    }
}

/// Whether a graph of three nodes and four leafs, its counts and its set lie within `memory`.
///
/// # Safety
/// `memory` is readable, and nobody writes to it.
unsafe fn is_within(graph: *const Graph, memory: &std::ops::Range<usize>) -> bool {
    let fits = |start: usize, align: usize, bytes: usize| {
        start >= memory.start && start % align == 0 && bytes <= memory.len() && start <= memory.end - bytes
    };
    if !fits(graph as usize, align_of::<Graph>(), size_of::<Graph>()) {
        return false;
    }
    // SAFETY: within the memory.
    let Graph { size, n_nodes, n_leafs, use_counts, visited, .. } = unsafe { &*graph };
    let HashSet { size: places, used, keys } = visited;
    (*size, *n_nodes, *n_leafs) == (NODES as i32, 3, 4)
        && (NODES..=memory.len() / 16).contains(places)
        && fits(*use_counts as usize, 4, 4 * places)
        && fits(*used as usize, 4, 4 * places.div_ceil(32))
        && fits(*keys as usize, 8, 8 * places)
}
