//! Products that follow from each other, all of a layer between two attentions: its rows go through them in tiles, one behind
//! the other, so that the NPU runs a tile while the CPU reads the one before, does to its rows what the host's graph has
//! between the products (sums, norms), and packs them for the next product.
//!
//! ```text
//! CPU   … | O 0 read, summed, normed, packed | O 1 read, summed, normed, packed | gate 0 and up 0 read …
//! NPU   … | O 1 ………………………………………………………………| gate 0, up 0 ……………………………………………………| gate 1, up 1 …
//! ```
//!
//! A *stage* is the products of the same rows. What is written to the host's memory comes in the order of the graph's nodes,
//! but that of one tile the last tile's of the stage before is still to come: who asks for a chain has looked at the addresses.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::on_cpu::has_kernel;
use super::pair::{joint_c_bytes, Between};
use super::prepare::Known;
use super::product::Activations;
use super::stream::Stream;
use super::together::Aim;
use super::{schedule_key, Engine, Error, NpuWeight, Product, ScheduleKey, SCHEDULES_MAX};
use crate::observe::Stage as Of;
use crate::plan::{sizes_of_tiles, Schedule};
use crate::pool::Divided;

/// The most products of a chain.
pub const CHAIN: usize = 8;
/// The fewest rows: of fewer a tile is not worth what B costs, which streams by once more for each.
pub const CHAIN_ROWS: usize = 96;

/// Rows of a link that a thread makes at a time, so that they are in its cache from one node to the next.
const ROWS_AT_ONCE: usize = 32;

/// As many tiles rows are packed of as they are made: the first ones are taken before the last ones come.
const TILES_AHEAD: usize = 2;

/// The products and their rows, where stages begin, and bytes of C of a pair.
pub(super) type ChainKey = ([Option<ScheduleKey>; CHAIN], [usize; CHAIN], usize);

/// Rows that are made of the results of the products before.
pub struct Link<'a> {
    /// The first of the products that have these rows.
    pub before: usize,
    /// From the first element of row 0 to the last of the last row.
    pub rows: Divided<'a, f32>,
}

/// Products in the order of the graph, and what makes their rows.
pub struct Chain<'c, 'p> {
    /// All of them; those of the first stage alone have rows of their own, the others only know how many and how long.
    pub products: &'c mut [Option<Product<'p>>],
    /// What comes between them, in their order.
    pub links: &'c [Option<Link<'p>>],
    /// What makes the rows of a link.
    pub make: &'c Make<'c>,
}

/// Makes some rows of a link, at most [`ROWS_AT_ONCE`] of them, whose sources are there; other threads make others meanwhile.
/// False if that failed.
pub type Make<'a> = dyn Fn(usize, Range<usize>) -> bool + Sync + 'a;

/// How a chain ended.
#[derive(Debug)]
pub enum Chained {
    /// All is done.
    Done,
    /// The NPU failed; our kernels did what was left, and marked the products that had a part in that.
    Recovered(Error),
    /// Not even that could be done: results are missing.
    Broken(Error),
}

/// Where the rows of a stage are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    /// They came with the products.
    Own,
    /// They are those of a link.
    Link(usize),
    /// They are made of the two products before.
    Made,
}

/// Products of the same rows.
#[derive(Debug, Clone, PartialEq)]
struct Stage {
    products: Range<usize>,
    origin: Origin,
}

/// The stages of `count` products.
fn stages<'a>(
    count: usize,
    links: &'a [Option<Link>],
    between: Option<&'a Between>,
) -> impl Iterator<Item = Stage> + 'a {
    let fed = between.and_then(Between::fed);
    let origin = move |at: usize| match links
        .iter()
        .position(|link| link.as_ref().is_some_and(|link| link.before == at))
    {
        Some(link) => Some(Origin::Link(link)),
        None if fed == Some(at) => Some(Origin::Made),
        None => (at == 0).then_some(Origin::Own),
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let origin_of_stage = (start < count).then(|| origin(start))??;
        at = (start + 1..count).find(|next| origin(*next).is_some()).unwrap_or(count);
        Some(Stage { products: start..at, origin: origin_of_stage })
    })
}

/// How far a chain is.
#[derive(Default)]
struct Progress {
    /// Tiles of stages that are begun, but for the last of them.
    begun: usize,
    /// The rows of the last one are made.
    is_made: bool,
    /// A link failed, and nothing can be done.
    is_broken: bool,
}

