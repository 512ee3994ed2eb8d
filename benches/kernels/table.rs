//! Measures a kernel and memcpy side by side, and tells both in one line.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use rayon::prelude::*;
use rayon::ThreadPool;

/// Threads that everything is measured with.
const THREADS: [usize; 2] = [1, 2];

/// One kernel on one number of threads.
struct Line {
    name: String,
    threads: usize,
    /// GB/s.
    kernel: f64,
    /// GB/s.
    memcpy: f64,
    /// GB/s on two threads.
    goal: Option<f64>,
}

/// What was measured, as a table when it is printed.
#[derive(Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// Measures `run`, which takes `bytes` bytes through the threads of the pool that it is given.
    pub fn measure(
        &mut self,
        criterion: &mut Criterion,
        name: &str,
        bytes: usize,
        goal: Option<f64>,
        mut run: impl FnMut(&ThreadPool),
    ) {
        let from = vec![1u8; bytes];
        let mut to = vec![2u8; bytes];
        for threads in THREADS {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let chunk = bytes.div_ceil(threads);
            let mut group = criterion.benchmark_group(format!("{name}, {threads} threads"));
            group.throughput(Throughput::Bytes(bytes as u64)).sample_size(20);
            group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(600));
            let memcpy = best(&mut group, "memcpy", || {
                pool.install(|| {
                    let chunks = to.par_chunks_mut(chunk).zip(from.par_chunks(chunk));
                    chunks.for_each(|(to, from)| to.copy_from_slice(std::hint::black_box(from)));
                });
            });
            let kernel = best(&mut group, "kernel", || run(&pool));
            // Neither is known when criterion was told to leave this one out.
            if let (Some(kernel), Some(memcpy)) = (kernel, memcpy) {
                let speed = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
                let (kernel, memcpy) = (speed(kernel), speed(memcpy));
                self.0.push(Line { name: name.to_owned(), threads, kernel, memcpy, goal });
            }
        }
    }
}

/// The shortest of all runs that criterion asks for.
fn best(
    group: &mut criterion::BenchmarkGroup<criterion::measurement::WallTime>,
    name: &str,
    mut run: impl FnMut(),
) -> Option<Duration> {
    let shortest = Cell::new(Duration::MAX);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            (0..count)
                .map(|_| {
                    let start = Instant::now();
                    run();
                    let time = start.elapsed();
                    shortest.set(shortest.get().min(time));
                    time
                })
                .sum()
        });
    });
    Some(shortest.get()).filter(|time| *time < Duration::MAX)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        writeln!(f, "| kernel | threads | GB/s | memcpy, GB/s | share of memcpy | goal, two threads |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for Line { name, threads, kernel, memcpy, goal } in &self.0 {
            let share = kernel / memcpy * 100.0;
            write!(f, "| {name} | {threads} | {kernel:.2} | {memcpy:.1} | {share:.0} % | ")?;
            match goal.filter(|_| *threads == 2) {
                Some(goal) if *kernel >= goal => writeln!(f, "{goal} ✓ |")?,
                Some(goal) => writeln!(f, "{goal} ✗ |")?,
                None => writeln!(f, "|")?,
            }
        }
        Ok(())
    }
}
