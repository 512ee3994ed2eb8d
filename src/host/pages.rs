//! The resident pages of weights that have a converted copy.

/// From Linux 5.4 on; libc has it for some targets only.
const MADV_PAGEOUT: libc::c_int = 21;

/// Tells the system that whole pages of `bytes` will not be read soon: pages of a file go at once and come back from
/// the file; others would go to swap, so that this is for mapped files. Nothing is lost, whatever they are; an old kernel
/// refuses, and they stay.
pub fn give_back(bytes: &[u8]) {
    // SAFETY: a plain call.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
    let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    let (start, end) = (start.next_multiple_of(page), end / page * page);
    if start < end {
        // SAFETY: the range lies within a live slice, and the advice changes no byte of it.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, MADV_PAGEOUT) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_what_they_are() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        for range in [0..0, 0..1, 5..100, 1..999_999, 4096..8192] {
            give_back(&bytes[range]);
        }
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
    }
}
