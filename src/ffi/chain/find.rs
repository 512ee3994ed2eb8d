//! Which of a graph's nodes are products that follow from each other.

use ggml_sys::{sys, Ops};

use super::super::tile::{sources, OPS};
use crate::host::device::{CHAIN, GROUP};

/// The most stages.
pub const STAGES: usize = 5;

/// A node of the host's.
pub type Node = *mut sys::ggml_tensor;

/// Nodes that make rows, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nodes {
    of: [Node; OPS],
    count: usize,
}

impl Nodes {
    /// None.
    pub const NONE: Self = Self { of: [std::ptr::null_mut(); OPS], count: 0 };

    /// These; `None` if there are too many.
    pub fn of(nodes: &[Node]) -> Option<Self> {
        let mut of = Self::NONE;
        nodes.iter().all(|node| of.push(*node)).then_some(of)
    }

    /// All of them.
    pub fn all(&self) -> &[Node] {
        &self.of[..self.count]
    }

    /// One more; false if there is no room.
    fn push(&mut self, node: Node) -> bool {
        let Some(place) = self.of.get_mut(self.count) else { return false };
        *place = node;
        self.count += 1;
        true
    }
}

/// Where the rows of a stage come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From before the chain.
    Before,
    /// These nodes make them.
    Nodes(Nodes),
    /// They are an activation times a gate, of the two products before.
    Gate(Node),
}

/// Products of the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Where these come from.
    pub origin: Origin,
    /// The first of the chain's products that is of this stage, and how many are.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// Products that follow from each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    products: [Node; CHAIN],
    count: usize,
    stages: [Option<Stage>; STAGES],
    /// Rows of all.
    pub rows: usize,
    /// So many of the graph's nodes, from the first product to the last.
    pub nodes: usize,
}

impl Found {
    /// All of them.
    pub fn products(&self) -> &[Node] {
        &self.products[..self.count]
    }

    /// All stages.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().flatten()
    }

    /// The products of a stage.
    pub fn of(&self, stage: &Stage) -> &[Node] {
        &self.products[stage.first..stage.first + stage.count]
    }

    /// What is made of a stage's two products, if that is the rows of the next one.
    pub fn gate(&self, stage: &Stage) -> Option<Node> {
        self.stages().find_map(|next| match next.origin {
            Origin::Gate(gate) if next.first == stage.first + stage.count => Some(gate),
            _ => None,
        })
    }

    fn last(&self) -> Option<&Stage> {
        self.stages().last()
    }
}

/// What is asked of a node.
pub struct Questions<'q> {
    pub ops: &'q Ops,
    /// Whether it is to be passed over.
    pub skips: &'q dyn Fn(&sys::ggml_tensor) -> bool,
    /// Whether it is a product of one batch that the device takes, by a weight.
    pub takes: &'q dyn Fn(&sys::ggml_tensor) -> bool,
    /// Whether it is an activation times a gate, of these two.
    pub is_gate_of: &'q dyn Fn(&sys::ggml_tensor, [Node; 2]) -> bool,
}

/// What comes after the last product so far.
enum After {
    Nodes(Nodes),
    Gate(Node),
}

/// The products that follow from each other from the first node on; `None` if there is no stage whose rows nodes make.
///
/// # Safety
/// The nodes are null or live, and so are their sources; all are allocated.
pub unsafe fn find(nodes: &[Node], ask: &Questions) -> Option<Found> {
    let ops = ask.ops;
    // SAFETY: by the contract.
    let first = unsafe { nodes.first()?.as_ref() }.filter(|node| node.op == ops.mul_mat)?;
    let rows = usize::try_from(first.ne[1]).ok()?;
    let mut found =
        Found { products: [std::ptr::null_mut(); CHAIN], count: 0, stages: [None; STAGES], rows, nodes: 0 };
    let mut after = After::Nodes(Nodes::NONE);
    for (at, node) in nodes.iter().enumerate() {
        // SAFETY: by the contract.
        let Some(tensor) = (unsafe { node.as_ref() }) else { break };
        if (ask.skips)(tensor) || tensor.op == ops.none || ops.views.contains(&tensor.op) {
            continue;
        }
        if tensor.op == ops.mul_mat {
            let is_one = tensor.ne[1] == first.ne[1] && (ask.takes)(tensor);
            // SAFETY: by the contract.
            if !is_one || !unsafe { found.add(*node, &after) } {
                break;
            }
            (after, found.nodes) = (After::Nodes(Nodes::NONE), at + 1);
            continue;
        }
        // SAFETY: by the contract.
        if !unsafe { goes_on(&found, &mut after, *node, ask) } {
            break;
        }
    }
    let has_link = found.stages().any(|stage| matches!(stage.origin, Origin::Nodes(_)));
    has_link.then_some(found)
}

/// Whether the node, which is no product, comes after the last one.
///
/// # Safety
/// As [`find`].
unsafe fn goes_on(found: &Found, after: &mut After, node: Node, ask: &Questions) -> bool {
    // SAFETY: by the contract.
    let tensor = unsafe { &*node };
    let After::Nodes(between) = after else { return false };
    if between.count == 0 && found.stages().all(|stage| found.gate(stage).is_none()) {
        if let Some(&[one, other]) = found.last().map(|last| found.of(last)) {
            if (ask.is_gate_of)(tensor, [one, other]) {
                *after = After::Gate(node);
                return true;
            }
        }
    }
    // SAFETY: as above.
    unsafe { sources(ask.ops, tensor, found.rows) }.is_some() && between.push(node)
}

