//! The best schedule of a product: an exhaustive search with the emulator's own formula.
//!
//! What is searched: K in segments of every length that the type's alignment allows, rows in tiles of every length, and
//! the work split over one to all cores by N, by rows, or by K: each core a segment, and what is left of them by N. A core's time
//! is the sum over its runs of
//! `fixed + max(arithmetic, traffic)`, with traffic as slow as it is while all of those cores move data; a schedule takes
//! as long as its slowest core. Adding up segments costs the NPU nothing.

use npu_emulator::chip::{Chip, TypeRow};
use npu_emulator::clock::cost::{Shape, Timing};

/// The longest K of an i4 product whose 16-bit sums cannot saturate: 512 products of magnitude 8 · 8.
const I4_SEGMENT: usize = 512;

/// A product as a pipeline does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product {
    /// The vendor's matmul type.
    pub code: i32,
    /// Rows that the NPU multiplies.
    pub rows: usize,
    /// K of the weight.
    pub k: usize,
    /// N of the weight.
    pub n: usize,
}

impl Product {
    /// That of `rows` rows with a K×N weight by the pipeline of that name, suffix or not; `None` if the NPU has no part
    /// in it. W4A8 multiplies two planes of rows.
    pub fn of(pipeline: &str, rows: usize, (k, n): (usize, usize)) -> Option<Self> {
        let (code, planes) = match pipeline.split('_').next()? {
            "W16A16" => (1, 1),
            "W8A8" => (2, 1),
            "W8A16" => (5, 1),
            "W4A16" => (7, 1),
            "W4A8" => (10, 2),
            "W4A4" => (10, 1),
            _ => return None,
        };
        Some(Self { code, rows: planes * rows, k, n })
    }

    /// 2·M·K·N.
    pub fn operations(&self) -> f64 {
        2.0 * self.rows as f64 * self.k as f64 * self.n as f64
    }
}

/// How the work is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Each core has columns of its own.
    Columns,
    /// Each core has rows of its own.
    Rows,
    /// Each core has segments of its own, as many; what is left of these is split by columns.
    Segments,
}

/// A schedule and its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Modelled ns.
    pub ns: f64,
    /// K of a segment, the last of which may be shorter.
    pub segment: usize,
    /// Rows of a tile, the last of which may be shorter.
    pub tile: usize,
    /// How it is split.
    pub split: Split,
    /// Over how many cores.
    pub cores: usize,
}

/// Searches schedules of one chip.
pub struct Search {
    chip: &'static Chip,
    timing: &'static Timing,
}

impl Search {
    /// On the chip of that name; `None` if there is none.
    pub fn on(soc: &str) -> Option<Self> {
        let chip = Chip::by_name(soc)?;
        Some(Self { chip, timing: Timing::of(chip.name) })
    }

    /// The best schedule; `None` for a type that the chip lacks, or an empty product.
    pub fn best(&self, product: Product) -> Option<Schedule> {
        let row = self.chip.types.iter().find(|row| row.dtype.code() == product.code)?;
        let shape = shape_of(row);
        let longest = self.longest(row).min(product.k.next_multiple_of(row.k_align));
        let mut best: Option<Schedule> = None;
        for segment in (row.k_align..=longest).step_by(row.k_align) {
            let segments = Pieces::of(product.k, segment, row.k_align);
            for cores in 1..=self.chip.cores {
                let slowdown = self.timing.slowdown(cores);
                for split in [Split::Columns, Split::Rows, Split::Segments] {
                    // The busiest core has a whole share; all others have as much or less.
                    let units = product.n.div_ceil(row.n_align);
                    let share = units.div_ceil(cores) * row.n_align;
                    let (rows, n) = match split {
                        Split::Columns => (product.rows, share),
                        Split::Rows => (product.rows.div_ceil(cores), units * row.n_align),
                        Split::Segments => (product.rows, units * row.n_align),
                    };
                    let runs = match split {
                        Split::Segments => segments.by_cores(cores, n, share),
                        _ => segments.0.map(|(count, k)| (count, k, n)).to_vec(),
                    };
                    for tile in 1..=rows {
                        let tiles = Pieces::of(rows, tile, 1);
                        let mut ns = 0.0;
                        for &(count, k, n) in &runs {
                            for (times, m) in tiles.0 {
                                if count * times > 0 {
                                    ns += (count * times) as f64
                                        * self.run_ns(&Shape { size: (m, k, n), ..shape }, slowdown);
                                }
                            }
                        }
                        if best.is_none_or(|best| ns < best.ns) {
                            best = Some(Schedule { ns, segment, tile, split, cores });
                        }
                    }
                }
            }
        }
        best
    }

