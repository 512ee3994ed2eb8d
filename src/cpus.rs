//! Which processors the CPU's share of the work runs on.
//!
//! On a board with big and small cores (RK3588: four Cortex-A76 and four A55) a thread on a small one holds all others
//! up: pinning to the big ones is worth +19 to +66 % in decode (source: `docs/facts.md`).

use std::path::Path;

use crate::log;

/// Where Linux tells of processors.
const SYSFS: &str = "/sys/devices/system/cpu";

/// How often a thread looks again before it parks, some ten microseconds on a board's big core; next to nothing where
/// `busy` threads at work leave no processor to spare: whoever spins there keeps the one that it waits for from its work.
pub fn spins(busy: usize) -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if busy < processors {
        2_000
    } else {
        20
    }
}

/// Looks up to `spins` times whether something is `done`.
pub fn spin_until(spins: u32, done: impl Fn() -> bool) {
    for _ in 0..spins {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
}

/// The big cores of this machine, if it has different ones.
pub fn big_cores() -> Option<Vec<usize>> {
    let capacities: Vec<(usize, u64)> = (0..1024)
        .map_while(|cpu| {
            let directory = Path::new(SYSFS).join(format!("cpu{cpu}"));
            directory.exists().then(|| (cpu, std::fs::read_to_string(directory.join("cpu_capacity"))))
        })
        .filter_map(|(cpu, text)| Some((cpu, text.ok()?.trim().parse().ok()?)))
        .collect();
    big_of(&capacities)
}

/// Those whose capacity is more than half of the largest, unless that is all of them.
fn big_of(capacities: &[(usize, u64)]) -> Option<Vec<usize>> {
    let largest = capacities.iter().map(|(_, capacity)| *capacity).max()?;
    let big: Vec<usize> =
        capacities.iter().filter(|(_, capacity)| capacity * 2 > largest).map(|(cpu, _)| *cpu).collect();
    (big.len() < capacities.len()).then_some(big)
}

/// A slice of time of a thread that has little to do at once, ns: the shortest that Linux gives.
const BRIEF: u64 = 100_000;

/// How the calling thread is scheduled; `None` where Linux does not tell.
fn attributes() -> Option<libc::sched_attr> {
    // SAFETY: plain numbers, all of which may be zero.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&attributes);
    // SAFETY: the struct is writable for its size; 0 is the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &mut attributes, size, 0) };
    (got == 0).then_some(attributes)
}

/// Asks that the calling thread, which never works for long, need not wait until others have had their slices of time, some
/// milliseconds, when it wakes up. Linux knows slices of a thread's own from 6.12 on, for which nobody needs a privilege; where
/// it does not, or the thread is scheduled in another way than most, nothing changes.
///
/// Source: `man 2 sched_setattr`; Linux 6.12, "sched/eevdf: Use sched_attr::sched_runtime to set request/slice
/// suggestion".
pub fn be_brief() {
    let Some(mut attributes) = attributes() else { return };
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    // All else, as how nice it is, stays as it is.
    attributes.sched_runtime = BRIEF;
    // SAFETY: the struct is readable for the size that it tells; 0 is the calling thread. A refusal costs time only.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0) };
}

/// Keeps the calling thread on these processors; a refusal is said, once a thread, and costs speed only.
pub fn pin(cpus: &[usize]) {
    // SAFETY: all-zero is the empty set; the macros of libc only set bits within it.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the number is below the set's size.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is valid for its size; 0 is the calling thread.
    let code = unsafe { libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set) };
    if code != 0 {
        let error = std::io::Error::last_os_error();
        log!(Warn, "threads stay where the system puts them: processors {cpus:?} are refused ({error})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_cores_are_those_with_more_than_half_of_the_largest_capacity() {
        let rk3588: Vec<_> = (0..8).map(|cpu| (cpu, if cpu < 4 { 414 } else { 1024 })).collect();
        assert_eq!(big_of(&rk3588), Some(vec![4, 5, 6, 7]));
        assert_eq!(big_of(&[(0, 1024), (1, 1024)]), None, "all alike");
        assert_eq!(big_of(&[]), None);
    }

    /// Where Linux has no slices of a thread's own it tells none, and nothing changes.
    #[test]
    fn a_brief_thread_stays_as_nice_as_it_was() {
        let work = || {
            // SAFETY: numbers; on Linux it is the calling thread that becomes nicer.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 7) }, 0);
            let before = attributes().unwrap();
            be_brief();
            let after = attributes().unwrap();
            let all = |of: &libc::sched_attr| (of.sched_policy, of.sched_flags, of.sched_nice);
            assert_eq!((all(&after), after.sched_nice), (all(&before), 7));
            assert!(after.sched_runtime == BRIEF || before.sched_runtime == 0);
        };
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn a_thread_can_be_pinned() {
        std::thread::spawn(|| pin(&[0])).join().unwrap();
    }
}
