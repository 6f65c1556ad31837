//! Peak resident memory of this process, on systems that report it (Linux).

/// Resets the peak, so that [`peak_bytes`] counts from here. Where that is not possible, the peak
/// since the start of the process remains.
pub fn reset_peak() {
    // 5 resets VmHWM, see proc(5). Refused in some containers, which the caller can live with.
    let _refused = std::fs::write("/proc/self/clear_refs", "5");
}

/// The largest resident size since the last reset, in bytes; `None` if the system reports none.
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    parse(&status)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_status_file() {
        let status = "Name:\trealign\nVmPeak:\t  999 kB\nVmHWM:\t  2048 kB\n";
        assert_eq!(parse(status), Some(2 << 20));
        assert_eq!(parse("Name:\trealign\n"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_bytes().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
