//! Whether the process may have as many open files as connections are allowed, and what a disk has left.

/// Files that are not connections: listeners, the database, logs, pipes, policies and data while they
/// are read, connections to judges and collectors.
const RESERVED: u64 = 96;

/// The connections of clients that the limit of open files leaves room for beside those of operators,
/// at most `wanted`; what is missing is logged.
pub(super) fn connections(wanted: usize, operators: usize) -> usize {
    let room = Room::find(wanted, operators);
    if room.allowed < wanted {
        tracing::warn!(
            open_files = room.soft,
            hard_limit = room.hard,
            needed = room.needed,
            max_connections = wanted,
            effective = room.allowed,
            "{TOO_FEW}"
        );
    }
    room.allowed
}

pub(super) const TOO_FEW: &str = "the limit of open files (RLIMIT_NOFILE) is too low for \
    limits.max_connections: fewer connections are accepted; raise the limit (ulimit -n, \
    LimitNOFILE=) or lower limits.max_connections";

/// What the limit of open files leaves room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Connections of clients.
    pub(super) allowed: usize,
    /// Open files that all wanted connections need.
    pub(super) needed: u64,
    /// The limit that holds; the largest number if there is none.
    pub(super) soft: u64,
    /// What it can be raised to.
    pub(super) hard: u64,
}

impl Room {
    /// Raises the soft limit as far as `wanted` connections of clients and those of operators need and
    /// the hard limit allows, and says what fits.
    pub(super) fn find(wanted: usize, operators: usize) -> Self {
        let needed = needed(wanted.saturating_add(operators));
        let (soft, hard) = raised(needed).unwrap_or((u64::MAX, u64::MAX));
        Self {
            allowed: allowed(wanted, soft.saturating_sub(operators as u64)),
            needed,
            soft,
            hard,
        }
    }
}

/// Bytes that this user may still write to the file system of a path; `None` where the system does not
/// tell.
#[cfg(unix)]
pub(super) fn free_bytes(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero, and the pointer is to a whole `statvfs` that the call fills.
    if unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let stats = unsafe { stats.assume_init() };
    // Their widths differ between systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    Some((stats.f_bavail as u64).saturating_mul(stats.f_frsize as u64))
}

#[cfg(not(unix))]
pub(super) fn free_bytes(_path: &std::path::Path) -> Option<u64> {
    None
}

/// Open files that so many connections need.
fn needed(connections: usize) -> u64 {
    (connections as u64).saturating_add(RESERVED)
}

/// Connections that fit below a limit of open files; at least one.
fn allowed(wanted: usize, limit: u64) -> usize {
    let room = limit.saturating_sub(RESERVED).max(1);
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
}

/// The soft and the hard limit, after the soft one was raised to `needed` or the hard one; `None` if
/// there is no limit, or the system does not tell.
#[cfg(unix)]
fn raised(needed: u64) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a whole `rlimit` that lives across the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    if limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let wanted = limit.rlim_max.min(needed);
    if limit.rlim_cur < wanted {
        let higher = libc::rlimit {
            rlim_cur: wanted,
            ..limit
        };
        // SAFETY: as above; the call only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const higher) } == 0 {
            limit = higher;
        }
    }
    Some((limit.rlim_cur, limit.rlim_max))
}

#[cfg(not(unix))]
fn raised(_needed: u64) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_by_open_files() {
        assert_eq!(allowed(1024, 1024), 1024 - 96);
        assert_eq!(allowed(1024, 4096), 1024);
        assert_eq!(allowed(1024, 64), 1);
        assert_eq!(allowed(4, u64::MAX), 4);
        assert_eq!(needed(usize::MAX), u64::MAX);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_system_tells_what_is_free() {
        assert!(free_bytes(std::path::Path::new("/")).is_some());
        assert_eq!(free_bytes(std::path::Path::new("/none/such")), None);
    }

    #[test]
    #[cfg(unix)]
    fn the_soft_limit_is_raised() {
        let Some((soft, hard)) = raised(1) else {
            return;
        };
        assert!(soft <= hard);
        let (higher, _) = raised(soft.saturating_add(1)).expect("there is a limit");
        assert!(
            higher > soft || soft == hard,
            "{soft} of {hard}, then {higher}"
        );
    }
}
