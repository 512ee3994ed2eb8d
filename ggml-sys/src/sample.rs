//! A node that the host makes, looked at before any is trusted: tensors are read by their layout, which no function and
//! no version number vouches for.

use std::ffi::c_int;
use std::mem::size_of;

use crate::host::{Functions, Ops};
use crate::sys;

/// Bytes of the host's own record in front of each tensor of a context (`ggml_tensor_overhead`).
const RECORD: usize = 32;
/// Columns and rows of the two matrices: all different, so that none is taken for another.
const SHAPES: [[i64; 2]; 2] = [[6, 3], [6, 5]];

/// Has the host make a product and puts it to the test: whether it marks nodes that are to be computed.
///
/// # Errors
/// What lies otherwise than we believe.
///
/// # Safety
/// `fns` are functions of a host, and `ops` its codes.
pub(crate) unsafe fn look(fns: &Functions, ops: &Ops) -> Result<bool, String> {
    // SAFETY: a plain function.
    let bytes = unsafe { (fns.tensor_overhead.get())() };
    if bytes != RECORD + size_of::<sys::ggml_tensor>() {
        return Err(format!("tensors of {bytes} bytes, expected {}", RECORD + size_of::<sys::ggml_tensor>()));
    }
    // SAFETY: plain parameters, then the host's own objects, which end with their context; the room is enough for three
    // tensors and the graph, and tensors are of the size that was asked.
    unsafe {
        let mem_size = 4 * bytes + (fns.graph_overhead.get())(4, false) + 1024;
        let context = (fns.init.get())(sys::ggml_init_params {
            mem_size,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        });
        if context.is_null() {
            return Err(format!("no context of {mem_size} bytes"));
        }
        let [a, b] = SHAPES.map(|[columns, rows]| {
            (fns.new_tensor_2d.get())(context, sys::GGML_HOST_TYPE_F32 as c_int, columns, rows)
        });
        let node = (fns.mul_mat.get())(context, a, b);
        (fns.set_name.get())(node, c"a sample".as_ptr());
        let graph = (fns.new_graph.get())(context, 4, false);
        (fns.build_forward.get())(graph, node);
        let product = &*node;
        let looked = if product.src[..2] == [a, b] {
            as_believed(product, &*a, ops)
                .map(|()| product.flags as u32 & sys::GGML_HOST_TENSOR_FLAG_COMPUTE != 0)
        } else {
            Err("a product's sources are not where expected".to_owned())
        };
        (fns.free.get())(context);
        looked
    }
}

/// Compares what is read of the product `node`, and of its first source, with what they were made of.
fn as_believed(node: &sys::ggml_tensor, source: &sys::ggml_tensor, ops: &Ops) -> Result<(), String> {
    let [[_, n], [_, rows]] = SHAPES;
    let name: Vec<u8> = node.name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    let wrong = [
        ("extents", node.ne != [n, rows, 1, 1] || source.ne != [SHAPES[0][0], SHAPES[0][1], 1, 1]),
        ("strides", node.nb[..2] != [4, 4 * n as usize]),
        ("type", node.type_ as u32 != sys::GGML_HOST_TYPE_F32),
        ("op", node.op != ops.mul_mat || source.op != ops.none),
        ("other sources", node.src[2..].iter().any(|other| !other.is_null())),
        ("place", !node.data.is_null() || !node.view_src.is_null() || !node.buffer.is_null()),
        ("name", name != b"a sample"),
    ]
    .into_iter()
    .find(|(_, is_wrong)| *is_wrong);
    wrong.map_or(Ok(()), |(what, _)| Err(format!("a product's {what} not as expected")))
}
