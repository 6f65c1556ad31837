//! Whether the process may have as many open files as connections are allowed.

/// Files that are not connections: listeners, the database, logs, pipes, policies and data while they
/// are read, connections to judges and collectors.
const RESERVED: u64 = 96;

/// The connections of clients that the limit of open files leaves room for beside those of operators,
/// at most `wanted`. Raises the soft limit as far as that needs and the hard limit allows; what is
/// still missing is logged.
pub(super) fn connections(wanted: usize, operators: usize) -> usize {
    let needed = needed(wanted.saturating_add(operators));
    let Some((soft, hard)) = raised(needed) else {
        return wanted;
    };
    let allowed = allowed(wanted, soft.saturating_sub(operators as u64));
    if allowed < wanted {
        tracing::warn!(
            open_files = soft,
            hard_limit = hard,
            needed,
            max_connections = wanted,
            effective = allowed,
            "the limit of open files (RLIMIT_NOFILE) is too low for limits.max_connections: fewer \
             connections are accepted; raise the limit (ulimit -n, LimitNOFILE=) or lower \
             limits.max_connections"
        );
    }
    allowed
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
