//! What calls and runs take, beside what was published. On the emulator, times say nothing and are not judged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rknn_sys::{Context, MatmulType, Memory, Operand};

use super::{source, type_name, types_of, Bench, Check, Kind, Seen, Stop};
use crate::chip::Chip;
use crate::probe::layout::Place;
use crate::probe::matrix::Matrix;
use crate::probe::rig::{Layouts, Rig};

/// How often a call is timed; the median counts.
const TIMES: usize = 9;
/// M, K, N of the timed runs.
const SHAPES: [(usize, usize, usize); 4] =
    [(1, 2048, 2048), (1, 2048, 4096), (128, 2048, 2048), (128, 2048, 8192)];
const ADVICE: &str =
    "look at the clocks and the load above, then run it again on a quiet machine; if it stays, please send the report";

/// A call that is timed: its name, what it is, the published seconds, and how to time it.
type Call = (&'static str, &'static str, Option<f64>, fn(&Bench) -> Result<f64, Stop>);

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    // Measured on RK3588 only.
    let known = |value: f64| (chip.name == "rk3588").then_some(value);
    let calls: [Call; 5] = [
        ("create", "creating a context", known(1.5e-3), create),
        ("bind", "binding a native B", known(4.9e-6), bind_native),
        ("bind.norm", "binding a row-major B of 64 KB", known(186e-6), bind_normal),
        ("run", "the smallest run", known(33e-6), smallest_run),
        ("sync", "syncing 1 MiB to the device", None, sync),
    ];
    let mut checks: Vec<Check> = calls
        .into_iter()
        .map(|(name, what, published, time)| {
            cost(format!("cost.{name}"), what.to_owned(), published, move |bench| {
                judge(bench, time(bench)?, published, "")
            })
        })
        .collect();
    for dtype in types_of(chip) {
        for (m, k, n) in SHAPES {
            for cores in [1, chip.cores].into_iter().take(chip.cores.min(2)) {
                let published = known(model(dtype, (m, k, n), cores));
                let name = format!("cost.{}.{m}x{k}x{n}.{cores}", type_name(dtype));
                let what = match cores {
                    1 => format!("{} M={m} K={k} N={n}, one core", type_name(dtype)),
                    _ => format!("{} M={m} K={k} N={n} on each of {cores} cores", type_name(dtype)),
                };
                checks.push(cost(name, what, published, move |bench| {
                    let seconds = runs(bench, dtype, (m, k, n), cores)?;
                    judge(bench, seconds, published, &rates(dtype, (m, k, n), cores, seconds))
                }));
            }
        }
    }
    checks
}

fn cost(name: String, what: String, published: Option<f64>, run: impl Fn(&Bench) -> Seen + 'static) -> Check {
    let believed = match published {
        Some(seconds) => format!("{what}: about {}", shown(seconds)),
        None => format!("{what}: nothing published"),
    };
    Check { kind: Kind::Cost, ..Check::new(name, believed, source::REPORTS, ADVICE, run) }
}

/// The hypothesis of the facts for RK3588: the longer of arithmetic and traffic, after the fixed cost of a run.
fn model(dtype: MatmulType, (m, k, n): (usize, usize, usize), cores: usize) -> f64 {
    let peak = match dtype {
        // Operands of two widths are taken to go as the wider one.
        MatmulType::F16 | MatmulType::F16I8 | MatmulType::F16I4 => 1.02e12,
        MatmulType::I8 => 2.05e12,
        MatmulType::I4 => 4.1e12,
    };
    let (a, b, c) = bytes(dtype, (m, k, n));
    let passes = a.div_ceil(128 << 10);
    // A core alone streams 11.3 GB/s; all together share about 27.
    let bandwidth = f64::min(11.3e9, 27.3e9 / cores as f64);
    33e-6 + f64::max(2.0 * (m * k * n) as f64 / peak, (passes * b + a + c) as f64 / bandwidth)
}

fn bytes(dtype: MatmulType, (m, k, n): (usize, usize, usize)) -> (usize, usize, usize) {
    (dtype.a().bytes(m * k), dtype.b().bytes(k * n), dtype.c().bytes(m * n))
}

