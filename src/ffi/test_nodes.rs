//! Nodes of graphs for tests of what is read from them alone: op codes of no host, and tensors without data.

use ggml_sys::{sys, Ops};

use super::host_copy::empty;

const NONE: i32 = 0;
const MUL_MAT: i32 = 1;
const VIEW: i32 = 2;
const ADD: i32 = 3;
const NORM: i32 = 4;
pub const OTHER: i32 = 5;

pub fn ops() -> Ops {
    Ops {
        none: NONE,
        mul_mat: MUL_MAT,
        mul_mat_id: 10,
        flash_attn_ext: 11,
        glu: None,
        views: [VIEW, 12, 13, 14],
        by_column: [ADD, 15],
        by_row: [NORM, 16, 17],
    }
}

/// A node of a graph: its op, the nodes that it reads, and the one whose data it has.
#[derive(Debug, Clone)]
pub struct Node {
    op: i32,
    sources: Vec<usize>,
    of: Option<usize>,
}

impl Node {
    pub fn product(rows: usize) -> Self {
        Self { op: MUL_MAT, sources: vec![rows], of: None }
    }

    pub fn view(of: usize) -> Self {
        Self { op: VIEW, sources: vec![of], of: Some(of) }
    }

    pub fn other(sources: &[usize]) -> Self {
        Self { op: OTHER, sources: sources.to_vec(), of: None }
    }

    /// It writes over what it reads.
    pub fn in_place(of: usize) -> Self {
        Self { of: Some(of), ..Self::other(&[of]) }
    }

    pub fn leaf() -> Self {
        Self { op: NONE, ..Self::other(&[]) }
    }

    pub fn sum(one: usize, other: usize) -> Self {
        Self { op: ADD, ..Self::other(&[one, other]) }
    }

    pub fn norm(of: usize) -> Self {
        Self { op: NORM, ..Self::other(&[of]) }
    }

    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    pub fn is_view(&self) -> bool {
        self.op == VIEW
    }

    pub fn is_product(&self) -> bool {
        self.op == MUL_MAT
    }
}

/// The nodes as tensors of f32, which name each other by their places. A product's rows are its second source.
pub fn graph(nodes: &[Node]) -> Vec<sys::ggml_tensor> {
    let mut tensors: Vec<_> = nodes.iter().map(|_| empty()).collect();
    let places: Vec<*mut sys::ggml_tensor> = tensors.iter_mut().map(|tensor| &raw mut *tensor).collect();
    for (at, Node { op, sources, of }) in nodes.iter().enumerate() {
        let root =
            of.map(|of| if tensors[of].view_src.is_null() { places[of] } else { tensors[of].view_src });
        let tensor = &mut tensors[at];
        (tensor.op, tensor.ne, tensor.view_src) = (*op, [8, 4, 1, 1], root.unwrap_or(std::ptr::null_mut()));
        let first = usize::from(*op == MUL_MAT);
        for (place, source) in tensor.src[first..].iter_mut().zip(sources) {
            *place = places[*source];
        }
    }
    tensors
}
