//! Locks on directories: one process at a time may change what a directory holds.
//!
//! A lock is the operating system's lock on a file in the directory. It ends with the process that
//! holds it, however that ends, so a kill leaves nothing to clean up. The file stays: its content,
//! one line of JSON, names the last holder for people and for error messages.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::unix_seconds;

/// The lock of a whole directory. A process that holds it for long is a server.
pub const LOCK_FILE: &str = "LOCK";
/// Time between two attempts to take a lock.
const RETRY: Duration = Duration::from_millis(20);

/// The process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id, in its own container where it runs in one.
    pub pid: u32,
    /// The name of its host or container.
    pub host: String,
    /// When it took the lock, in Unix seconds.
    pub started_at: u64,
    /// What runs, such as `realign serve`.
    pub command: String,
    /// The address that a server listens on; `None` for commands, and before it listens.
    pub listen: Option<String>,
}

impl Holder {
    /// This process, from now on.
    pub fn this_process(listen: Option<String>) -> Self {
        Self {
            pid: std::process::id(),
            host: host_name(),
            started_at: unix_seconds(),
            command: command_name(),
            listen,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = unix_seconds().saturating_sub(self.started_at) / 60;
        let (command, pid, host) = (&self.command, self.pid, &self.host);
        write!(
            f,
            "`{command}` (process {pid} on {host}, for {minutes} minutes"
        )?;
        if let Some(listen) = &self.listen {
            write!(f, ", listening on {listen}")?;
        }
        f.write_str(")")
    }
}

fn host_name() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname");
    let name = kernel.or_else(|_| std::env::var("HOSTNAME").map_err(io::Error::other));
    name.map_or_else(|_| "this host".into(), |name| name.trim().into())
}

/// The program and its subcommand. Other arguments may be secret, and flags are.
fn command_name() -> String {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default();
    let mut name = program.to_string_lossy().into_owned();
    let is_word = |word: &String| word.bytes().all(|b| b.is_ascii_lowercase());
    let words = arguments.map(|argument| argument.to_string_lossy().into_owned());
    for word in words.take_while(is_word).take(2) {
        name.push(' ');
        name.push_str(&word);
    }
    name
}

/// What a lock is on.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory; created if it is missing.
    pub dir: &'a Path,
    /// The file in it that is locked.
    pub file: &'static str,
    /// What to do if another process holds the lock, as the end of an error message.
    pub advice: &'static str,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is in use by {}; {advice}", dir.display(), shown(holder.as_deref()))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds the lock; `None` if the lock file does not say.
        holder: Option<Box<Holder>>,
        /// What to do.
        advice: &'static str,
    },
    /// The directory cannot be written to, or its file system has no locks.
    #[error("{}: {source}; the directory must be writable, on a file system with file locks", path.display())]
    Io {
        /// The lock file, or its directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

fn shown(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".into(), |holder| holder.to_string())
}

/// A lock that this process holds, until it is released or dropped.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    name: &'static str,
    advice: &'static str,
    file: Mutex<Option<File>>,
    /// What the file says.
    holder: Mutex<Holder>,
}