impl Engine {
    /// Rows of a tile, if the products are to go through the NPU as a chain: if that keeps it for about as short as possible, and
    /// our kernels can do what it fails at.
    pub fn chain_tile(
        &mut self,
        products: &[Option<Product>],
        links: &[Option<Link>],
        between: Option<&Between>,
    ) -> Option<usize> {
        let rows = products.first()?.as_ref()?.activations.rows;
        let can = |product: &Option<Product>| {
            product.as_ref().is_some_and(|Product { weight, activations, .. }| {
                has_kernel(weight) && activations.rows == rows && activations.picks.is_none()
            })
        };
        if rows < CHAIN_ROWS || products.len() > CHAIN || !products.iter().all(can) {
            return None;
        }
        let pair = between.map(|between| &products[between.first..][..2]);
        if pair.is_some_and(|pair| !self.are_alike(pair)) {
            return None;
        }
        let mut key: ChainKey = ([None; CHAIN], [CHAIN; CHAIN], joint_c_bytes(&self.domains));
        key.0.iter_mut().zip(products.iter().flatten()).for_each(|(key, product)| {
            *key = Some(schedule_key(product.weight, rows));
        });
        let starts = stages(products.len(), links, between).map(|stage| stage.products.start);
        key.1.iter_mut().zip(starts).for_each(|(key, start)| *key = start);
        // Whether weights lie one after the other is the same in all layers, or costs a few runs.
        if let Some(known) = self.chains.get(&key) {
            return *known;
        }
        if self.chains.len() >= SCHEDULES_MAX {
            self.chains.clear();
        }
        let tile = self.best_tile(products, links, between, rows);
        self.chains.insert(key, tile);
        tile
    }

    fn best_tile(
        &mut self,
        products: &[Option<Product>],
        links: &[Option<Link>],
        between: Option<&Between>,
        rows: usize,
    ) -> Option<usize> {
        let most: f64 = products
            .iter()
            .flatten()
            .map(|product| {
                let planned = self.planned(product.weight);
                Schedule::most_in_chain(planned, &self.chip.timing, rows)
            })
            .sum();
        let mut best = None;
        for size in sizes_of_tiles(rows) {
            let mut ns = 0.0;
            for tile in tiles(rows, size) {
                for stage in stages(products.len(), links, between) {
                    ns += self.stage_ns(
                        &products[stage.products.clone()],
                        is_pair(&stage, between),
                        tile.len(),
                    )?;
                }
            }
            if ns <= best.map_or(most, |(least, _)| least) {
                best = Some((ns, size));
            }
        }
        best.map(|(_, size)| size)
    }

    /// The NPU's time of a tile of a stage; `None` if a pair cannot be read together.
    fn stage_ns(&mut self, products: &[Option<Product>], is_pair: bool, rows: usize) -> Option<f64> {
        if is_pair {
            let [Some(one), Some(other), ..] = products else { return None };
            return Some(self.chained_pair([one.weight, other.weight], rows)?.pair_ns());
        }
        let (mut at, mut ns) = (0, 0.0);
        while at < products.len() {
            let (count, together) = self.together(&products[at..], rows, Aim::Shortest);
            ns += match together {
                Some(together) => together.ns(),
                None => self.chained(products[at].as_ref()?.weight, rows)?.ns,
            };
            at += count;
        }
        Some(ns)
    }

    /// The schedule of a tile of one product.
    pub(super) fn chained(&mut self, weight: &NpuWeight, rows: usize) -> Option<Schedule> {
        let key = schedule_key(weight, rows);
        if let Some(known) = self.chained.get(&key) {
            return *known;
        }
        if self.chained.len() >= SCHEDULES_MAX {
            self.chained.clear();
        }
        let planned = self.planned(weight);
        let found = Schedule::shortest(planned, &self.chip.timing, rows);
        self.chained.insert(key, found);
        found
    }

    /// Does all products of a chain, in tiles of `size` rows.
    pub fn chain(&mut self, chain: &mut Chain, between: Option<&mut Between>, size: usize) -> Chained {
        let Chain { products, links, make } = chain;
        let (links, mut progress) = (*links, Progress::default());
        let (result, made) = self.drive(products, between.as_deref(), |engine, stream| {
            engine.flow(stream, links, make, size, &mut progress)
        });
        let (made, chained) = match result {
            Ok(()) => (made.0, Chained::Done),
            Err(error) if progress.is_broken => (false, Chained::Broken(error)),
            Err(error) => {
                match self.finish_on_cpu(products, between.as_deref(), (links, make), size, &progress) {
                    true => (true, Chained::Recovered(error)),
                    false => (false, Chained::Broken(error)),
                }
            }
        };
        if let Some(between) = between {
            between.made = made;
        }
        chained
    }

