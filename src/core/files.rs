//! The one reader of files that an operator names: policies, preference data, adapters, keys,
//! certificates, configuration, a model's small files.
//!
//! A name may lead to a named pipe, a device or a mount that does not answer. Opening or reading
//! one of those blocks for ever, so every access runs on a thread of its own: the caller waits
//! [`DEADLINE`] at most for each answer and gets an error that says why. A thread that hangs is
//! left behind. It does not keep the process from exiting, and [`MAX_HUNG`] bounds their number.
//!
//! Symbolic links to regular files are followed: that is how ConfigMaps are mounted.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(test)]
mod tests;

/// How long a file system may take for one answer: to open a file, for the next piece of it, or to
/// list a directory.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Maximum number of threads that wait for file systems which did not answer in time.
const MAX_HUNG: usize = 16;
/// Bytes of one piece of a file.
const PIECE: usize = 1 << 18;
/// These threads call read(2) and little else.
const STACK: usize = 128 << 10;

/// Why a file is refused. It reaches callers inside an [`io::Error`], next to the system's own
/// reasons; they add the path.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not a regular file but {0}")]
    NotRegular(&'static str),
    #[error("larger than {} bytes, the limit for this file{}: it has {at_least} or more", limit.bytes, limit.advice())]
    TooLarge { at_least: u64, limit: Limit },
    #[error(
        "the file system did not answer within {} s: check whether its mount hangs", .0.as_secs_f32()
    )]
    NoAnswer(Duration),
    #[error("an earlier read of it still waits for the file system: check whether its mount hangs")]
    StillWaiting,
    #[error("{MAX_HUNG} reads wait for file systems that do not answer: check whether mounts hang")]
    TooManyHung,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> io::Error {
        let kind = match refused {
            Refused::NotRegular(_) => io::ErrorKind::InvalidInput,
            Refused::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            Refused::NoAnswer(_) | Refused::StillWaiting | Refused::TooManyHung => {
                io::ErrorKind::TimedOut
            }
        };
        io::Error::new(kind, refused)
    }
}

/// The most bytes that a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    bytes: u64,
    setting: Option<&'static str>,
}

impl Limit {
    /// A fixed number of bytes.
    pub const fn bytes(bytes: u64) -> Limit {
        Limit {
            bytes,
            setting: None,
        }
    }

    /// A fixed number of MiB.
    pub const fn mib(mib: u64) -> Limit {
        Limit::bytes(mib << 20)
    }

    /// The number of bytes that the configuration key `setting` allows.
    pub const fn configured(bytes: u64, setting: &'static str) -> Limit {
        Limit {
            bytes,
            setting: Some(setting),
        }
    }

    fn advice(self) -> String {
        self.setting
            .map_or_else(String::new, |key| format!(" (`{key}`)"))
    }
}

