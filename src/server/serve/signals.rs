//! What the operating system tells the server.

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
            // Without a handler the process ends at once, which is what is left.
            let _interrupted = tokio::signal::ctrl_c().await;
        }
    }
}

/// SIGHUP, from now on. Without a handler it would end the process, so it is asked for early.
pub(super) fn hangups() -> Option<Signal> {
    signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be handled"))
        .ok()
}