    fn flow(
        &mut self,
        stream: &mut Stream,
        links: &[Option<Link>],
        make: &Make,
        size: usize,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let Some(rows) =
            stream.products.first().and_then(Option::as_ref).map(|product| product.activations.rows)
        else {
            return Ok(());
        };
        let between = stream.between;
        for product in stream.products.iter().flatten() {
            self.count_bytes(product.weight, rows);
        }
        for stage in stages(stream.products.len(), links, between) {
            if is_pair(&stage, between) && tiles(rows, size).count() == TILES_AHEAD {
                self.feed(stream, stage.products.end, None);
            }
            for tile in tiles(rows, size) {
                progress.is_made = false;
                progress.begun += 1;
                if let Origin::Link(link) = stage.origin {
                    if tile.len() == rows {
                        self.settle(stream)?;
                    }
                    if !self.link(make, link, tile.clone()) {
                        progress.is_broken = true;
                        return Err(Error::Link);
                    }
                }
                progress.is_made = true;
                self.tile(stream, links, &stage, tile)?;
            }
        }
        progress.begun += 1;
        Ok(())
    }

    /// Of a tile whose schedule is gone, which the chain had when it was looked for.
    fn no_tiles(&self) -> Error {
        Error::Unsupported { chip: self.chip.title, what: "these products in tiles".to_owned() }
    }

    /// Has some of the rows of a link made, by all threads; whether they are.
    pub fn link(&self, make: &Make, link: usize, rows: Range<usize>) -> bool {
        let size = rows.len().div_ceil(2 * self.pool.threads()).clamp(1, ROWS_AT_ONCE);
        let is_made = AtomicBool::new(true);
        self.stats.stage(Of::Link, || {
            self.pool.run(rows.len().div_ceil(size), |index| {
                let first = rows.start + index * size;
                if !make(link, first..rows.end.min(first + size)) {
                    is_made.store(false, Relaxed);
                }
            });
        });
        is_made.into_inner()
    }

    /// Does a stage's products of a tile; their last batch is under way when this returns.
    fn tile(
        &mut self,
        stream: &mut Stream,
        links: &[Option<Link>],
        stage: &Stage,
        tile: Range<usize>,
    ) -> Result<(), Error> {
        let (first, end) = (stage.products.start, stage.products.end);
        let between = stream.between;
        let Some(product) = &stream.products[first] else { return Ok(()) };
        let part = part(product, links, between, stage.origin, tile.clone());
        if stage.origin != Origin::Own && stream.under_way.is_some() {
            // Others of the stage before are still to be read.
            self.stats.rows_ahead.fetch_add(tile.len() as u64, Relaxed);
        }
        if is_pair(stage, between) {
            let Some(pair) = stream.pair(first) else { return Ok(()) };
            let joint = self.chained_pair(pair.of.map(|product| product.weight), tile.len());
            let paired = joint.ok_or_else(|| self.no_tiles())?.into();
            return self.pair_block(stream, first, (tile.start, &part), Known::Others, &paired);
        }
        let mut at = first;
        while at < end {
            let known = if at == first { Known::Others } else { Known::Same };
            let (count, together) = self.together(&stream.products[at..end], tile.len(), Aim::Shortest);
            match together {
                Some(together) => {
                    self.run_others(stream, at, (tile.start, &part), known, &together, count)?
                }
                None => {
                    let Some(Product { weight, .. }) = &stream.products[at] else { return Ok(()) };
                    let schedule = self.chained(weight, tile.len());
                    let schedule = schedule.ok_or_else(|| self.no_tiles())?;
                    self.one_block(stream, at, (tile.start, &part), known, schedule)?;
                }
            }
            at += count;
        }
        Ok(())
    }