/// Reads a whole file.
///
/// # Errors
/// The system's reason; or if it is not a regular file, is larger than `limit`, or its file system
/// does not answer. The message leaves the path to the caller.
pub fn read(path: &Path, limit: Limit) -> io::Result<Vec<u8>> {
    let file = open_at_most(path, limit)?;
    let too_large = |at_least| io::Error::from(Refused::TooLarge { at_least, limit });
    let mut bytes = Vec::with_capacity(usize::try_from(file.len).unwrap_or(0));
    file.take(limit.bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    // A file may grow, and those of /proc say that they are empty.
    match bytes.len() as u64 {
        length if length > limit.bytes => Err(too_large(length)),
        _ => Ok(bytes),
    }
}

/// Reads a whole file of UTF-8.
///
/// # Errors
/// Those of [`read`], and [`io::ErrorKind::InvalidData`].
pub fn read_text(path: &Path, limit: Limit) -> io::Result<String> {
    let bytes = read(path, limit)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// As [`read_text`]; `None` if there is no such file.
///
/// # Errors
/// Those of [`read_text`].
pub fn read_text_if_there(path: &Path, limit: Limit) -> io::Result<Option<String>> {
    match read_text(path, limit) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file as a stream. Each piece has the deadline for itself, so a large file may
/// take as long as it needs.
///
/// # Errors
/// The system's reason; or if it is not a regular file, or its file system does not answer.
pub fn open(path: &Path) -> io::Result<Stream> {
    open_within(path, DEADLINE)
}

/// As [`open`], if the file is not larger than `limit`. It may grow afterwards.
///
/// # Errors
/// As [`open`], or if it is larger.
pub fn open_at_most(path: &Path, limit: Limit) -> io::Result<Stream> {
    let file = open(path)?;
    match file.len {
        at_least if at_least > limit.bytes => Err(Refused::TooLarge { at_least, limit }.into()),
        _ => Ok(file),
    }
}

fn open_within(path: &Path, deadline: Duration) -> io::Result<Stream> {
    let opened = path.to_owned();
    let answers = ask(path, move |sender: &SyncSender<io::Result<Answer>>| {
        let mut file = match regular(&opened) {
            Ok((file, metadata)) => {
                if sender.send(Ok(Answer::Opened(metadata.len()))).is_err() {
                    return;
                }
                file
            }
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        };
        while let Some(piece) = next_piece(&mut file) {
            // The reader has gone if this fails.
            if sender.send(piece.map(Answer::Piece)).is_err() {
                return;
            }
        }
    })?;
    let len = match answers.next(deadline)?.transpose()? {
        Some(Answer::Opened(len)) => len,
        Some(Answer::Piece(_)) | None => return Err(ended()),
    };
    Ok(Stream {
        len,
        answers,
        deadline,
        piece: io::Cursor::default(),
    })
}

/// Opens a regular file for random access, such as reading tensors; its reads have no deadline.
///
/// # Errors
/// As [`open`].
pub fn open_regular(path: &Path) -> io::Result<File> {
    let opened = path.to_owned();
    within_deadline(path, move || regular(&opened).map(|(file, _)| file))
}

/// The paths in a directory, sorted.
///
/// # Errors
/// The system's reason, or if the file system does not answer.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = dir.to_owned();
    within_deadline(dir, move || {
        let entries = fs::read_dir(listed)?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    })
}

/// A file that is read piece by piece; see [`open`].
#[derive(Debug)]
pub struct Stream {
    len: u64,
    answers: Answers<io::Result<Answer>>,
    deadline: Duration,
    piece: io::Cursor<Vec<u8>>,
}

impl Stream {
    /// The file's size in bytes when it was opened. Those of /proc say that they are empty.
    pub fn size(&self) -> u64 {
        self.len
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.piece.read(into)?;
        if count > 0 || into.is_empty() {
            return Ok(count);
        }
        match self.answers.next(self.deadline)?.transpose()? {
            Some(Answer::Piece(piece)) => {
                self.piece = io::Cursor::new(piece);
                self.piece.read(into)
            }
            Some(Answer::Opened(_)) | None => Ok(0),
        }
    }
}

/// What the thread of a stream says.
#[derive(Debug)]
enum Answer {
    /// The file is open and has this many bytes.
    Opened(u64),
    /// The next bytes; never empty.
    Piece(Vec<u8>),
}

fn next_piece(file: &mut File) -> Option<io::Result<Vec<u8>>> {
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return None,
            Ok(count) => {
                piece.truncate(count);
                return Some(Ok(piece));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Opens a file, if it is a regular one. Nothing else is even opened: opening a device can have
/// effects. It is checked again once it is open, since its name may lead elsewhere by then.
fn regular(path: &Path) -> io::Result<(File, Metadata)> {
    refuse_special(&fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Without it, opening a named pipe waits for someone who writes. Regular files ignore it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    refuse_special(&metadata)?;
    Ok((file, metadata))
}

fn refuse_special(metadata: &Metadata) -> Result<(), Refused> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(Refused::NotRegular(kind(metadata))),
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let special = metadata.file_type();
        let kinds = [
            (special.is_fifo(), "a named pipe"),
            (special.is_socket(), "a socket"),
            (special.is_char_device(), "a character device"),
            (special.is_block_device(), "a block device"),
        ];
        if let Some((_, name)) = kinds.into_iter().find(|(is, _)| *is) {
            return name;
        }
    }
    match metadata.is_dir() {
        true => "a directory",
        false => "a special file",
    }
}

/// The result of `work`, which asks the file system about `path`, on a thread of its own.
///
/// # Errors
/// That of `work`, or if it has no result within [`DEADLINE`].
pub fn within_deadline<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let answers = ask(path, move |sender: &SyncSender<io::Result<T>>| {
        let _ = sender.send(work());
    })?;
    answers.next(DEADLINE)?.ok_or_else(ended)?
}

fn ended() -> io::Error {
    io::Error::other("the thread that reads it ended early")
}

/// Starts a thread that answers about `path`.
fn ask<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&SyncSender<T>) + Send + 'static,
) -> io::Result<Answers<T>> {
    let running = Running::register(path)?;
    let id = running.0;
    let (sender, receiver) = sync_channel(2);
    std::thread::Builder::new()
        .name("file-reader".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let _running = running;
            work(&sender);
        })?;
    Ok(Answers { receiver, id })
}

/// Answers of a thread started by [`ask`].
#[derive(Debug)]
struct Answers<T> {
    receiver: Receiver<T>,
    id: u64,
}

impl<T> Answers<T> {
    /// The next answer; `None` if there are no more.
    fn next(&self, deadline: Duration) -> io::Result<Option<T>> {
        match self.receiver.recv_timeout(deadline) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(read) = reads().iter_mut().find(|read| read.id == self.id) {
                    read.hangs = true;
                }
                Err(Refused::NoAnswer(deadline).into())
            }
        }
    }
}

/// A thread that reads.
struct Reading {
    id: u64,
    path: PathBuf,
    /// Whether its caller stopped waiting for it.
    hangs: bool,
}

static READS: Mutex<Vec<Reading>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn reads() -> MutexGuard<'static, Vec<Reading>> {
    READS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of [`READS`], removed when its thread ends.
struct Running(u64);

impl Running {
    fn register(path: &Path) -> Result<Running, Refused> {
        let mut reads = reads();
        let mut hung = reads.iter().filter(|read| read.hangs);
        if hung.clone().count() >= MAX_HUNG {
            return Err(Refused::TooManyHung);
        }
        if hung.any(|read| read.path == path) {
            return Err(Refused::StillWaiting);
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        reads.push(Reading {
            id,
            path: path.to_owned(),
            hangs: false,
        });
        Ok(Running(id))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        reads().retain(|read| read.id != self.0);
    }
}
