//! The yardstick of host-side work: how fast this machine copies.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Bytes that are copied, all threads together: more than caches hold.
const BYTES: usize = 256 << 20;

/// Copies that are timed; the median counts, as what is held against it has no best of many either.
const ROUNDS: usize = 7;

/// Bytes copied a ns, which is GB/s, by `threads` threads that share the buffer.
pub fn bytes_per_ns(threads: usize) -> f64 {
    let from = vec![1u8; BYTES];
    let mut to = vec![0u8; BYTES];
    let share = BYTES.div_ceil(threads.max(1));
    let parts = || from.chunks(share);
    let barrier = Barrier::new(parts().count());
    // The threads themselves look at the clock: one that waits for them may get no processor before they are done.
    let copy = |from: &[u8], to: &mut [u8]| {
        [(); ROUNDS].map(|()| {
            barrier.wait();
            let begin = Instant::now();
            to.copy_from_slice(std::hint::black_box(from));
            std::hint::black_box(&to);
            (begin, Instant::now())
        })
    };
    let times: Vec<[(Instant, Instant); ROUNDS]> = thread::scope(|scope| {
        let copies = parts().zip(to.chunks_mut(share));
        let threads: Vec<_> = copies.map(|(from, to)| scope.spawn(|| copy(from, to))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .filter_map(|round| {
            let begin = times.iter().map(|times| times[round].0).min()?;
            let end = times.iter().map(|times| times[round].1).max()?;
            Some(end.duration_since(begin).as_nanos() as f64)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds.get(ROUNDS / 2).map_or(f64::NAN, |ns| BYTES as f64 / ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_threads_ends_with_a_rate() {
        for threads in [0, 1, 3] {
            let rate = bytes_per_ns(threads);
            assert!(rate.is_finite() && rate > 0.0, "{threads}: {rate}");
        }
    }
}
