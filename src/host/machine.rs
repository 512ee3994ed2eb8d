//! What this machine is: its chip, its memory, its limits.

use crate::chip::Chip;

const DEVICE_TREE: &str = "/proc/device-tree/compatible";

/// Free and total bytes of the memory that NPU and CPU share.
pub fn memory() -> (usize, usize) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_of(&text)
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
}