fn rates(dtype: MatmulType, shape: (usize, usize, usize), cores: usize, seconds: f64) -> String {
    let (m, k, n) = shape;
    let (a, b, c) = bytes(dtype, shape);
    let all = cores as f64 / seconds / 1e9;
    format!(", {:.1} GOPS, {:.1} GB/s", 2.0 * (m * k * n) as f64 * all, (a + b + c) as f64 * all)
}

/// "1.52 ms", "33.0 µs".
fn shown(seconds: f64) -> String {
    if seconds >= 1e-3 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.1} µs", seconds * 1e6)
    }
}

/// Slower than half as fast again as published is a finding; faster never is one.
fn judge(bench: &Bench, seconds: f64, published: Option<f64>, rates: &str) -> Seen {
    let found = format!("{}{rates}", shown(seconds));
    if bench.library.emulated_soc().is_some() {
        let Some(published) = published.filter(|_| bench.library.modelled_ns(None).is_some()) else {
            let whose =
                if bench.library.modelled_ns(None).is_some() { "modelled" } else { "of the emulator" };
            return Err(Stop::Unknown(format!("{found}, {whose}, not of a board")));
        };
        let ratio = seconds / published;
        return if (0.5..1.5).contains(&ratio) {
            Ok(format!("{found}, modelled"))
        } else {
            Err(Stop::Unknown(format!("{found}, modelled, {ratio:.2} times the published")))
        };
    }
    match published {
        None => Err(Stop::Unknown(format!("{found}; nothing to compare with"))),
        Some(published) if seconds > published * 1.5 => {
            Err(Stop::Fail(format!("{found}, {:.1} times the published", seconds / published)))
        }
        Some(_) => Ok(found),
    }
}

/// The median time of one call; what `once` returns is dropped outside of the clock.
fn median<T>(mut once: impl FnMut() -> Result<(Duration, T), Stop>) -> Result<f64, Stop> {
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        times.push(once()?.0);
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64())
}

fn timed<T, E>(bench: &Bench, call: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T), Stop>
where
    Stop: From<E>,
{
    let watch = Watch::start(bench, None);
    let result = call()?;
    Ok((watch.elapsed(bench), result))
}

/// A clock that was started: the emulator's modelled one where there is one.
struct Watch {
    real: Instant,
    modelled: Option<u64>,
    core: Option<usize>,
}

impl Watch {
    /// A `core`'s own clock tells its runs; all others' calls are told by the common one.
    fn start(bench: &Bench, core: Option<usize>) -> Self {
        Self { modelled: bench.library.modelled_ns(core), real: Instant::now(), core }
    }

    fn elapsed(&self, bench: &Bench) -> Duration {
        let real = self.real.elapsed();
        match self.modelled.zip(bench.library.modelled_ns(self.core)) {
            Some((start, now)) => Duration::from_nanos(now.saturating_sub(start)),
            None => real,
        }
    }
}

fn create(bench: &Bench) -> Result<f64, Stop> {
    let believed = bench.believed(MatmulType::I8)?;
    let spec = Layouts::NATIVE.spec(MatmulType::I8, 8, believed.k_align * 32, believed.n_align * 32);
    median(|| timed(bench, || Context::create(bench.library, spec)))
}

/// Binds two memories by turns: one that is bound already costs nothing.
fn bind(bench: &Bench, mode: Layouts) -> Result<f64, Stop> {
    let believed = bench.believed(MatmulType::I8)?;
    // 64 KiB: K and N of 256 are whole blocks everywhere.
    let spec = mode.spec(MatmulType::I8, 1, 256.max(believed.k_align), 256.max(believed.n_align));
    let mut rig = Rig::new(bench.library, &bench.keeper()?, spec, bench.core(0))?;
    let zeros = Matrix::of(spec.k, spec.n, |_, _| 0);
    let both: Vec<Memory> =
        (0..2).map(|_| rig.put_b(&zeros, Place::RowMajor)).collect::<Result<Vec<_>, _>>()?;
    let mut turn = 0;
    median(|| {
        turn += 1;
        let next = both[turn % 2].binding();
        timed(bench, || rig.context.bind(Operand::B, &next))
    })
}

