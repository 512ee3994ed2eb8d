//! Memory: coherence, what a bind freezes, file descriptors, offset views, I/O domains.

use std::sync::Arc;

use rknn_sys::{Context, MatmulSpec, MatmulType};

use super::{source, type_name, Bench, Check, Seen, Stop};
use crate::chip::Chip;
use crate::probe::layout::{Believed, Place};
use crate::probe::matrix::{compare, Matrix, Random};
use crate::probe::rig::{Layouts, Rig};
use crate::probe::views::all_at_once;

/// Threads that run at once on views, on fewer cores as well.
const THREADS: usize = 3;
/// How often they do.
const ROUNDS: usize = 16;
/// I/O domains that a context can name.
const DOMAINS: u8 = 16;

pub(super) fn checks(_chip: &Chip) -> Vec<Check> {
    let mut checks = vec![
        Check::new(
            "memory.sync",
            "with syncs a second product sees its own A; without, it may see the first",
            source::HEADER,
            "results cannot be trusted: update librknnrt and the kernel, and please send the report",
            coherence,
        ),
        Check::new(
            "memory.frozen",
            "a row-major B is frozen when it is bound",
            source::REPORTS,
            "harmless to the plugin, which never writes to a bound weight: please send the report",
            frozen,
        ),
        Check::new(
            "memory.fds",
            "an allocation is one file descriptor, a view none",
            source::REPORTS,
            "large models may run out of file descriptors: ulimit -n 65536",
            descriptors,
        ),
        Check::new(
            "memory.domain",
            "a context and its memories live in another I/O domain (1) as well",
            source::REPORTS,
            "weights above 3.9 GB stay with the CPU; update librknnrt to 2.3.2",
            |bench| domain(bench, 1).map(|()| "right numbers in domain 1".to_owned()),
        ),
        Check::new(
            "memory.domains",
            format!("a context in each of the {DOMAINS} I/O domains gives right numbers"),
            source::HEADER,
            "weights beyond the domains that work stay with the CPU; update librknnrt to 2.3.2",
            domains,
        ),
    ];
    for dtype in [MatmulType::I8, MatmulType::F16] {
        checks.push(Check::new(
            format!("memory.views.{}", type_name(dtype)),
            format!("B as offset views of one allocation, {THREADS} threads at once, gives right numbers"),
            source::REPORTS,
            "the plugin gives each part an allocation of its own, which takes more file descriptors",
            move |bench| views(bench, dtype),
        ));
    }
    checks
}

fn i8_rig(bench: &Bench, mode: Layouts) -> Result<(Rig, Believed, (Matrix, Matrix)), Stop> {
    let dtype = MatmulType::I8;
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 4, believed.n_align * 6);
    let rig = Rig::new(bench.library, &bench.keeper()?, mode.spec(dtype, 4, k, n), bench.core(0))?;
    let mut random = Random::new(41);
    Ok((rig, believed, random.operands(dtype, 4, k, n)))
}

fn coherence(bench: &Bench) -> Seen {
    let dtype = MatmulType::I8;
    let (mut rig, _, (first, b)) = i8_rig(bench, Layouts::NORM)?;
    rig.product(&first, &b, [Place::RowMajor; 3])?;
    let second = Random::new(42).matrix(dtype.a(), first.rows, first.columns);
    let (old, new) = (first.times(&b), second.times(&b));

    second.store(dtype.a(), Place::RowMajor, rig.a.as_mut_slice());
    // `product` bound a B that is gone for the host only; the context keeps it.
    rig.run()?;
    let unsynced = match (rig.compare(&old, Place::RowMajor), rig.compare(&new, Place::RowMajor)) {
        (Ok(()), _) => "stale A without a sync",
        (_, Ok(())) => "A arrives without a sync",
        _ => "A arrives in part without a sync",
    };
    rig.a.sync_to_device()?;
    rig.run()?;
    rig.compare(&new, Place::RowMajor)?;

    rig.put_a(&first, Place::RowMajor)?;
    rig.context.run()?;
    let read = |rig: &Rig, sums: &[i64]| compare(dtype, sums, first.rows, Place::RowMajor, rig.c.as_slice());
    let unread = if read(&rig, &old).is_ok() { "C arrives without a sync" } else { "stale C without one" };
    rig.c.sync_from_device()?;
    rig.compare(&old, Place::RowMajor)?;
    Ok(format!("right with syncs; {unsynced}, {unread}"))
}

