//! Watches a policy directory and calls back when its content has changed.
//!
//! File events are hints: they wake the thread, which waits until they pause, reads the directory
//! and compares a digest of names and bytes with the last one. Polling does the same at an
//! interval, so that file systems without events (network mounts), a removed and recreated
//! directory, or a changed symlink in its path are noticed too.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use realign_core::Thread;
use realign_core::supervision::Vital;
use sha2::{Digest, Sha256};

use super::snapshot::Snapshot;

/// The longest that reading the directory may take before the watcher counts as hung.
const LONGEST_LOOK: Duration = Duration::from_secs(120);

/// When the watcher reads the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// Time without file events before the directory is read. A continuous stream of events delays
    /// reading by at most ten times this.
    pub debounce: Duration,
    /// The directory is read at least this often, events or not; greater than zero.
    pub poll_interval: Duration,
    /// Whether to use file events; if false, the watcher only polls.
    pub file_events: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        WatchOptions {
            debounce: Duration::from_millis(300),
            poll_interval: Duration::from_secs(2),
            file_events: true,
        }
    }
}

/// Why watching cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The poll interval is zero, which would read the directory without pause.
    #[error("the policy poll interval is 0; set it to a positive time, e.g. 2 s")]
    ZeroPollInterval,
    /// The operating system could not start the thread.
    #[error("cannot start the policy watcher's thread: {0}")]
    Thread(#[source] io::Error),
}

/// A running watcher. Dropping it stops its thread and waits for it.
#[derive(Debug)]
pub struct PolicyWatcher {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    vital: Arc<Vital>,
    thread: Option<JoinHandle<()>>,
}

impl PolicyWatcher {
    /// Starts watching. `on_change` is called, on the watcher's thread, once for each change of
    /// the policy files' names or bytes since this call; so load the directory after it, not
    /// before, and no change is missed. The directory need not exist yet.
    ///
    /// # Errors
    /// If the poll interval is zero or the thread cannot be started. Unavailable file events are not
    /// an error: they are logged, and polling continues.
    pub fn start(
        dir: impl Into<PathBuf>,
        options: WatchOptions,
        on_change: impl Fn() + Send + 'static,
    ) -> Result<PolicyWatcher, WatchError> {
        if options.poll_interval.is_zero() {
            return Err(WatchError::ZeroPollInterval);
        }
        let dir = dir.into();
        // One slot: a wake-up that is pending already need not be repeated.
        let (wake, woken) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        // The events are armed before the first digest, so no change falls between the two.
        let mut events = options
            .file_events
            .then(|| FileEvents::new(dir.clone(), wake.clone()));
        if let Some(events) = &mut events {
            events.rearm();
        }
        let digest = directory_digest(&dir);
        let vital = Arc::new(Vital::new(Thread::PolicyWatch, LONGEST_LOOK));
        let mut worker = Worker {
            dir,
            options,
            stop: Arc::clone(&stop),
            woken,
            events,
            digest,
            vital: Arc::clone(&vital),
        };
        let (own, stopping) = (Arc::clone(&vital), Arc::clone(&stop));
        let run = move || {
            let stopping = || stopping.load(Ordering::Acquire);
            own.run_restarting(stopping, || worker.run(&on_change));
        };
        let thread = std::thread::Builder::new()
            .name(Thread::PolicyWatch.as_str().to_owned())
            .spawn(run)
            .map_err(WatchError::Thread)?;
        Ok(PolicyWatcher {
            stop,
            wake,
            vital,
            thread: Some(thread),
        })
    }

    /// The signs of life of its thread.
    pub fn vital(&self) -> Arc<Vital> {
        Arc::clone(&self.vital)
    }
}

impl Drop for PolicyWatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full slot wakes the thread as well.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the policy watcher's thread panicked");
        }
    }
}

/// State of the watcher's thread.
struct Worker {
    dir: PathBuf,
    options: WatchOptions,
    stop: Arc<AtomicBool>,
    woken: Receiver<()>,
    events: Option<FileEvents>,
    digest: [u8; 32],
    vital: Arc<Vital>,
}

impl Worker {
    fn run(&mut self, on_change: &impl Fn()) {
        while self.wait() {
            self.vital.beat();
            if let Some(events) = &mut self.events {
                events.rearm();
            }
            let digest = directory_digest(&self.dir);
            if digest != self.digest {
                on_change();
                self.digest = digest;
            }
            self.vital.rest();
        }
    }

    /// Waits until the directory should be read; `false` if the watcher should stop.
    fn wait(&self) -> bool {
        let event = match self.woken.recv_timeout(self.options.poll_interval) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        let deadline = Instant::now() + self.options.debounce * 10;
        while event && !self.stopping() && Instant::now() < deadline {
            match self.woken.recv_timeout(self.options.debounce) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        !self.stopping()
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Subscription to the directory's file events, renewed when the path resolves to another
/// directory.
struct FileEvents {
    dir: PathBuf,
    wake: SyncSender<()>,
    armed: Option<(DirIdentity, RecommendedWatcher)>,
    warned: bool,
}

impl FileEvents {
    fn new(dir: PathBuf, wake: SyncSender<()>) -> FileEvents {
        FileEvents {
            dir,
            wake,
            armed: None,
            warned: false,
        }
    }

    /// Watches the directory that the path resolves to now, unless it is watched already.
    fn rearm(&mut self) {
        let identity = dir_identity(&self.dir);
        if self.armed.as_ref().map(|(armed, _)| armed) == identity.as_ref() {
            return;
        }
        self.armed = None;
        let Some(identity) = identity else { return };
        match self.watch() {
            Ok(watcher) => self.armed = Some((identity, watcher)),
            Err(error) if !self.warned => {
                self.warned = true;
                tracing::warn!(dir = %self.dir.display(), %error, "no file events; policies are polled");
            }
            Err(_) => {}
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let wake = self.wake.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Our own reads open and close files; reacting to those would loop forever.
            let own_reading = event.as_ref().is_ok_and(|e| match e.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
                EventKind::Access(_) => true,
                _ => false,
            });
            if !own_reading {
                let _ = wake.try_send(());
            }
        })?;
        watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Resolved path and inode; they differ if the directory was replaced.
type DirIdentity = (PathBuf, u64);

#[cfg(unix)]
fn dir_identity(dir: &Path) -> Option<DirIdentity> {
    use std::os::unix::fs::MetadataExt;
    let real = dir.canonicalize().ok()?;
    let inode = std::fs::metadata(&real).ok()?.ino();
    Some((real, inode))
}

#[cfg(not(unix))]
fn dir_identity(dir: &Path) -> Option<DirIdentity> {
    dir.canonicalize().ok().map(|real| (real, 0))
}

/// Digest of the directory's files. A directory that cannot be read contributes the kind of its
/// error, so that becoming readable counts as a change.
fn directory_digest(dir: &Path) -> [u8; 32] {
    match Snapshot::read(dir) {
        Ok(snapshot) => snapshot.digest(),
        Err(error) => Sha256::digest(error.kind().to_string()).into(),
    }
}
