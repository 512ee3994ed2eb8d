//! Whether the products that follow from each other may be done tile by tile.
//!
//! Around a stage's rows, in the graph's order: the stage before is read and its results are written, nodes make rows of these,
//! and the stage's own results are written. Of tiles, one is made, packed and written while the next one of the stage before
//! is still to come. So whatever is read or written around there either has the same rows at the same addresses, or no
//! address in common.

use std::ops::Range;

use ggml_sys::Ops;

use super::super::tile::{sources, RowsAt, OPS};
use super::super::waiting::{meet, whole};
use super::find::{Found, Node, Origin, Stage};
use crate::host::device::GROUP;

/// The most matrices around a stage: rows and results of it and of the one before, and what nodes make and read between.
const PLACES: usize = 2 * (1 + GROUP) + 3 * OPS;

/// The matrices around a stage.
struct Places {
    of: [Option<RowsAt>; PLACES],
    count: usize,
}

/// Whether no row of the chain is written over another one that is still to be read.
///
/// # Safety
/// All of its nodes are live and allocated, and so are their sources.
pub unsafe fn may_go_ahead(ops: &Ops, found: &Found) -> bool {
    let mut before: Option<&Stage> = None;
    for stage in found.stages() {
        let mut places = Places { of: [const { None }; PLACES], count: 0 };
        // What a gate makes is among the results of the stage before.
        let nodes = match &stage.origin {
            Origin::Nodes(nodes) => nodes.all(),
            Origin::Before | Origin::Gate(_) => &[],
        };
        // SAFETY: by the contract.
        let known = unsafe {
            before.iter().chain([&stage]).all(|stage| places.add_stage(found, stage))
                && places.add_nodes(ops, found.rows, nodes)
        };
        // SAFETY: by the contract; a product has a weight.
        let spares = |product: &Node| unsafe { places.spare(&whole(&*(**product).src[0])) };
        // SAFETY: as above.
        let spares_columns = |node: &Node| unsafe { places.spares_columns(ops, found.rows, *node) };
        let spares = found.products().iter().all(spares) && nodes.iter().all(spares_columns);
        if !known || !spares || !places.are_apart() {
            return false;
        }
        before = Some(stage);
    }
    true
}

/// Whether what a gate makes can be made anew as long as a product with it is under way: whether the rows of the two products
/// before are still there when nodes make the rows after it.
///
/// # Safety
/// As [`may_go_ahead`].
pub unsafe fn may_be_made_anew(ops: &Ops, found: &Found) -> bool {
    let mut stages = found.stages().zip(found.stages().skip(1)).zip(found.stages().skip(2));
    stages.all(|((pair, of_gate), next)| {
        let (Origin::Gate(_), Origin::Nodes(nodes)) = (&of_gate.origin, &next.origin) else { return true };
        let mut places = Places { of: [const { None }; PLACES], count: 0 };
        // SAFETY: by the contract.
        let rows = found.of(pair).first().map(|first| unsafe { &*(**first).src[1] });
        // SAFETY: as above.
        rows.is_some_and(|rows| unsafe {
            places.add(RowsAt::of(rows, found.rows, false)) && places.add_nodes(ops, found.rows, nodes.all())
        }) && places.are_apart()
    })
}

/// Whether nodes, at most [`OPS`] of them, make `rows` rows each of the same rows of their sources, in whatever order rows are made.
///
/// # Safety
/// They are live and allocated, and so are their sources.
pub unsafe fn are_by_rows(ops: &Ops, nodes: &[Node], rows: usize) -> bool {
    let mut places = Places { of: [const { None }; PLACES], count: 0 };
    // SAFETY: by the contract.
    let known = nodes.len() <= OPS && unsafe { places.add_nodes(ops, rows, nodes) };
    // SAFETY: as above.
    let spares = |node: &Node| unsafe { places.spares_columns(ops, rows, *node) };
    known && places.are_apart() && nodes.iter().all(spares)
}

impl Places {
    /// Adds one, if it is known.
    fn add(&mut self, place: Option<RowsAt>) -> bool {
        let (known, Some(free)) = (place.is_some(), self.of.get_mut(self.count)) else { return false };
        *free = place;
        self.count += 1;
        known
    }

    fn all(&self) -> impl Iterator<Item = &RowsAt> {
        self.of.iter().flatten()
    }

    /// Adds rows and results of a stage, or what is made of the results if that is all that anybody sees of them.
    ///
    /// # Safety
    /// As [`may_go_ahead`].
    unsafe fn add_stage(&mut self, found: &Found, stage: &Stage) -> bool {
        let (products, gate) = (found.of(stage), found.gate(stage));
        let written = gate.as_slice();
        let written = if written.is_empty() { products } else { written };
        // SAFETY: by the contract.
        unsafe {
            let rows = products.first().map(|first| &*(**first).src[1]);
            rows.is_some_and(|rows| self.add(RowsAt::of(rows, found.rows, false)))
                && written.iter().all(|node| self.add(RowsAt::of(&**node, found.rows, true)))
        }
    }

    /// Adds what nodes make and read.
    ///
    /// # Safety
    /// As [`may_go_ahead`].
    unsafe fn add_nodes(&mut self, ops: &Ops, rows: usize, nodes: &[Node]) -> bool {
        for node in nodes {
            // SAFETY: by the contract.
            let Some(of) = (unsafe { sources(ops, &**node, rows) }) else { return false };
            let places = [Some(of.own), Some(of.first), of.second];
            if !places.into_iter().flatten().all(|place| self.add(Some(place))) {
                return false;
            }
        }
        true
    }

    /// Whether none of what is written is among the numbers that a node has for each column.
    ///
    /// # Safety
    /// As [`may_go_ahead`].
    unsafe fn spares_columns(&self, ops: &Ops, rows: usize, node: Node) -> bool {
        // SAFETY: by the contract.
        let of = unsafe { sources(ops, &*node, rows) };
        of.is_some_and(|of| of.columns.is_none_or(|columns| self.spare(&columns)))
    }

    /// Whether none of what is written is among these bytes.
    fn spare(&self, bytes: &Range<usize>) -> bool {
        !self.all().any(|place| place.written && meet(&place.bytes, bytes))
    }

    /// Whether no two have different rows at the same addresses, of which one is written.
    fn are_apart(&self) -> bool {
        self.all().enumerate().all(|(at, one)| self.all().skip(at + 1).all(|other| one.are_apart(other)))
    }
}
