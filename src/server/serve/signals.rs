//! Handling of SIGTERM, SIGINT and SIGHUP.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for SIGTERM or SIGINT.
pub(super) async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be handled; SIGINT can");
            // If this fails as well, SIGINT has no handler and ends the process.
            let _interrupted = tokio::signal::ctrl_c().await;
        }
    }
}

/// Starts to receive SIGHUP. Call this early: without a handler SIGHUP ends the process.
pub(super) fn hangups() -> Option<Signal> {
    signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be handled"))
        .ok()
}
