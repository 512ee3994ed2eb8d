//! What a batch's runs computed, into the rows of the output: of one product, or of two and of what is made of both.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::core::Ticket;
use super::flight::Flight;
use super::made::Two;
use super::pair::Pair;
use super::results::{Computed, Reading, RUNS_MAX};
use super::stream::{Room, Stream, UnderWay, With};
use super::{Engine, Error, NpuWeight, Product};
use crate::chip::CORES_MAX;
use crate::observe::Stage;
use crate::plan::Step;
use crate::pool::Divided;

/// All steps of a batch.
const ALL: Range<usize> = 0..usize::MAX;

impl Engine {
    /// Waits for what was given and takes its results.
    pub(super) fn land(&mut self, stream: &mut Stream, landed: UnderWay) -> Result<(), Error> {
        let UnderWay { mut flight, with } = landed;
        let Some(Product { weight, .. }) = &stream.products[flight.product] else { return Ok(()) };
        let weight = *weight;
        self.arrive(weight, &flight)?;
        let more = match with {
            With::Alike(other) => return self.land_both(stream, Some(&flight), &other),
            With::After => return self.land_both(stream, None, &flight),
            With::Others(more) => more,
        };
        self.land_one(stream, &flight, ALL);
        for _ in 0..more {
            flight = flight.of_next(stream.columns(flight.product));
            self.land_one(stream, &flight, ALL);
        }
        Ok(())
    }

