//! Handling of SIGTERM, SIGINT and SIGHUP.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Exit code of a process whose shutdown did not end within its limits.
pub const EXIT_STUCK: i32 = 3;

/// A signal that ends a process by default: its number.
async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> i32 {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
    }
}

/// Starts to receive SIGTERM and SIGINT, on a thread of its own, so that they work whatever the rest
/// of the server does. The receiver becomes true with the first signal. From then on the process has
/// `limit` to end, and a second signal ends it at once (exit code 128 + its number), unless the
/// receiver is dropped before.
///
/// # Errors
/// If the system refuses the thread or the handlers.
pub(super) fn terminations(limit: Duration) -> io::Result<watch::Receiver<bool>> {
    let (begin, begun) = watch::channel(false);
    let (told, registered) = mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(told.send(Err(error))),
        };
        runtime.block_on(async move {
            let both = signal(SignalKind::terminate())
                .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
            match both {
                Ok(signals) => {
                    let _nobody_waits = told.send(Ok(()));
                    receive(signals, &begin, limit).await;
                }
                Err(error) => drop(told.send(Err(error))),
            }
        });
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(run)?;
    registered
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the signals' thread ended")))?;
    Ok(begun)
}

async fn receive(
    (mut terminate, mut interrupt): (Signal, Signal),
    begin: &watch::Sender<bool>,
    limit: Duration,
) {
    tokio::select! {
        _ = next(&mut terminate, &mut interrupt) => {}
        // The server has ended for another reason.
        _ = begin.closed() => return,
    }
    // The receiver may be gone.
    let _ended = begin.send(true);
    tokio::select! {
        number = next(&mut terminate, &mut interrupt) => {
            tracing::warn!(signal = number, "a second signal: the process ends at once");
            std::process::exit(128 + number);
        }
        () = tokio::time::sleep(limit) => {
            tracing::error!(seconds = limit.as_secs(), "the shutdown did not end in time");
            std::process::exit(EXIT_STUCK);
        }
        _ = begin.closed() => {}
    }
}

/// What [`keep_hangups`] receives, until a server takes it.
static KEPT: Mutex<Option<Signal>> = Mutex::new(None);

/// Keeps SIGHUP from ending the process while a server is still loaded; one that comes meanwhile is
/// handled by [`Server::run`](super::Server::run). Call it within the runtime that runs the server.
pub fn keep_hangups() {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = receive_hangups();
}

/// Starts to receive SIGHUP, or goes on where [`keep_hangups`] did.
pub(super) fn hangups() -> Option<Signal> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    kept.or_else(receive_hangups)
}

fn receive_hangups() -> Option<Signal> {
    signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be handled"))
        .ok()
}