fn frozen(bench: &Bench) -> Seen {
    let dtype = MatmulType::I8;
    let (mut rig, _, (a, b)) = i8_rig(bench, Layouts::NORM)?;
    rig.put_a(&a, Place::RowMajor)?;
    let mut bound = rig.put_b(&b, Place::RowMajor)?;
    rig.run()?;
    rig.compare(&a.times(&b), Place::RowMajor)?;
    let other = Random::new(43).matrix(dtype.b(), b.rows, b.columns);
    other.store(dtype.b(), Place::RowMajor, bound.as_mut_slice());
    bound.sync_to_device()?;
    rig.run()?;
    let is_old = rig.compare(&a.times(&b), Place::RowMajor).is_ok();
    let is_new = rig.compare(&a.times(&other), Place::RowMajor).is_ok();
    // Bound anew it must be seen, whatever was the case before.
    let _again = rig.put_b(&other, Place::RowMajor)?;
    rig.run()?;
    rig.compare(&a.times(&other), Place::RowMajor)?;
    match (is_old, is_new) {
        (true, _) => Ok("a later write is not seen until a new bind".to_owned()),
        (_, true) => Err(Stop::Fail("a later write is seen at the next run".to_owned())),
        _ => Err(Stop::Fail("a later write is seen in part".to_owned())),
    }
}

fn open_descriptors() -> Result<usize, Stop> {
    let why = |error| Stop::Unknown(format!("/proc/self/fd cannot be read: {error}"));
    Ok(std::fs::read_dir("/proc/self/fd").map_err(why)?.count())
}

fn descriptors(bench: &Bench) -> Seen {
    let keeper = bench.keeper()?;
    let before = open_descriptors()?;
    let made = (0..8).map(|_| keeper.allocate(8192)).collect::<Result<Vec<_>, _>>()?;
    let allocated = open_descriptors()?.saturating_sub(before);
    let views = made.into_iter().map(|memory| memory.split(&[0..4096, 4096..8192]));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    let viewed = open_descriptors()?.saturating_sub(before + allocated);
    drop(views);
    let left = open_descriptors()?.saturating_sub(before);
    let found = format!("8 allocations took {allocated}, 16 views of them {viewed}, {left} stayed open");
    if (allocated, viewed, left) == (8, 0, 0) {
        Ok(found)
    } else {
        Err(Stop::Fail(found))
    }
}

fn views(bench: &Bench, dtype: MatmulType) -> Seen {
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 12, believed.n_align * 12);
    let keeper = bench.keeper()?;
    let spec = Layouts::NATIVE.spec(dtype, 5, k, n);
    let places = Layouts::NATIVE.places(&believed);
    let mut random = Random::new(45);
    let alone = Rig::new(bench.library, &keeper, spec, bench.core(0))?.product(
        &random.matrix(dtype.a(), 5, k),
        &random.matrix(dtype.b(), k, n),
        places,
    );
    if let Err(trouble) = alone {
        return Err(Stop::Unknown(format!("one product alone is wrong already: {trouble}")));
    }
    let rigs = (0..THREADS)
        .map(|thread| Rig::new(bench.library, &keeper, spec, bench.core(thread)))
        .collect::<Result<Vec<_>, _>>()?;
    all_at_once(&keeper, rigs, dtype, places, ROUNDS).map_err(Stop::Fail)?;
    Ok(format!("right numbers in {ROUNDS} rounds"))
}

/// One small product with a context and memories of `domain`.
fn domain(bench: &Bench, domain: u8) -> Result<(), Stop> {
    let dtype = MatmulType::I8;
    let believed = bench.believed(dtype)?;
    let (k, n) = (believed.k_align * 4, believed.n_align * 4);
    let spec = MatmulSpec { domain, ..Layouts::NORM.spec(dtype, 2, k, n) };
    let keeper = Arc::new(Context::create(bench.library, spec)?);
    let mut rig = Rig::new(bench.library, &keeper, spec, bench.core(0))?;
    let mut random = Random::new(44 + u64::from(domain));
    Ok(rig.product(&random.matrix(dtype.a(), 2, k), &random.matrix(dtype.b(), k, n), [Place::RowMajor; 3])?)
}

fn domains(bench: &Bench) -> Seen {
    let mut bad = Vec::new();
    for number in 0..DOMAINS {
        match domain(bench, number) {
            Ok(()) => {}
            Err(Stop::Fail(why)) => bad.push((number, why)),
            Err(unknown) => return Err(unknown),
        }
    }
    let Some((first, why)) = bad.first() else {
        return Ok(format!("right numbers in domains 0 to {}", DOMAINS - 1));
    };
    Err(Stop::Fail(format!("{} of {DOMAINS} do not work, the first is {first}: {why}", bad.len())))
}
