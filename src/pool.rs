//! The CPU's threads: as many as the host allows, kept for the life of the device, asleep when there is nothing to do.
//!
//! [`Pool::run`] spreads the numbers 0..count over the caller and the threads, which take the next number as they
//! get to it. Nothing is allocated and no thread is made on the way. A thread that waits for work spins for some
//! microseconds, since the next piece of a product often comes that soon, and then parks: the host's own threads
//! may have the cores. A thread that wakes up too late finds the work done, and nobody waits for it.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::chip::CORES_MAX;
use crate::cpus::{spin_until, spins};

/// Work that is open to the threads: a closure of the caller's, which waits until all have left it.
#[derive(Clone, Copy)]
struct Task {
    work: *const (dyn Fn(usize) + Sync),
    next: *const AtomicUsize,
    count: usize,
}

// SAFETY: both pointers are to Sync values that outlive the task, since `Pool::run` withdraws it and waits for all
// threads inside before it returns.
unsafe impl Send for Task {}

#[derive(Default)]
struct State {
    task: Option<Task>,
    /// Threads inside of the task.
    inside: usize,
    panic: Option<Box<dyn Any + Send>>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Changes with every task; threads spin on it.
    generation: AtomicU64,
    wake: Condvar,
    left: Condvar,
    /// How often a thread looks again before it parks.
    spins: u32,
}

/// Below this many elements, waking the other threads costs more than they save.
pub const PARALLEL_MIN: usize = 32 * 1024;

/// How often a thread at least looks for more work before it parks: a few microseconds. A product's stages follow each other that
/// soon, and waking a thread takes longer, whoever else may want its processor.
const SPINS_MIN: u32 = 300;

/// Threads for the CPU's share of the work.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One task at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool in which `threads` work at once, the caller among them; each thread runs `begin` first.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(threads: usize, begin: impl Fn() + Clone + Send + 'static) -> std::io::Result<Self> {
        // The cores of the NPU have threads too.
        let spins = spins(threads + CORES_MAX).max(SPINS_MIN);
        let shared = Shared { spins, ..Shared::default() };
        let mut pool = Self { shared: Arc::new(shared), threads: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads.max(1) {
            let (shared, begin) = (pool.shared.clone(), begin.clone());
            let thread = std::thread::Builder::new().name(format!("rknpu-cpu-{index}"));
            pool.threads.push(thread.spawn(move || {
                begin();
                shared.serve();
            })?);
        }
        Ok(pool)
    }

    /// How many work at once.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` with each of 0..`count`, in any order, on the caller and the threads; returns when all are done.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run(&self, count: usize, work: impl Fn(usize) + Sync) {
        if count <= 1 || self.threads.is_empty() {
            (0..count).for_each(work);
            return;
        }
        let _turn = self.turn.lock();
        let next = AtomicUsize::new(0);
        let work: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: only the lifetime is taken away; `finish` below ends all use of it before this returns.
        let erased: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        {
            let mut state = self.shared.state.lock();
            state.task = Some(Task { work: erased, next: &raw const next, count });
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
        // More than there is work for would only find it done.
        for _ in 0..self.threads.len().min(count - 1) {
            self.shared.wake.notify_one();
        }
        let own = catch_unwind(AssertUnwindSafe(|| take_turns(work, &next, count)));
        let theirs = self.shared.finish();
        if let Some(panic) = own.err().or(theirs) {
            std::panic::resume_unwind(panic);
        }
    }

    /// As [`Self::run`] where `elements`, those of all the work, are [`PARALLEL_MIN`] or more; else on the caller alone.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run_if_many(&self, elements: usize, count: usize, work: impl Fn(usize) + Sync) {
        if elements >= PARALLEL_MIN {
            self.run(count, work);
        } else {
            (0..count).for_each(work);
        }
    }

    /// As [`Self::chunks`] where there are [`PARALLEL_MIN`] items or more, and several chunks; else on the caller alone.
    ///
    /// # Panics
    /// When `work` does, or `size` is zero.
    pub fn chunks_if_many<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        if data.len() >= PARALLEL_MIN && data.len() > size {
            self.chunks(data, size, work);
        } else {
            data.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
        }
    }

    /// Calls `work(index, chunk)` for each chunk of `size` items of `data`, spread as by [`Self::run`].
    ///
    /// # Panics
    /// When `work` does, or `size` is zero.
    pub fn chunks<T: Send>(&self, data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        self.zip_chunks(data, size, &mut [] as &mut [()], 0, |index, chunk, _| work(index, chunk));
    }

    /// Calls `work(index, left, right)` for the chunks of both slices that have the same index; where `right` has none
    /// it is empty.
    ///
    /// # Panics
    /// When `work` does, or `left_size` is zero.
    pub fn zip_chunks<L: Send, R: Send>(
        &self,
        left: &mut [L],
        left_size: usize,
        right: &mut [R],
        right_size: usize,
        work: impl Fn(usize, &mut [L], &mut [R]) + Sync,
    ) {
        assert!(left_size > 0, "chunks of no items");
        let (left_len, right_len) = (left.len(), right.len());
        let (left, right) = (Divided::new(left), Divided::new(right));
        let chunk =
            |index: usize, size: usize, len: usize| (index * size).min(len)..((index + 1) * size).min(len);
        self.run(left_len.div_ceil(left_size), |index| {
            // SAFETY: each index comes once, so that no two chunks of a slice are the same.
            let (left, right) = unsafe {
                (
                    left.part(chunk(index, left_size, left_len)),
                    right.part(chunk(index, right_size, right_len)),
                )
            };
            work(index, left, right);
        });
    }
}

