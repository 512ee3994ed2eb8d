//! Some rows of what the host's graph has between two products: sums, norms, factors. Each row of such a node is made of the
//! same row of its sources, and of a number for each column, so that its rows can be made in tiles, by nodes of our own that
//! are as the host's but for their rows.

use std::ops::Range;

use ggml_sys::{sys, Ops};

use super::host_copy::empty;
use super::waiting::{meet, whole};

/// The most such nodes between two products: a bias, a norm and its factor, a sum, another norm and factor, and to spare.
pub const OPS: usize = 8;
/// Sources that such a node has at most.
const SOURCES: usize = 2;

/// How the rows of a matrix of f32 lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsAt {
    /// All of their addresses.
    pub bytes: Range<usize>,
    /// Bytes from one row to the next.
    stride: usize,
    /// Whether it is written.
    pub written: bool,
}

impl RowsAt {
    /// Those of a matrix of `rows` rows; `None` for anything else.
    pub fn of(tensor: &sys::ggml_tensor, rows: usize, written: bool) -> Option<Self> {
        let width = tensor.ne[0] as usize * 4;
        let plain = tensor.type_ as u32 == sys::GGML_HOST_TYPE_F32
            && tensor.nb[0] == 4
            && tensor.ne[1..] == [i64::try_from(rows).ok()?, 1, 1]
            && tensor.nb[1] >= width
            && !tensor.data.is_null()
            && rows > 0;
        let start = tensor.data as usize;
        plain.then(|| Self {
            bytes: start..start + (rows - 1) * tensor.nb[1] + width,
            stride: tensor.nb[1],
            written,
        })
    }

    /// Whether different rows of the two have no byte in common, as far as one of them is written.
    pub fn are_apart(&self, other: &Self) -> bool {
        !meet(&self.bytes, &other.bytes)
            || !self.written && !other.written
            || self.bytes.start == other.bytes.start && self.stride == other.stride
    }
}

/// What a node that makes rows of rows writes and reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Sources {
    /// The rows that it makes.
    pub own: RowsAt,
    /// Those of its first source, and of its second.
    pub first: RowsAt,
    pub second: Option<RowsAt>,
    /// The addresses of what it has a number for each column of, instead of the second.
    pub columns: Option<Range<usize>>,
}

/// What the node writes and reads if it makes `rows` rows, each of the same rows of its sources; `None` if it does not.
///
/// # Safety
/// Its sources are null or live, and allocated as it is.
pub unsafe fn sources(ops: &Ops, node: &sys::ggml_tensor, rows: usize) -> Option<Sources> {
    let [norm, scale, _] = ops.by_row;
    let has_two = ops.by_column.contains(&node.op);
    if !has_two && node.op != norm && node.op != scale {
        return None;
    }
    // SAFETY: by the contract.
    let of = |at: usize| unsafe { node.src[at].as_ref() };
    let alike = |source: &sys::ggml_tensor| RowsAt::of(source, rows, false).filter(|_| source.ne == node.ne);
    let is_column = |source: &&sys::ggml_tensor| source.op == ops.none && source.ne == [node.ne[0], 1, 1, 1];
    let own = RowsAt::of(node, rows, true).filter(|own| own.stride == node.ne[0] as usize * 4)?;
    let first = of(0).and_then(alike)?;
    let second = of(1).and_then(alike);
    let columns = of(1).filter(is_column).map(whole);
    let is_known = if has_two { second.is_some() || columns.is_some() } else { of(1).is_none() };
    let are_all = (SOURCES..node.src.len()).all(|at| of(at).is_none());
    (is_known && are_all).then_some(Sources { own, first, second, columns })
}

/// Nodes of our own for some rows; kept from one tile to the next.
pub struct Tile {
    nodes: Box<[sys::ggml_tensor; OPS]>,
    sources: Box<[[sys::ggml_tensor; SOURCES]; OPS]>,
}

impl Default for Tile {
    fn default() -> Self {
        let (nodes, sources) = ([empty(); OPS], [[empty(); SOURCES]; OPS]);
        Self { nodes: Box::new(nodes), sources: Box::new(sources) }
    }
}

impl Tile {
    /// Nodes that make the rows `range`, of `rows` rows, of what `nodes` make, as many and in the same order; they are good
    /// until the next call.
    ///
    /// # Safety
    /// All are nodes with [`sources`].
    pub unsafe fn of(
        &mut self,
        nodes: &[*mut sys::ggml_tensor],
        rows: usize,
        range: &Range<usize>,
    ) -> [*mut sys::ggml_tensor; OPS] {
        let mut own = [std::ptr::null_mut(); OPS];
        let places: [*mut sys::ggml_tensor; OPS] = self.nodes.each_mut().map(std::ptr::from_mut);
        for (at, node) in nodes.iter().enumerate().take(OPS) {
            // SAFETY: live by the contract, as are their sources.
            let mut tile = unsafe { some_rows(&**node, range) };
            for (index, source) in tile.src.iter_mut().enumerate().take(SOURCES) {
                if let Some(before) = nodes[..at].iter().position(|before| std::ptr::eq(*before, *source)) {
                    *source = places[before];
                    continue;
                }
                // SAFETY: null or live by the contract.
                match unsafe { source.as_ref() } {
                    Some(whole) if whole.ne[1] as usize == rows => {
                        let place = &mut self.sources[at][index];
                        *place = some_rows(whole, range);
                        *source = place;
                    }
                    _ => (),
                }
            }
            // SAFETY: a place of our own, which nobody else has.
            unsafe { places[at].write(tile) };
            own[at] = places[at];
        }
        own
    }
}

