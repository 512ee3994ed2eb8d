//! The yardstick of host-side work: how fast this machine copies.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Bytes that are copied, all threads together: more than caches hold.
const BYTES: usize = 64 << 20;

/// Copies that are timed; the median counts, as what is held against it has no best of many either.
const ROUNDS: usize = 7;

/// Bytes copied a ns, which is GB/s, by `threads` threads that share the buffer.
pub fn bytes_per_ns(threads: usize) -> f64 {
    let threads = threads.max(1);
    let from = vec![1u8; BYTES];
    let mut to = vec![0u8; BYTES];
    let share = BYTES.div_ceil(threads);
    let barrier = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let parts = from.chunks(share).zip(to.chunks_mut(share));
        for (from, to) in parts {
            let barrier = &barrier;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    to.copy_from_slice(std::hint::black_box(from));
                    std::hint::black_box(&to);
                    barrier.wait();
                }
            });
        }
        // `chunks` may make fewer parts than threads for odd counts; stand in for those that are missing.
        for _ in BYTES.div_ceil(share)..threads {
            let barrier = &barrier;
            scope.spawn(move || {
                for _ in 0..2 * ROUNDS {
                    barrier.wait();
                }
            });
        }
        let mut times = [0.0; ROUNDS];
        for time in &mut times {
            barrier.wait();
            let begin = Instant::now();
            barrier.wait();
            *time = begin.elapsed().as_nanos() as f64;
        }
        times.sort_by(f64::total_cmp);
        BYTES as f64 / times[ROUNDS / 2]
    })
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