    /// Waits for what was given and takes its results, those of steps that are done while others are run.
    pub(super) fn land_by_steps(&mut self, stream: &mut Stream, flight: &Flight) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[flight.product] else { return Ok(()) };
        let (weight, steps) = (*weight, flight.batch.steps().count());
        let mut done = 0;
        while done < steps {
            let mut next = done + 1;
            self.wait(self.until(weight, flight, next))?;
            let is_done = |step: &usize| self.cores.are_done(self.until(weight, flight, step + 1));
            next += (next..steps).take_while(is_done).count();
            self.wait(self.until(weight, flight, next))?;
            self.sync(weight, flight, &(done..next))?;
            self.land_one(stream, flight, done..next);
            done = next;
        }
        Ok(())
    }

    /// When a flight's first `steps` steps are done.
    fn until(&self, weight: &NpuWeight, flight: &Flight, steps: usize) -> Ticket {
        let (plan, means) = (flight.plan(weight), self.means(weight.pipeline));
        let mut later = [0; CORES_MAX];
        for step in flight.batch.steps().skip(steps) {
            flight.block.schedule.runs(plan, means, &step).for_each(|run| later[run.core] += 1);
        }
        flight.ticket.before(later)
    }

    /// Puts what some steps of a batch have of a product into its output.
    fn land_one(&mut self, stream: &mut Stream, flight: &Flight, steps: Range<usize>) {
        let Some(Product { weight, activations, out, .. }) = &stream.products[flight.product] else { return };
        if flight.columns(weight).is_empty() {
            return;
        }
        let stats = self.stats.clone();
        let mut sums = std::mem::take(&mut stream.room.sums);
        let (computed, reading) = self.results(weight, flight, &steps, stream.room);
        let Flight { block, batch, .. } = flight;
        let (n, rows) = (weight.plan.n, block.first + batch.rows.start..block.first + batch.rows.end);
        stats.stage(Stage::Scale, || match activations.picks {
            Some(picks) => reading.scatter(&self.pool, &computed, out, picks.to(rows)),
            None => {
                // SAFETY: this thread alone reads results, and it has no other part of them.
                let out = unsafe { out.part(rows.start * n..rows.end * n) };
                let apart = stream.apart == Some(flight.product);
                let sums = apart.then(|| Divided::new(&mut sums[rows.start * n..rows.end * n]));
                reading.scale(&self.pool, &computed, out, sums.as_ref());
            }
        });
        stream.room.sums = sums;
    }

    /// Puts what is made of the results of two products that are alike into its place; of the first one they are there, or in its
    /// output already. What they are themselves is put into the outputs only where somebody is to see it.
    fn land_both(&mut self, stream: &mut Stream, one: Option<&Flight>, other: &Flight) -> Result<(), Error> {
        let first = other.product - 1;
        let Some(Pair { of: [_, second], .. }) = stream.pair(first) else { return Ok(()) };
        let weight = second.weight;
        if one.is_some() && other.portion.is_none() {
            self.arrive(weight, other)?;
        }
        let (fed, rows) = (first + 2, (other.block.first, other.block.rows));
        self.begin_ahead(stream, fed, rows)?;
        let mut ahead = self.lend(stream, fed, rows.0);
        let feed = ahead.as_mut().map(|ahead| ahead.feed()).transpose();
        let read = feed.map(|feed| {
            let Some(Pair { of: [first, second], between }) = stream.pair(first) else { return };
            let results = self.results(second.weight, other, &ALL, stream.room);
            let of_first = one.map(|one| self.results(first.weight, one, &ALL, stream.room));
            let two = Two {
                computed: [of_first.as_ref().map_or(&[], |(computed, _)| computed), &results.0],
                readings: [of_first.as_ref().map_or(&results.1, |(_, reading)| reading), &results.1],
                outs: [&first.out, &second.out],
                first: other.block.first,
                picks: first.activations.picks,
                between,
                feed,
            };
            self.stats.stage(Stage::Scale, || two.read(&self.pool));
        });
        let is_last = stream.pair(first).is_some_and(|pair| {
            other.block.first + other.batch.rows.end == pair.of[1].activations.rows
                && other.columns(weight).end == weight.plan.n
        });
        if let Some(ahead) = ahead {
            self.take_back(stream, ahead, &other.batch);
        }
        stream.made = is_last;
        read
    }

    /// Waits until a batch is computed and can be read.
    fn arrive(&mut self, weight: &NpuWeight, flight: &Flight) -> Result<(), Error> {
        self.wait(flight.ticket)?;
        self.sync(weight, flight, &ALL)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<(), Error> {
        let stats = self.stats.clone();
        stats.stage(Stage::Wait, || self.cores.wait(ticket))
    }

    /// Makes visible what some steps of a batch computed.
    fn sync(&mut self, weight: &NpuWeight, flight: &Flight, steps: &Range<usize>) -> Result<(), Error> {
        let Flight { block, batch, c, .. } = flight;
        let (plan, means, stats) = (flight.plan(weight), self.means(weight.pipeline), self.stats.clone());
        let scratch = &mut self.domains.get_mut(weight.share.domain).scratch;
        stats.stage(Stage::Sync, || {
            batch.steps().take(steps.end).skip(steps.start).try_for_each(|step| {
                let mut runs = block.schedule.runs(plan, means, &step);
                runs.try_for_each(|run| {
                    let piece = c.piece(batch, &step, run.c_bytes(plan));
                    stats.c_bytes.fetch_add(piece.bytes as u64, Relaxed);
                    scratch.c[run.core].sync_from_device(&piece)
                })
            })
        })
    }

    /// What the runs of some steps of a batch computed, in the order in which they were given, and how it is read.
    fn results<'a>(
        &'a self,
        weight: &'a NpuWeight,
        flight: &Flight,
        steps: &Range<usize>,
        room: &'a Room,
    ) -> ([Option<Computed<'a>>; RUNS_MAX], Reading<'a>) {
        let Flight { block, batch, c, .. } = flight;
        let (all, means, stack) = (flight.plan(weight), self.means(weight.pipeline), flight.stack(weight));
        let scratch = &self.domains.get(weight.share.domain).scratch;
        let runs = |step: Step| block.schedule.runs(all, means, &step).map(move |run| (step.clone(), run));
        let steps_of = batch.steps().take(steps.end).skip(steps.start);
        let mut computed = [const { None }; RUNS_MAX];
        for (slot, (step, run)) in computed.iter_mut().zip(steps_of.flat_map(runs)) {
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