/// Some rows of a matrix.
fn some_rows(tensor: &sys::ggml_tensor, range: &Range<usize>) -> sys::ggml_tensor {
    let mut tile = *tensor;
    tile.data = tensor.data.wrapping_byte_add(range.start * tensor.nb[1]);
    tile.ne[1] = range.len() as i64;
    (tile.nb[2], tile.nb[3]) = (tensor.nb[1] * range.len(), tensor.nb[1] * range.len());
    tile
}

#[cfg(test)]
mod tests {
    use super::super::test_nodes::{graph, ops, Node};
    use super::*;

    const ROWS: usize = 4;

    /// A sum of rows and others, and of rows and a number for each column; a norm. Their data are an address each.
    fn nodes() -> Vec<sys::ggml_tensor> {
        let kinds = [
            Node::other(&[]),
            Node::other(&[]),
            Node::leaf(),
            Node::sum(0, 1),
            Node::sum(3, 2),
            Node::norm(4),
        ];
        let mut nodes = graph(&kinds);
        nodes[2].ne = [8, 1, 1, 1];
        for (at, node) in nodes.iter_mut().enumerate() {
            node.nb = [4, 32, 128, 128];
            node.data = std::ptr::without_provenance_mut(0x1_0000 + at * 0x1000);
        }
        nodes[2].nb = [4, 32, 32, 32];
        nodes
    }

    #[test]
    fn sums_and_norms_make_rows_of_the_same_rows() {
        let nodes = nodes();
        // SAFETY: all are live.
        let of = |node: &sys::ggml_tensor| unsafe { sources(&ops(), node, ROWS) };
        let at = |index: usize, written| {
            let start = 0x1_0000 + index * 0x1000;
            RowsAt { bytes: start..start + 128, stride: 32, written }
        };
        let sum =
            Sources { own: at(3, true), first: at(0, false), second: Some(at(1, false)), columns: None };
        assert_eq!(of(&nodes[3]), Some(sum));
        let biased = of(&nodes[4]).unwrap();
        assert_eq!((biased.second, biased.columns), (None, Some(0x1_2000..0x1_2020)));
        assert!(of(&nodes[5]).is_some());
        assert_eq!(of(&nodes[0]), None, "another op");
        for change in [
            |node: &mut sys::ggml_tensor| node.ne[1] = 3,
            |node: &mut sys::ggml_tensor| (node.ne[1], node.ne[2]) = (2, 2),
            |node: &mut sys::ggml_tensor| node.nb[1] = 64,
            |node: &mut sys::ggml_tensor| node.nb[0] = 8,
            |node: &mut sys::ggml_tensor| node.type_ = 1,
            |node: &mut sys::ggml_tensor| node.data = std::ptr::null_mut(),
            |node: &mut sys::ggml_tensor| node.src[0] = std::ptr::null_mut(),
            |node: &mut sys::ggml_tensor| node.src[1] = std::ptr::null_mut(),
            |node: &mut sys::ggml_tensor| node.src[2] = node.src[0],
        ] {
            let mut node = nodes[3];
            change(&mut node);
            assert_eq!(of(&node), None);
        }
    }

    #[test]
    fn rows_are_apart_if_they_are_the_same_or_have_no_address_in_common() {
        let at = |start: usize, stride: usize, written| RowsAt {
            bytes: start..start + 4 * stride,
            stride,
            written,
        };
        let one = at(1000, 32, true);
        assert!(one.are_apart(&at(1000, 32, false)), "the same rows");
        assert!(one.are_apart(&at(1128, 32, true)), "others");
        assert!(!one.are_apart(&at(1032, 32, false)), "a row further on");
        assert!(!one.are_apart(&at(1000, 64, false)), "longer ones");
        assert!(at(1000, 32, false).are_apart(&at(1032, 32, false)), "nobody writes");
    }

    #[test]
    fn a_tile_is_the_same_nodes_with_some_rows() {
        let mut nodes = nodes();
        let made: Vec<*mut sys::ggml_tensor> = nodes[3..].iter_mut().map(std::ptr::from_mut).collect();
        let mut tile = Tile::default();
        for range in [0..4, 1..3] {
            // SAFETY: all are live.
            let own = unsafe { tile.of(&made, ROWS, &range) };
            assert!(own[made.len()..].iter().all(|node| node.is_null()));
            for (at, (own, whole)) in own.iter().zip(&made).enumerate() {
                // SAFETY: live nodes and sources.
                unsafe {
                    let (own, whole) = (&**own, &**whole);
                    assert_eq!((own.op, own.ne), (whole.op, [8, range.len() as i64, 1, 1]));
                    assert_eq!(own.data as usize, whole.data as usize + 32 * range.start);
                    let source = &*own.src[0];
                    assert_eq!(source.data as usize, (*whole.src[0]).data as usize + 32 * range.start);
                    assert_eq!(source.ne[1] as usize, range.len());
                    // What another node of the tile makes is read from that one.
                    let before = at
                        .checked_sub(1)
                        .map(|before| own.src[0] == tile.nodes.as_ptr().add(before).cast_mut());
                    assert_ne!(before, Some(false));
                }
            }
            // SAFETY: as above.
            unsafe {
                assert_eq!((*(*own[0]).src[1]).data as usize, 0x1_1000 + 32 * range.start);
                assert_eq!((*own[1]).src[1], (*made[1]).src[1], "numbers for each column have no rows");
            }
        }
    }
}
