//! Products that follow from each other, with what the graph has between them: nodes that make each row of the same row of
//! others ([`super::tile`]), and an activation times a gate. They go to the device as a whole, so that tiles of rows can go
//! through all of them, one behind the other.

mod apart;
mod find;

use std::ops::Range;

use ggml_sys::sys;
use parking_lot::Mutex;

use self::apart::{are_by_rows, may_be_made_anew, may_go_ahead};
use self::find::{find, Found, Node, Nodes, Origin, Questions, STAGES};
use super::backend::{FAILED, SUCCESS};
use super::gated;
use super::group::Group;
use super::registry::State;
use super::tensor;
use crate::host::device::{Between, Job, Link, CHAIN, CHAIN_ROWS};
use crate::host::product::Product;
use crate::pool::Divided;

/// The nodes of all links, which threads share.
struct Links([Nodes; STAGES]);

// SAFETY: nobody writes to the nodes themselves while they are shared.
unsafe impl Sync for Links {}

impl Links {
    fn nodes(&self, link: usize) -> &[Node] {
        self.0[link].all()
    }
}

impl Group<'_> {
    /// Does the products that follow from each other from the first node on, with all that is between; how many nodes that are,
    /// and the host's status. `None` if there are none, or the device does not do them as a whole: nothing is done then.
    ///
    /// # Safety
    /// As [`Self::take`], of all nodes.
    pub unsafe fn chain(&mut self, nodes: &[Node]) -> Option<(usize, i32)> {
        // SAFETY: null or live by the contract.
        let first = unsafe { nodes.first()?.as_ref() }?;
        // Where a gate waits, its product may be next.
        if first.op != self.state.host.ops.mul_mat || first.ne[1] < CHAIN_ROWS as i64 || self.gated.is_some()
        {
            return None;
        }
        // SAFETY: by the contract.
        let found = unsafe { self.find(nodes) }?;
        let status = self.finish();
        if status != SUCCESS {
            return Some((0, status));
        }
        for node in &nodes[..found.nodes] {
            // SAFETY: by the contract.
            self.wrote(unsafe { &**node });
        }
        // SAFETY: by the contract; what waited is done.
        let done = unsafe { self.run(&found) }?;
        Some((found.nodes, if done { SUCCESS } else { FAILED }))
    }

    /// Does nodes that have a norm among them, and many rows each of the same rows of others, some rows at a time; whether they are
    /// done. `None` if they are no such nodes.
    ///
    /// # Safety
    /// As [`Self::take`], of all nodes; what waited before them is done.
    pub(super) unsafe fn by_rows(&self, nodes: &[Node]) -> Option<bool> {
        let (state, [norm, ..]) = (self.state, self.state.host.ops.by_row);
        // SAFETY: live by the contract.
        let rows = unsafe { nodes.first()?.as_ref() }?.ne[1] as usize;
        // SAFETY: as above.
        let is_norm = |node: &Node| unsafe { (**node).op == norm };
        // SAFETY: as above.
        let are_by_rows = || unsafe { are_by_rows(&state.host.ops, nodes, rows) };
        if rows < CHAIN_ROWS || !nodes.iter().any(is_norm) || !are_by_rows() {
            return None;
        }
        let mut links = Links([Nodes::NONE; STAGES]);
        links.0[0] = Nodes::of(nodes)?;
        // SAFETY: as above; each row is made once.
        let make = |link: usize, range: Range<usize>| unsafe {
            compute_rows(state, links.nodes(link), rows, &range)
        };
        Some(self.registered.device.make_rows(rows, &make))
    }

    /// # Safety
    /// As [`Self::chain`].
    unsafe fn find(&self, nodes: &[Node]) -> Option<Found> {
        let (state, device) = (self.state, &self.registered.device);
        // SAFETY: asked of live nodes with allocated sources alone.
        let takes = |node: &sys::ggml_tensor| unsafe {
            tensor::taken_product(state, device, node).is_ok_and(|product| is_plain(&product))
        };
        let is_gate_of = |node: &sys::ggml_tensor, two: [Node; 2]| {
            // SAFETY: as above; the graph is the host's, which the node is of. What others see is to be written where it belongs,
            // and so may not be where the next product's results are.
            unsafe {
                gated::node(&state.host, node).is_some_and(|gated| {
                    gated.is_swapped(two).is_some() && !gated.are_seen(&state.host, self.graph)
                })
            }
        };
        let skips = |node: &sys::ggml_tensor| state.host.skips(node);
        let ops = &state.host.ops;
        let ask = Questions { ops, skips: &skips, takes: &takes, is_gate_of: &is_gate_of };
        // SAFETY: by the contract.
        unsafe { find(nodes, &ask).filter(|found| may_go_ahead(ops, found)) }
    }

    /// Does what was found; `None` if the device does not do it as a whole, or whether it is done.
    ///
    /// # Safety
    /// As [`Self::chain`], of what was found; nothing waits.
    unsafe fn run(&self, found: &Found) -> Option<bool> {
        let (state, device) = (self.state, &self.registered.device);
        let mut products = [const { None::<Product> }; CHAIN];
        for (product, node) in products.iter_mut().zip(found.products()) {
            // SAFETY: by the contract.
            *product = unsafe { tensor::taken_product(state, device, &**node) }.ok();
        }
        let mut jobs = [const { None::<Job> }; CHAIN];
        for ((job, product), node) in jobs.iter_mut().zip(&products).zip(found.products()) {
            // SAFETY: by the contract; nobody else has the results.
            let of = unsafe { tensor::jobs(state, &**node, product.as_ref()?) }?.next()?;
            if !of.weight.constant {
                return None;
            }
            *job = Some(of);
        }
        let (mut links, mut nodes) = ([const { None::<Link> }; STAGES], Links([Nodes::NONE; STAGES]));
        let mut link = 0;
        let (mut gated, mut first_of_two) = (None, 0);
        for stage in found.stages() {
            for (at, job) in jobs[stage.first..][..stage.count].iter_mut().flatten().enumerate() {
                job.same = at > 0;
                if stage.first > 0 {
                    // They are still to be made.
                    job.activations.data = &[];
                }
            }
            match stage.origin {
                Origin::Before => (),
                Origin::Gate(gate) => {
                    // SAFETY: live by the contract.
                    gated = Some(unsafe { gated::node(&state.host, &*gate) }?);
                    first_of_two = stage.first - 2;
                }
                Origin::Nodes(of) => {
                    let elements = products[stage.first].as_ref()?.activation_elements();
                    // SAFETY: live by the contract; so many elements, whose rows are read when they are made.
                    let rows = unsafe {
                        let rows = &*(*found.products()[stage.first]).src[1];
                        Divided::at(rows.data.cast::<f32>(), elements)
                    };
                    nodes.0[link] = of;
                    links[link] = Some(Link { before: stage.first, rows });
                    link += 1;
                }
            }
        }
        let mut between = match &mut gated {
            Some(gated) => {
                let two = &found.products()[first_of_two..][..2];
                let swapped = gated.is_swapped([two[0], two[1]])?;
                // SAFETY: by the contract, of the graph's nodes.
                let kept = unsafe {
                    let user = found.products()[first_of_two + 2];
                    gated.is_kept(&state.host, self.graph, user) || !may_be_made_anew(&state.host.ops, found)
                };
                // SAFETY: the results are nobody else's.
                let between = unsafe { gated.between_products(first_of_two, swapped, false) };
                Some(Between { feeds: true, kept, ..between })
            }
            None => None,
        };
        let all = found.rows;
        // SAFETY: live nodes that were looked at; the rows of their sources are there, and nobody else writes to them.
        let make =
            |link: usize, rows: Range<usize>| unsafe { compute_rows(state, nodes.nodes(link), all, &rows) };
        device.chain(&mut jobs[..found.products().len()], &links[..link], between.as_mut(), &make)
    }
}

/// Computes some of the rows of nodes, of `all` rows; whether the host did.
///
/// # Safety
/// As [`super::cpu::HostCpu::compute_rows`].
unsafe fn compute_rows(state: &State, nodes: &[Node], all: usize, rows: &Range<usize>) -> bool {
    let free = state.row_cpus.iter().find_map(Mutex::try_lock);
    let mut cpu = free.unwrap_or_else(|| state.row_cpus[0].lock());
    // SAFETY: by the contract.
    unsafe { cpu.compute_rows(&state.host, nodes, all, rows) == SUCCESS }
}

/// Whether the product is of one batch, and of some rows.
fn is_plain(product: &Product) -> bool {
    !product.is_empty() && product.batches().nth(1).is_none()
}