/// A slice whose parts go to several threads.
pub struct Divided<'a, T> {
    base: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are disjoint, and T may be sent to the threads that get them.
unsafe impl<T: Send> Sync for Divided<'_, T> {}

impl<'a, T> Divided<'a, T> {
    /// All of `data`.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { base: data.as_mut_ptr(), len: data.len(), slice: PhantomData }
    }

    /// `len` elements from `base` on, of which others may have some too, as long as nobody asks for these here.
    ///
    /// # Safety
    /// The elements are valid for `'a`.
    pub unsafe fn at(base: *mut T, len: usize) -> Self {
        Self { base, len, slice: PhantomData }
    }

    /// The elements from `first` on.
    ///
    /// # Panics
    /// When the slice has no such elements.
    pub fn after(&self, first: usize) -> Self {
        Self { base: self.pointer(&(first..self.len)), len: self.len - first, slice: PhantomData }
    }

    /// The first of the elements `range`.
    ///
    /// # Panics
    /// When the slice has no such elements.
    pub fn pointer(&self, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        // SAFETY: within the slice, or at its end.
        unsafe { self.base.add(range.start) }
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// Nobody else has any of them meanwhile.
    ///
    /// # Panics
    /// When the slice has no such elements.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: within the slice, and disjoint from other parts by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(&range), range.len()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes numbers until there are none.
fn take_turns(work: &(dyn Fn(usize) + Sync), next: &AtomicUsize, count: usize) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return;
        }
        work(index);
    }
}

impl Shared {
    /// A thread's life.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            spin_until(self.spins, || self.generation.load(Ordering::Acquire) != seen);
            let mut state = self.state.lock();
            while self.generation.load(Ordering::Acquire) == seen && !state.stop {
                self.wake.wait(&mut state);
            }
            if state.stop {
                return;
            }
            seen = self.generation.load(Ordering::Acquire);
            let Some(task) = state.task else { continue };
            state.inside += 1;
            drop(state);
            // SAFETY: `finish` waits for this thread, which has been counted as inside, before the task's owner goes on.
            let (work, next) = unsafe { (&*task.work, &*task.next) };
            let result = catch_unwind(AssertUnwindSafe(|| take_turns(work, next, task.count)));
            let mut state = self.state.lock();
            if let Err(panic) = result {
                state.panic = Some(panic);
            }
            state.inside -= 1;
            if state.inside == 0 {
                self.left.notify_one();
            }
        }
    }

    /// Withdraws the task and waits until nobody is inside; gives a thread's panic.
    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        let mut state = self.state.lock();
        state.task = None;
        // Those that are inside are at their last piece: worth a few spins.
        for _ in 0..self.spins {
            if state.inside == 0 {
                break;
            }
            parking_lot::MutexGuard::unlocked(&mut state, std::hint::spin_loop);
        }
        while state.inside > 0 {
            self.left.wait(&mut state);
        }
        state.panic.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(threads, || ()).unwrap()
    }

    #[test]
    fn every_number_comes_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 5] {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for count in [0, 1, 2, 3, 100, 1000] {
                let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, |index| {
                    seen[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{threads} {count}");
            }
        }
    }

    #[test]
    fn chunks_are_all_of_the_data() {
        let pool = pool(3);
        for (len, size) in [(0, 1), (1, 4), (10, 3), (1000, 7)] {
            let mut data = vec![0; len];
            pool.chunks(&mut data, size, |index, chunk| {
                assert!(chunk.len() == size || index == len / size);
                chunk.iter_mut().enumerate().for_each(|(i, item)| *item += index * size + i + 1);
            });
            assert!(data.iter().enumerate().all(|(i, item)| *item == i + 1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool(2);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(50, |index| assert_ne!(index, 17))));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(50, |index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 1225);
        }
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let pool = pool(2);
        std::thread::sleep(std::time::Duration::from_millis(20));
        // The two wait for each other, so that both must be there.
        let meeting = std::sync::Barrier::new(2);
        pool.run(2, |_| {
            meeting.wait();
        });
    }
}