    /// Does by our kernels what is left of a chain, from the last tile but one that was begun on; whether all is done. Its
    /// results are not read, so that its rows are still there.
    fn finish_on_cpu(
        &mut self,
        products: &mut [Option<Product>],
        between: Option<&Between>,
        (links, make): (&[Option<Link>], &Make),
        size: usize,
        progress: &Progress,
    ) -> bool {
        let Some(rows) = products.first().and_then(Option::as_ref).map(|product| product.activations.rows)
        else {
            return false;
        };
        let (mut number, mut before, count) = (0, None, tiles(rows, size).count());
        for stage in stages(products.len(), links, between).collect::<Vec<_>>() {
            for tile in tiles(rows, size) {
                number += 1;
                if number + 1 < progress.begun {
                    continue;
                }
                let is_made = number < progress.begun || number == progress.begun && progress.is_made;
                let are_there = match (stage.origin, between, &before) {
                    (Origin::Link(link), ..) if !is_made => self.link(make, link, tile.clone()),
                    // Of two products that the NPU did, and nobody wrote it down.
                    (Origin::Made, Some(between), Some(pair))
                        if !between.kept && number + 1 < progress.begun + count =>
                    {
                        self.make_anew(products, (pair, links, between), tile.clone())
                    }
                    _ => true,
                };
                if !are_there {
                    return false;
                }
                for at in stage.products.clone() {
                    let Some(product) = &mut products[at] else { return false };
                    let part = part(product, links, between, stage.origin, tile.clone());
                    let out = product.out.after(tile.start * product.weight.plan.n);
                    product.recovered = self.by_kernels(product.weight, &part, &out);
                    if !product.recovered {
                        return false;
                    }
                }
                if is_pair(&stage, between) {
                    make_rows(&products[stage.products.clone()], between, tile);
                }
            }
            before = Some(stage);
        }
        true
    }

    /// Makes some rows of the results of a stage's two products, which are there no more; whether that could be done.
    fn make_anew(
        &mut self,
        products: &[Option<Product>],
        (pair, links, between): (&Stage, &[Option<Link>], &Between),
        tile: Range<usize>,
    ) -> bool {
        let mut results = [Vec::new(), Vec::new()];
        for (results, product) in results.iter_mut().zip(&products[pair.products.clone()]) {
            let Some(product) = product else { return false };
            results.resize(tile.len() * product.weight.plan.n, 0.0);
            let part = part(product, links, Some(between), pair.origin, tile.clone());
            // Not to where they belong: others may be there by now.
            if !self.by_kernels(product.weight, &part, &Divided::new(results)) {
                return false;
            }
        }
        let n = results[0].len() / tile.len();
        // SAFETY: this thread alone has these rows now.
        let out = unsafe { between.out.part(tile.start * n..tile.end * n) };
        between.make(results.each_ref().map(Vec::as_slice), out);
        true
    }
}

/// What is made of two products' results, of some rows.
fn make_rows(two: &[Option<Product>], between: Option<&Between>, rows: Range<usize>) {
    let ([Some(one), Some(other)], Some(between)) = (two, between) else { return };
    let n = one.weight.plan.n;
    let place = rows.start * n..rows.end * n;
    // SAFETY: this thread alone has results now.
    let [one, other, out] =
        [&one.out, &other.out, &between.out].map(|rows| unsafe { rows.part(place.clone()) });
    between.make([one, other], out);
}

/// The rows of a tile, which are made.
fn part<'a>(
    product: &Product<'a>,
    links: &'a [Option<Link>],
    between: Option<&'a Between>,
    origin: Origin,
    tile: Range<usize>,
) -> Activations<'a> {
    let all = product.activations;
    let made = match origin {
        Origin::Own => return Activations { rows: tile.len(), ..all.from(tile.start) },
        Origin::Link(link) => links[link].as_ref().map(|link| &link.rows),
        Origin::Made => between.map(|between| &between.out),
    };
    let elements = tile.start * all.stride..(tile.end - 1) * all.stride + product.weight.k();
    // SAFETY: these rows are made, and nobody writes to them before they are packed.
    let data = made.map_or(&[][..], |rows| unsafe { rows.part(elements) });
    Activations { data, rows: tile.len(), ..all }
}

/// Whether something is made of the results of a stage's two products.
fn is_pair(stage: &Stage, between: Option<&Between>) -> bool {
    between.is_some_and(|between| between.first == stage.products.start && stage.products.len() == 2)
}

/// `rows` rows by `size`.
fn tiles(rows: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(size.max(1)).map(move |first| first..rows.min(first + size))
}