impl Found {
    /// Adds a product, whose rows are the last stage's or what came after that; whether it is one of the chain.
    ///
    /// # Safety
    /// As [`find`].
    unsafe fn add(&mut self, node: Node, after: &After) -> bool {
        // SAFETY: a product has rows.
        let reads = |node: Node| unsafe { (*node).src[1] };
        if self.count == CHAIN {
            return false;
        }
        let number = self.stages().count();
        let last = number.checked_sub(1).and_then(|last| self.stages[last].as_mut());
        let origin = match (last, after) {
            (None, _) => Some(Origin::Before),
            (Some(last), After::Nodes(between)) if between.count == 0 => {
                if reads(self.products[last.first]) != reads(node) || last.count == GROUP {
                    return false;
                }
                last.count += 1;
                None
            }
            (Some(_), After::Nodes(between)) if between.all().contains(&reads(node)) => {
                Some(Origin::Nodes(*between))
            }
            (Some(_), After::Gate(gate)) if *gate == reads(node) => Some(Origin::Gate(*gate)),
            _ => return false,
        };
        if let Some(origin) = origin {
            let Some(place) = self.stages.get_mut(number) else { return false };
            *place = Some(Stage { origin, first: self.count, count: 1 });
        }
        self.products[self.count] = node;
        self.count += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::test_nodes::{graph, ops, Node as Kind, OTHER};
    use super::*;

    /// How the nodes `kinds` are found: where the stages begin among the products, with as many nodes before as make their rows, and how
    /// many nodes are taken. A node of another kind is an activation times a gate.
    fn found(kinds: &[Kind]) -> Option<(Vec<(usize, usize)>, usize)> {
        let mut tensors = graph(kinds);
        for (at, tensor) in tensors.iter_mut().enumerate() {
            tensor.nb = [4, 32, 128, 128];
            tensor.data = std::ptr::without_provenance_mut(0x10_0000 + at * 0x1000);
        }
        let nodes: Vec<Node> = tensors.iter_mut().map(std::ptr::from_mut).collect();
        let is_gate_of = |node: &sys::ggml_tensor, [one, other]: [Node; 2]| {
            node.op == OTHER && node.src[0] == one && node.src[1] == other
        };
        let ask = Questions { ops: &ops(), skips: &|_| false, takes: &|_| true, is_gate_of: &is_gate_of };
        // SAFETY: all are live.
        let found = unsafe { find(&nodes[1..], &ask) }?;
        let stages = found.stages().map(|stage| match stage.origin {
            Origin::Before => (stage.first, 0),
            Origin::Nodes(nodes) => (stage.first, nodes.all().len()),
            Origin::Gate(_) => (stage.first, usize::MAX),
        });
        Some((stages.collect(), found.nodes))
    }

    #[test]
    fn a_layer_is_found_from_one_attention_to_the_next() {
        // Rows; O, its sum with them, a norm; gate, up, one times the other; down, a sum, a norm; Q, seen as heads, and K; the
        // rotation of Q.
        let layer = [
            Kind::other(&[]),
            Kind::product(0),
            Kind::sum(1, 0),
            Kind::norm(2),
            Kind::product(3),
            Kind::product(3),
            Kind::other(&[4, 5]),
            Kind::product(6),
            Kind::sum(7, 2),
            Kind::norm(8),
            Kind::product(9),
            Kind::view(10),
            Kind::product(9),
            Kind::other(&[11]),
        ];
        let whole = vec![(0, 0), (1, 2), (3, usize::MAX), (4, 2)];
        assert_eq!(found(&layer), Some((whole.clone(), 12)));
        // Of nothing that comes after the last product.
        assert_eq!(found(&layer[..10]), Some((whole[..3].to_vec(), 7)));
        assert_eq!(found(&layer[..4]), None, "no product follows");
        let mut others = layer.clone();
        others[7] = Kind::product(3);
        assert_eq!(found(&others), Some((whole[..2].to_vec(), 5)), "what the gate makes nobody multiplies");
        let mut far = layer.clone();
        far[3] = Kind::other(&[2]);
        assert_eq!(found(&far), None, "another op makes the rows");
        let mut old = layer;
        old[4] = Kind::product(0);
        assert_eq!(found(&old), None, "rows from before");
    }

    #[test]
    fn as_many_products_and_stages_are_taken_as_there_is_room_for() {
        let mut kinds = vec![Kind::other(&[])];
        for _ in 0..2 * STAGES {
            let last = kinds.len() - 1;
            kinds.extend([Kind::product(last), Kind::norm(last + 1)]);
        }
        let (stages, nodes) = found(&kinds).unwrap();
        assert_eq!((stages.len(), nodes), (STAGES, 2 * STAGES - 1));
        let mut many = vec![Kind::other(&[]), Kind::product(0), Kind::norm(1)];
        many.extend(vec![Kind::product(2); GROUP + 1]);
        let (stages, nodes) = found(&many).unwrap();
        assert_eq!((stages, nodes), (vec![(0, 0), (1, 1)], 2 + GROUP));
        let mut long = vec![Kind::other(&[]), Kind::product(0)];
        long.extend((0..=OPS).map(|at| Kind::norm(1 + at)));
        long.push(Kind::product(long.len() - 1));
        assert_eq!(found(&long), None, "more nodes between than there is room for");
    }
}
