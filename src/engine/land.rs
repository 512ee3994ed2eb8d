//! What a batch's runs computed, into the rows of the output: of one product, or of two and of what is made of both.

use std::sync::atomic::Ordering::Relaxed;

use super::block::Flight;
use super::pair::Pair;
use super::results::{Computed, Reading, Two, RUNS_MAX};
use super::stream::{Room, Stream, UnderWay, With};
use super::{Engine, Error, NpuWeight, Product};
use crate::observe::Stage;
use crate::plan::Step;
use crate::pool::Divided;

impl Engine {
    /// Waits for what was given and takes its results.
    pub(super) fn land(&mut self, stream: &mut Stream, landed: UnderWay) -> Result<(), Error> {
        let UnderWay { mut flight, with } = landed;
        let Some(Product { weight, .. }) = &stream.products[flight.product] else { return Ok(()) };
        let weight = *weight;
        self.arrive(weight, &flight)?;
        let more = match with {
            With::Alike(other) => return self.land_both(stream, [flight, other]),
            With::Others(more) => more,
        };
        self.land_one(stream, &flight);
        for _ in 0..more {
            flight = flight.of_next(stream.columns(flight.product));
            self.land_one(stream, &flight);
        }
        Ok(())
    }

    /// Puts what a batch has of a product into its output.
    fn land_one(&mut self, stream: &mut Stream, flight: &Flight) {
        let Some(Product { weight, activations, out, .. }) = &stream.products[flight.product] else { return };
        if flight.columns(weight).is_empty() {
            return;
        }
        let stats = self.stats.clone();
        let mut sums = std::mem::take(&mut stream.room.sums);
        let (computed, reading) = self.results(weight, flight, stream.room);
        let Flight { block, batch, .. } = flight;
        let (n, rows) = (weight.plan.n, block.first + batch.rows.start..block.first + batch.rows.end);
        stats.stage(Stage::Scale, || match activations.picks {
            Some(picks) => reading.scatter(&self.pool, &computed, out, picks.to(rows)),
            None => {
                // SAFETY: this thread alone reads results, and it has no other part of them.
                let out = unsafe { out.part(rows.start * n..rows.end * n) };
                let is_woven = stream.woven == Some(flight.product);
                let sums = is_woven.then(|| Divided::new(&mut sums[rows.start * n..rows.end * n]));
                reading.scale(&self.pool, &computed, out, sums.as_ref());
            }
        });
        stream.room.sums = sums;
    }

    /// Puts what is made of the results of two products that are alike, of which the first one's are there, into its place; what
    /// they are themselves only where somebody is to see it.
    fn land_both(&mut self, stream: &mut Stream, flights: [Flight; 2]) -> Result<(), Error> {
        let [one, other] = &flights;
        let Some(Pair { of: [first, second], between }) = stream.pair(one.product) else { return Ok(()) };
        if other.portion.is_none() {
            self.arrive(second.weight, other)?;
        }
        let stats = self.stats.clone();
        let results =
            [self.results(first.weight, one, stream.room), self.results(second.weight, other, stream.room)];
        let two = Two {
            computed: [&results[0].0, &results[1].0],
            readings: [&results[0].1, &results[1].1],
            outs: [&first.out, &second.out],
            first: one.block.first,
            picks: first.activations.picks,
            between,
        };
        stats.stage(Stage::Scale, || two.read(&self.pool));
        let is_last = one.block.first + one.batch.rows.end == first.activations.rows
            && one.columns(first.weight).end == first.weight.plan.n;
        stream.made = is_last;
        Ok(())
    }

    /// Waits until a batch is computed and can be read.
    fn arrive(&mut self, weight: &NpuWeight, flight: &Flight) -> Result<(), Error> {
        let Flight { block, batch, c, ticket, .. } = flight;
        let (plan, means, stats) = (flight.plan(weight), self.means(weight.pipeline), self.stats.clone());
        stats.stage(Stage::Wait, || self.cores.wait(*ticket))?;
        let scratch = &mut self.domains.get_mut(weight.share.domain).scratch;
        stats.stage(Stage::Sync, || {
            batch.steps().try_for_each(|step| {
                let mut runs = block.schedule.runs(plan, means, &step);
                runs.try_for_each(|run| {
                    let piece = c.piece(batch, &step, run.c_bytes(plan));
                    stats.c_bytes.fetch_add(piece.bytes as u64, Relaxed);
                    scratch.c[run.core].sync_from_device(&piece)
                })
            })
        })
    }

    /// What the runs of a batch computed, in the order in which they were given, and how it is read.
    fn results<'a>(
        &'a self,
        weight: &'a NpuWeight,
        flight: &Flight,
        room: &'a Room,
    ) -> ([Option<Computed<'a>>; RUNS_MAX], Reading<'a>) {
        let Flight { block, batch, c, .. } = flight;
        let (all, means, stack) = (flight.plan(weight), self.means(weight.pipeline), flight.stack(weight));
        let scratch = &self.domains.get(weight.share.domain).scratch;
        let runs = |step: Step| block.schedule.runs(all, means, &step).map(move |run| (step.clone(), run));
        let mut computed = [const { None }; RUNS_MAX];
        for (slot, (step, run)) in computed.iter_mut().zip(batch.steps().flat_map(runs)) {
            let c = scratch.c[run.core].read(&c.piece(batch, &step, run.c_bytes(all)));
            // Blocks of columns lie one after the other.
            let own = run.within(&stack).map(|(of, first)| (all.dtype.c().bytes(first * of.m), of));
            *slot = own.map(|(at, run)| Computed { step, run, c: &c[at..] });
        }
        let plan = &weight.plan;
        let reading = Reading {
            plan,
            batch: batch.rows.clone(),
            columns: flight.columns(weight),
            block: self.mode.native_ac.then_some(plan.limits.c_block),
            planes: weight.pipeline.planes(),
            row_scales: &room.packed.slots[block.slot].scales,
            rows: block.rows,
            column_scales: &weight.scales,
        };
        (computed, reading)
    }
}
