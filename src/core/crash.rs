//! Test aids that abort the process, or make a thread panic, at a named point.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Aborts the process if the environment variable `REALIGN_CRASH_AT` equals `name`.
///
/// Integration tests use it to prove that a crash leaves either the old state or the new one.
/// Points of a realignment, in their order: `triage:after-verdicts`, `exam:after-answers` (of what serves, and
/// of a candidate), `gather:answering`, `impact:after-pass-<n>`, `train:after-step-<n>`,
/// `train:after-round-<n>`, `gate:after-exam`, `publish:after-staging`, `publish:after-rename`,
/// `publish:after-current-temp`, `publish:after-current`. Of retention: `collect:after-discard`.
/// Of a publication in a store that several servers share, in their order: `share:after-config`, `share:after-weights`,
/// `share:after-manifest`, `share:after-history`, `share:after-current`; the last two points of publishing follow.
/// Of a gateway's rollout, around each write of its state: `fleet:before-<stage>` and `fleet:after-<stage>`, with
/// `load`, `probe`, `canary`, `drain` (the switch), `unload` and `idle`.
pub fn crash_point(name: &str) {
    if std::env::var_os("REALIGN_CRASH_AT").is_some_and(|at| at == name) {
        tracing::error!(point = name, "REALIGN_CRASH_AT: aborting");
        std::process::abort();
    }
}

/// Panics, once in the life of the process, if the environment variable `REALIGN_PANIC_AT` is the
/// name of this thread (see [`Thread`](crate::Thread)): at its next heartbeat, or with `name@seconds` at
/// the first one that many seconds after the first heartbeat of all.
pub(crate) fn panic_point(thread: &str) {
    static AT: OnceLock<Option<(String, Instant)>> = OnceLock::new();
    static DONE: AtomicBool = AtomicBool::new(false);
    let at = AT.get_or_init(|| Some((std::env::var("REALIGN_PANIC_AT").ok()?, Instant::now())));
    let Some((wanted, began)) = at else { return };
    let (name, seconds) = wanted.split_once('@').unwrap_or((wanted, "0"));
    let due = Duration::from_secs(seconds.parse().unwrap_or(0));
    if name == thread && began.elapsed() >= due && !DONE.swap(true, Ordering::AcqRel) {
        panic!("REALIGN_PANIC_AT: {thread}");
    }
}