impl DirLock {
    /// Takes a lock, waiting for at most `patience` while another process, or another part of this
    /// one, holds it.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(place: Place<'_>, holder: &Holder, patience: Duration) -> Result<Self, LockError> {
        let lock = Self {
            dir: place.dir.to_owned(),
            name: place.file,
            advice: place.advice,
            file: Mutex::new(Some(Self::locked(place, patience)?)),
            holder: Mutex::new(holder.clone()),
        };
        lock.describe(holder);
        Ok(lock)
    }

    fn locked(place: Place<'_>, patience: Duration) -> Result<File, LockError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { path, source }
        };
        fs::create_dir_all(place.dir).map_err(failed(place.dir))?;
        let path = place.dir.join(place.file);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(failed(&path))?;
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the system's locks have no timed wait"
                    )]
                    std::thread::sleep(RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        dir: place.dir.to_owned(),
                        holder: holder_in(&path).map(Box::new),
                        advice: place.advice,
                    });
                }
                Err(TryLockError::Error(source)) => return Err(failed(&path)(source)),
            }
        }
    }

    /// Takes the lock again where its file was removed or replaced, with the directory if need be:
    /// another process could lock the file that is there now. Returns whether it had to. A lock that
    /// was released stays released.
    ///
    /// # Errors
    /// [`LockError`] if another process was faster, or the file cannot be made: this process may not
    /// change the directory then.
    pub fn take_again(&self) -> Result<bool, LockError> {
        let mut file = self.file();
        let Some(held) = file.as_ref() else {
            return Ok(false);
        };
        let place = Place {
            dir: &self.dir,
            file: self.name,
            advice: self.advice,
        };
        if is_at(held, &self.dir.join(self.name)) {
            return Ok(false);
        }
        *file = Some(Self::locked(place, Duration::ZERO)?);
        drop(file);
        let holder = self.holder().clone();
        self.describe(&holder);
        Ok(true)
    }

    /// Who holds a lock now, without taking it or making anything: `None` if it is free. The inner
    /// value is `None` if the lock file names no holder.
    ///
    /// # Errors
    /// [`LockError::Io`] if that cannot be told.
    pub fn look(place: Place<'_>) -> Result<Option<Option<Holder>>, LockError> {
        let path = place.dir.join(place.file);
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock_shared() {
            // Closing the file releases it.
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder_in(&path))),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Writes into the file who holds the lock. It is information only: a full disk is no reason not
    /// to hold it.
    pub fn describe(&self, holder: &Holder) {
        *self.holder() = holder.clone();
        let write = |mut file: &File| -> io::Result<()> {
            let line = format!("{}\n", serde_json::to_string(holder)?);
            file.seek(SeekFrom::Start(0))?;
            file.write_all(line.as_bytes())?;
            file.set_len(line.len() as u64)
        };
        if let Some(Err(error)) = self.file().as_ref().map(write) {
            tracing::debug!(%error, "a lock file does not name its holder");
        }
    }

    /// Whether it has not been released.
    pub fn is_held(&self) -> bool {
        self.file().is_some()
    }

    /// Releases the lock; calling it again does nothing.
    pub fn release(&self) {
        // Closing the file releases it.
        drop(self.file().take());
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an open file is the one at a path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => number(open) == number(there),
        // What cannot be looked at for another reason was not removed.
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        (Err(_), _) => true,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Who holds a lock, according to its file.
fn holder_in(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place<'_> {
        Place {
            dir,
            file: LOCK_FILE,
            advice: "choose another",
        }
    }

    #[test]
    fn one_holder_at_a_time_and_the_error_names_it() {
        let root = std::env::temp_dir().join(format!("realign-lock-{}", std::process::id()));
        let dir = root.join("made/on/the/way");
        let holder = Holder::this_process(Some("127.0.0.1:8080".into()));
        let take = |patience| DirLock::take(place(&dir), &holder, patience);
        let lock = take(Duration::ZERO).unwrap();
        let error = take(Duration::from_millis(50)).unwrap_err();
        let text = error.to_string();
        for part in [
            "is in use by",
            &format!("process {}", std::process::id()),
            "listening on 127.0.0.1:8080",
            "; choose another",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let line = fs::read_to_string(dir.join(LOCK_FILE)).unwrap();
        let written: Holder = serde_json::from_str(line.trim()).unwrap();
        assert_eq!(written, holder);
        lock.describe(&Holder {
            listen: None,
            host: "h".into(),
            ..holder.clone()
        });
        let shorter = holder_in(&dir.join(LOCK_FILE)).unwrap();
        assert_eq!((shorter.listen, shorter.host.as_str()), (None, "h"));
        assert!(matches!(DirLock::look(place(&dir)), Ok(Some(Some(h))) if h.host == "h"));
        lock.release();
        assert!(!lock.is_held());
        assert!(matches!(DirLock::look(place(&dir)), Ok(None)));
        assert!(matches!(DirLock::look(place(&root)), Ok(None)));
        assert!(!root.join(LOCK_FILE).exists());
        let again = take(Duration::ZERO).unwrap();
        drop(lock);
        assert!(again.is_held() && take(Duration::ZERO).is_err());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_again_unless_another_was_faster() {
        let root = std::env::temp_dir().join(format!("realign-lock-again-{}", std::process::id()));
        let dir = root.join("adapters");
        let holder = Holder::this_process(Some("127.0.0.1:8080".into()));
        let take = || DirLock::take(place(&dir), &holder, Duration::ZERO);
        let lock = take().unwrap();
        assert!(!lock.take_again().unwrap(), "it is there");
        fs::remove_dir_all(&dir).unwrap();
        assert!(lock.take_again().unwrap());
        assert!(take().is_err(), "it is held again");
        assert_eq!(holder_in(&dir.join(LOCK_FILE)), Some(holder.clone()));
        assert!(!lock.take_again().unwrap());

        fs::remove_dir_all(&dir).unwrap();
        let other = take().unwrap();
        let error = lock.take_again().unwrap_err().to_string();
        assert!(error.contains("is in use by"), "{error}");
        drop(other);
        assert!(lock.take_again().unwrap(), "the other one has ended");

        lock.release();
        fs::remove_dir_all(&dir).unwrap();
        assert!(
            !lock.take_again().unwrap() && !dir.exists(),
            "released for good"
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_file_that_names_nobody_is_still_a_lock() {
        let dir = std::env::temp_dir().join(format!("realign-lock-free-{}", std::process::id()));
        let holder = Holder::this_process(None);
        let _lock = DirLock::take(place(&dir), &holder, Duration::ZERO).unwrap();
        fs::write(dir.join(LOCK_FILE), "{\"pid\":").unwrap();
        let error = DirLock::take(place(&dir), &holder, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
