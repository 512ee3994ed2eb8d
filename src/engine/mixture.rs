//! The feed-forward blocks of a mixture's experts, as one stream: gate and up of an expert, what is made of them, and down,
//! whose rows are packed while the NPU is at gate and up of the next expert.
//!
//! ```text
//! CPU   …            | gate 0 and up 0 read and made one | its rows packed | gate 1 and up 1 read and … | …
//! NPU   … 0 | gate 1 | up 1 …………………………………………………………………………………………………| down 0 | gate 2 | up 2 …
//! ```

use super::prepare::grow;
use super::route::ROWS_MAX as FEW;
use super::stream::{Room, Stream};
use super::{Activations, Between, Engine, Error, NpuWeight, Product};
use crate::plan::ROWS_MAX;
use crate::pool::Divided;

/// Products of an expert: gate, up and down.
pub const BLOCK: usize = 3;

/// What rows of gate and up need that the CPU computes.
#[derive(Default)]
pub struct FewRows {
    /// 0, 1, 2 …
    numbers: Vec<u32>,
    /// Results of both, those of the first before the others.
    results: Vec<f32>,
}

impl Engine {
    /// Whether the block of an expert with so many rows can be done: gate and up are run alike and read together, or are both
    /// the CPU's, and nobody leaves the domain.
    pub fn does_block(&mut self, [gate, up, down]: [&NpuWeight; BLOCK], rows: usize) -> bool {
        let domain = gate.share.domain;
        let together = [up, down].iter().all(|weight| weight.share.domain == domain);
        let few = rows <= FEW && [gate, up].into_iter().all(|weight| self.is_for_cpu(weight, rows));
        together && gate.plan.n == up.plan.n && (few || self.is_read_together([gate, up, down], rows))
    }

    /// Whether gate and up of an expert are run by the NPU, alike, and read together.
    fn is_read_together(&mut self, [gate, up, down]: [&NpuWeight; BLOCK], rows: usize) -> bool {
        let mut blocks = (0..rows).step_by(ROWS_MAX).map(|first| ROWS_MAX.min(rows - first));
        self.run_alike([gate, up], rows)
            && blocks.all(|rows| self.joint_schedule([gate, up], Some(down), rows, false).is_some())
    }

    /// Does blocks for which [`Self::does_block`] says so: gate, up and down of an expert, one after the other. Down has no
    /// rows of its own, only which of those that are made it reads. Of gate and up nothing is written.
    ///
    /// # Errors
    /// The NPU's failure; results and what was to be made are then unspecified.
    pub fn expert_blocks(
        &mut self,
        products: &mut [Option<Product>],
        between: &Between,
    ) -> Result<(), Error> {
        self.drive(products, Some(between), |engine, stream| {
            let mut before = None;
            for first in (0..stream.products.len()).step_by(BLOCK) {
                let [Some(gate), Some(up), Some(down), ..] = &stream.products[first..] else { continue };
                let (weights, rows) = ([gate.weight, up.weight, down.weight], gate.activations.rows);
                // Asked anew: who does few rows may have changed by what was measured since.
                if engine.is_read_together(weights, rows) {
                    engine.pair(stream, first)?;
                } else if rows <= FEW {
                    engine.few_rows(stream, first)?;
                } else {
                    let what = format!("gate and up of {rows} rows in turns");
                    return Err(Error::Unsupported { chip: engine.chip.title, what });
                }
                if let Some(before) = before.replace(first) {
                    engine.fed(stream, before + 2)?;
                }
            }
            match before {
                Some(last) => engine.fed(stream, last + 2),
                None => Ok(()),
            }
        })
        .0
    }

    /// Makes what is made of gate and up, few rows, which the CPU computes; what is under way goes on meanwhile.
    fn few_rows(&mut self, stream: &mut Stream, first: usize) -> Result<(), Error> {
        let (Some(between), Some(pair)) = (stream.between, stream.pair(first)) else { return Ok(()) };
        let of = pair.of.map(|product| (product.weight, product.activations, product.same));
        let n = of[0].0.plan.n;
        let Room { prepared, cpu, few: FewRows { numbers, results }, .. } = &mut *stream.room;
        let rows = of[0].1.rows;
        let Some(picks) = of[0].1.picks else { return Ok(()) };
        (numbers.len()..rows).for_each(|number| numbers.push(number as u32));
        grow(results, 2 * rows * n);
        for ((weight, activations, same), results) in of.into_iter().zip(results.chunks_mut(rows * n)) {
            let activations = Activations { picks: Some(picks.in_order(numbers)), ..activations };
            let results = Divided::new(results);
            self.multiply_on_cpu(weight, &activations, same, &mut prepared[0], cpu, &results)?;
        }
        let (gate, up) = results[..2 * rows * n].split_at(rows * n);
        for (row, to) in picks.to(0..rows).iter().enumerate() {
            let place = *to as usize * n..(*to as usize + 1) * n;
            let at = row * n..(row + 1) * n;
            // SAFETY: this thread alone makes rows, and reads none of them meanwhile.
            between.make([&gate[at.clone()], &up[at]], unsafe { between.out.part(place) });
        }
        for product in stream.products[first..first + 2].iter_mut().flatten() {
            product.routed = true;
        }
        Ok(())
    }
}
