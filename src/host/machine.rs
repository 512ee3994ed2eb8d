//! What this machine is: its chip, its memory, its limits.

use std::path::{Path, PathBuf};

use crate::chip::Chip;

const DEVICE_TREE: &str = "/proc/device-tree/compatible";
/// Where groups of processes have their limits, where there are such groups (version 2 of them).
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Free and total bytes of the memory that NPU and CPU share, as far as this process may have them: a container or a
/// service may have less than the board. Zeros, for which llama.cpp takes its own figures, where nothing is known.
pub fn memory() -> (usize, usize) {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let memory = memory_of(&read(Path::new("/proc/meminfo")));
    groups_of(&read(Path::new("/proc/self/cgroup"))).iter().fold(memory, |memory, group| {
        let text = |name: &str| read(&group.join(name));
        limited(memory, &text("memory.max"), &text("memory.current"), &text("memory.stat"))
    })
}

/// The folders of the groups that a process is in by its `/proc/self/cgroup`: its own, and each one around it.
fn groups_of(cgroup: &str) -> Vec<PathBuf> {
    let Some(path) = cgroup.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let root = Path::new(CONTROL_GROUPS);
    let own = root.join(path);
    own.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect()
}

/// Free and total bytes within a group's limit, by its `memory.max`, `memory.current` and `memory.stat`; pages of files
/// that were not read lately count as free, as they do in `MemAvailable`.
fn limited((free, total): (usize, usize), max: &str, current: &str, stat: &str) -> (usize, usize) {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    // "max", or no such file: no limit.
    let (Some(max), Some(current)) = (number(max), number(current)) else { return (free, total) };
    let files = stat.lines().find_map(|line| number(line.strip_prefix("inactive_file ")?)).unwrap_or(0);
    let used = current.saturating_sub(files);
    (free.min(max.saturating_sub(used)), total.min(max))
}

/// The chip that the device tree names.
///
/// # Errors
/// A sentence with what it names instead.
pub fn chip_of_this_board() -> Result<&'static Chip, String> {
    let property = std::fs::read(DEVICE_TREE).unwrap_or_default();
    Chip::by_compatible(&property).ok_or_else(|| {
        let board = String::from_utf8_lossy(&property).replace('\0', " ");
        let board = if board.trim().is_empty() { "no device tree" } else { board.trim() };
        format!(
            "no chip that is known ({board}), expected one of {}; RKNPU_SOC names it by hand",
            Chip::names()
        )
    })
}

/// `MemAvailable` and `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_of(meminfo: &str) -> (usize, usize) {
    let kib = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    (kib("MemAvailable") * 1024, kib("MemTotal") * 1024)
}

/// Each allocation is a file descriptor, and the vendor's library crashes when they run out.
pub fn raise_fd_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the call reads the struct that it is given.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(memory_of(text), (12_345_678 * 1024, 24_684_096 * 1024));
        assert_eq!(memory_of(""), (0, 0));
    }

    #[test]
    fn a_group_may_have_less_than_the_board() {
        let board = (1000, 4000);
        assert_eq!(limited(board, "max\n", "10\n", ""), board);
        assert_eq!(limited(board, "", "", ""), board, "no such file");
        assert_eq!(limited(board, "700\n", "600\n", "anon 5\ninactive_file 150\n"), (250, 700));
        assert_eq!(limited(board, "700", "900", ""), (0, 700), "over its limit");
        assert_eq!(limited(board, "9000", "1", ""), board, "a limit that is none");
        let folders =
            |text| groups_of(text).iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            folders("1:name=x:/y\n0::/system.slice/llama.service\n"),
            ["/sys/fs/cgroup/system.slice/llama.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"]
        );
        assert_eq!(folders("0::/\n"), ["/sys/fs/cgroup/"]);
        assert_eq!(folders("4:memory:/user\n"), [""; 0]);
        let (free, total) = memory();
        assert!(free > 0 && free <= total);
    }
}