    /// The time of the arithmetic alone at the peak of all cores.
    pub fn peak_ns(&self, product: Product) -> Option<f64> {
        let row = self.chip.types.iter().find(|row| row.dtype.code() == product.code)?;
        Some(product.operations() / (self.chip.cores as f64 * self.timing.peak(&shape_of(row))))
    }

    fn longest(&self, row: &TypeRow) -> usize {
        let practical = self.timing.k_practical.min(self.chip.k_limit);
        let is_i4 = (row.dtype.a().bits(), row.dtype.b().bits()) == (4, 4);
        if is_i4 {
            practical.min(I4_SEGMENT)
        } else {
            practical
        }
    }

    fn run_ns(&self, shape: &Shape, slowdown: f64) -> f64 {
        let cost = self.timing.run(shape);
        cost.fixed_ns + cost.compute_ns.max(cost.memory_ns * slowdown)
    }
}

/// A native run of the type, of no size yet.
fn shape_of(row: &TypeRow) -> Shape {
    Shape {
        code: row.dtype.code(),
        bits: (row.dtype.a().bits(), row.dtype.b().bits()),
        c_bytes: row.dtype.c().bytes(1),
        native: true,
        size: (0, 0, 0),
    }
}

/// Equal pieces and a shorter last one: how many of which length, padded.
struct Pieces([(usize, usize); 2]);

impl Pieces {
    fn of(whole: usize, piece: usize, align: usize) -> Self {
        let rest = whole % piece;
        Self([(whole / piece, piece), (usize::from(rest > 0), rest.next_multiple_of(align))])
    }

