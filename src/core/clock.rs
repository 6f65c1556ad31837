//! The wall clock: the only reader of the system's time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the start of 1970; zero on a machine whose clock is set before that.
pub fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Whole seconds since the start of 1970.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}
