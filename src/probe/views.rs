//! Products whose B are parts of one allocation, all of them at once: reported to go wrong with several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rknn_sys::{Context, MatmulType};

use super::layout::Place;
use super::matrix::Random;
use super::rig::{Rig, Trouble};

/// Parts begin at multiples of this: a page, as in the engine.
const PART_ALIGN: usize = 4096;
/// How long a thread waits for the others before a round.
const PATIENCE: Duration = Duration::from_millis(20);

/// Runs each rig on a thread of its own, `rounds` times at the same moment, each with its own B in a part of one
/// allocation of `keeper`'s.
///
/// # Errors
/// The first refused call or wrong result; a thread that cannot be had is a wrong result too.
pub fn all_at_once(
    keeper: &Arc<Context>,
    mut rigs: Vec<Rig>,
    dtype: MatmulType,
    places: [Place; 3],
    rounds: usize,
) -> Result<(), String> {
    let bytes = rigs.iter().map(Rig::b_bytes).max().unwrap_or(1).next_multiple_of(PART_ALIGN);
    let ranges: Vec<_> = (0..rigs.len()).map(|part| part * bytes..(part + 1) * bytes).collect();
    let whole = keeper.allocate(bytes * rigs.len().max(1)).map_err(|error| error.to_string())?;
    let mut parts = whole.split(&ranges).map_err(|error| error.to_string())?;
    let arrived = AtomicUsize::new(0);
    let all = rigs.len();
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(all);
        for (index, (rig, part)) in rigs.iter_mut().zip(&mut parts).enumerate() {
            let arrived = &arrived;
            let work = move || -> Result<(), Trouble> {
                let (m, k, n) = rig.shape();
                let mut random = Random::new(101 + index as u64);
                let (a, b) = random.operands(dtype, m, k, n);
                b.store(dtype.b(), places[1], part.as_mut_slice());
                part.sync_to_device()?;
                rig.put_a(&a, places[0])?;
                rig.bind_b(&part.binding())?;
                let sums = a.times(&b);
                for round in 1..=rounds {
                    meet(arrived, round * all);
                    rig.run()?;
                    rig.compare(&sums, places[2])?;
                }
                Ok(())
            };
            threads.push(thread::Builder::new().spawn_scoped(scope, work));
        }
        // All are waited for before anything is judged.
        let results: Vec<Result<(), String>> = threads
            .into_iter()
            .enumerate()
            .map(|(index, thread)| match thread.map(|thread| thread.join()) {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(trouble))) => Err(format!("part {index}: {trouble}")),
                Ok(Err(_)) => Err(format!("part {index}: its thread ended")),
                Err(error) => Err(format!("part {index}: no thread: {error}")),
            })
            .collect();
        results.into_iter().collect()
    })
}

/// Waits until `expected` arrivals were counted; not for ever, since another thread may have given up.
fn meet(arrived: &AtomicUsize, expected: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    let start = Instant::now();
    while arrived.load(Ordering::Acquire) < expected && start.elapsed() < PATIENCE {
        thread::yield_now();
    }
}