    /// The busiest core's runs if each has as many of the pieces: how many, of which length, and of how many columns. All `n` of
    /// its own pieces, its `share` of those that are left.
    fn by_cores(&self, cores: usize, n: usize, share: usize) -> Vec<(usize, usize, usize)> {
        let [(count, piece), (last, rest)] = self.0;
        let (own, left) = ((count + last) / cores, (count + last) % cores);
        let shorter = left.min(last);
        vec![(own, piece, n), (left - shorter, piece, share), (shorter, rest, share)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> Search {
        Search::on("rk3588").unwrap()
    }

    fn best_ns(code: i32, rows: usize, k: usize, n: usize) -> f64 {
        search().best(Product { code, rows, k, n }).unwrap().ns
    }

    /// The same search written out: lists of pieces dealt to cores one by one, and the formula from the facts.
    fn brute_force(rows: usize, k: usize, n: usize) -> f64 {
        let cut = |whole: usize, piece: usize| -> Vec<usize> {
            (0..whole).step_by(piece).map(|start| piece.min(whole - start)).collect()
        };
        let deal = |units: usize, cores: usize| -> Vec<usize> {
            (0..cores).map(|core| units / cores + usize::from(core < units % cores)).collect()
        };
        let mut best = f64::INFINITY;
        for cores in 1..=3usize {
            let rate = f64::min(11.3, 27.3 / cores as f64);
            let run = |m: usize, k: usize, n: usize| {
                let [a, b, c] = [m * k, k * n, 4 * m * n].map(|bytes| bytes as f64);
                let traffic = ((a / 131_072.0).ceil() * b + a + c) / rate;
                33_000.0 + f64::max(2.0 * m as f64 * b / 2050.0, traffic)
            };
            let by_columns: Vec<(usize, usize)> =
                deal(n.div_ceil(32), cores).into_iter().map(|units| (rows, 32 * units)).collect();
            let by_rows: Vec<(usize, usize)> =
                deal(rows, cores).into_iter().map(|rows| (rows, n.next_multiple_of(32))).collect();
            for segment in (32..=k.next_multiple_of(32)).step_by(32) {
                // Dealt out, the first core has the longest.
                let pieces = cut(k, segment);
                let dealt = pieces.len() / cores * cores;
                let own: Vec<usize> = pieces[..dealt].iter().step_by(cores).copied().collect();
                let left = pieces[dealt..].to_vec();
                let all = n.next_multiple_of(32);
                let share = 32 * n.div_ceil(32).div_ceil(cores);
                for tile in 1..=rows {
                    let mut ns = 0.0;
                    for (k, n) in own.iter().map(|k| (k, all)).chain(left.iter().map(|k| (k, share))) {
                        let k = k.next_multiple_of(32);
                        ns += cut(rows, tile).into_iter().map(|m| run(m, k, n)).sum::<f64>();
                    }
                    best = best.min(ns);
                }
            }
            for shares in [by_columns, by_rows] {
                for segment in (32..=k.next_multiple_of(32)).step_by(32) {
                    for tile in 1..=rows {
                        let mut slowest = 0.0f64;
                        for (rows, n) in &shares {
                            let mut ns = 0.0;
                            for k in cut(k, segment) {
                                let k = k.next_multiple_of(32);
                                ns += cut(*rows, tile).into_iter().map(|m| run(m, k, *n)).sum::<f64>();
                            }
                            slowest = slowest.max(ns);
                        }
                        best = best.min(slowest);
                    }
                }
            }
        }
        best
    }

    #[test]
    fn it_finds_what_brute_force_finds() {
        for (rows, k, n) in [(1, 64, 96), (5, 320, 1000), (40, 4096, 640), (64, 4100, 32), (48, 5000, 9000)] {
            let (found, wanted) = (best_ns(2, rows, k, n), brute_force(rows, k, n));
            assert!((found / wanted - 1.0).abs() < 1e-9, "{rows}, {k}, {n}: {found} and {wanted}");
        }
    }

    #[test]
    fn more_work_takes_no_less_and_wider_types_take_more() {
        for (rows, k, n) in [(1, 576, 1536), (32, 1024, 1024), (128, 1536, 8960)] {
            let ns = best_ns(2, rows, k, n);
            assert!(best_ns(2, 2 * rows, k, n) >= ns);
            assert!(best_ns(2, rows, k + 512, n) >= ns);
            assert!(best_ns(2, rows, k, n + 512) >= ns);
            assert!(best_ns(1, rows, k, n) > ns, "16 bits");
            let product = Product { code: 2, rows, k, n };
            assert!(search().peak_ns(product).unwrap() < ns);
        }
    }

    #[test]
    fn long_ks_and_tall_rows_are_cut_where_that_pays() {
        let schedule = search().best(Product { code: 2, rows: 1, k: 8960, n: 1536 }).unwrap();
        assert!(schedule.segment <= 8192 && schedule.cores == 3, "{schedule:?}");
        // One row: B is read once, each core has a third of K, but for its alignment, and all columns.
        let (k, n) = (3008.0, 1536.0);
        let stream = (k * n + k + 4.0 * n) / (27.3 / 3.0);
        assert!((schedule.ns - (33_000.0 + stream)).abs() < 1.0, "{schedule:?}");
        assert_eq!((schedule.split, schedule.segment), (Split::Segments, 3008));
        let i4 = search().best(Product { code: 10, rows: 64, k: 4096, n: 4096 }).unwrap();
        assert!(i4.segment <= 512, "sums of 16 bits: {i4:?}");
    }

    #[test]
    fn pipelines_have_their_type_and_planes() {
        let of = |name| Product::of(name, 512, (64, 96)).map(|product| (product.code, product.rows));
        assert_eq!(of("W8A8"), Some((2, 512)));
        assert_eq!(of("W4A8_STANDARD"), Some((10, 1024)));
        assert_eq!(of("W4A4"), Some((10, 512)));
        assert_eq!(of("W16A16"), Some((1, 512)));
        assert_eq!(of("CPU"), None);
        assert!(search().best(Product { code: 99, rows: 1, k: 32, n: 32 }).is_none());
        assert!(Search::on("rk9999").is_none());
    }
}