fn bind_native(bench: &Bench) -> Result<f64, Stop> {
    bind(bench, Layouts::NATIVE)
}

fn bind_normal(bench: &Bench) -> Result<f64, Stop> {
    bind(bench, Layouts { native_b: false, native_ac: true })
}

fn smallest_run(bench: &Bench) -> Result<f64, Stop> {
    let believed = bench.believed(MatmulType::I8)?;
    runs(bench, MatmulType::I8, (1, believed.k_align, believed.n_align), 1)
}

fn sync(bench: &Bench) -> Result<f64, Stop> {
    let mut memory = bench.keeper()?.allocate(1 << 20)?;
    median(|| {
        memory.as_mut_slice().fill(1);
        timed(bench, || memory.sync_to_device())
    })
}

/// The time of one run, the same on each of `cores` cores at once.
fn runs(bench: &Bench, dtype: MatmulType, shape: (usize, usize, usize), cores: usize) -> Result<f64, Stop> {
    let (m, k, n) = shape;
    bench.believed(dtype)?;
    if cores > 1 && bench.cores() < cores {
        return Err(Stop::Unknown(format!("{} of {cores} cores work", bench.cores())));
    }
    let keeper = bench.keeper()?;
    let spec = Layouts::NATIVE.spec(dtype, m, k, n);
    let mut rigs = Vec::new();
    for core in 0..cores {
        let mut rig = Rig::new(bench.library, &keeper, spec, bench.core(core))?;
        let memory = keeper.allocate(rig.b_bytes())?;
        memory.sync_to_device()?;
        rig.a.sync_to_device()?;
        rig.bind_b(&memory.binding())?;
        // The first run wakes the NPU, which powers down after three seconds.
        rig.context.run()?;
        rigs.push(rig);
    }
    if let [rig] = &mut rigs[..] {
        let core = bench.core(0).or(Some(0));
        return median(|| {
            let watch = Watch::start(bench, core);
            rig.context.run()?;
            Ok((watch.elapsed(bench), ()))
        });
    }
    let arrived = AtomicUsize::new(0);
    let watch = Watch::start(bench, None);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for rig in &mut rigs {
            let arrived = &arrived;
            let work = move || -> Result<Duration, String> {
                arrived.fetch_add(1, Ordering::AcqRel);
                let waiting = Instant::now();
                while arrived.load(Ordering::Acquire) < cores && waiting.elapsed().as_millis() < 20 {
                    thread::yield_now();
                }
                let start = Instant::now();
                for _ in 0..TIMES {
                    rig.context.run().map_err(|error| error.to_string())?;
                }
                Ok(start.elapsed())
            };
            threads.push(thread::Builder::new().spawn_scoped(scope, work));
        }
        let mut slowest = Duration::ZERO;
        for thread in threads {
            let ended = thread.map_err(|error| Stop::Unknown(format!("no thread: {error}")))?.join();
            let took = ended.map_err(|_| Stop::Fail("a thread ended".to_owned()))?.map_err(Stop::Fail)?;
            slowest = slowest.max(took);
        }
        // Modelled time is one for all threads.
        if watch.modelled.is_some() {
            slowest = watch.elapsed(bench);
        }
        Ok(slowest.as_secs_f64() / TIMES as f64)
    })
}

/// What the facts say of a shape must come out of the model: it is what boards are compared with.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::layout::Believed;

    #[test]
    fn the_model_gives_the_published_times() {
        let close = |seconds: f64, published: f64| (0.8..1.2).contains(&(seconds / published));
        assert!(close(model(MatmulType::I8, (1, 2048, 2048), 1), 0.390e-3));
        assert!(close(model(MatmulType::I8, (128, 1024, 8192), 1), 1.144e-3));
        assert!(close(model(MatmulType::I8, (128, 2048, 8192), 1), 3.102e-3));
        assert!(close(model(MatmulType::I4, (128, 2048, 8192), 1), 1.110e-3));
        let believed = Believed::of(&crate::chip::CHIPS[0], MatmulType::I8).expect("every chip has i8");
        assert_eq!(SHAPES[0].1 % believed.k_align, 0);
        assert_eq!(shown(0.0015), "1.50 ms");
    }
}
