//! Addresses, directories and the clock.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Finding;
use crate::config::{Address, Paths};
use realign_core::clock::since_1970;

/// How far in the future a file may be: clocks of machines that share a disk differ.
const SLACK: Duration = Duration::from_secs(120);
/// 2026-01-01: no server of this release ran before.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// Whether an address is free. A socket that nothing answers on is: a start replaces it.
pub(super) fn listenable(address: &Address) -> io::Result<()> {
    let path = match address {
        Address::Tcp(address) => return TcpListener::bind(address).map(drop),
        Address::Unix(path) => std::path::absolute(path)?,
    };
    match std::fs::symlink_metadata(&path) {
        Ok(file) if !file.file_type().is_socket() => {
            let why = "a file that is no socket has its place: move it away";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
        }
        Ok(_) => match UnixStream::connect(&path).map_err(|error| (error.kind(), error)) {
            Err((io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _)) => beside(&path),
            Err((io::ErrorKind::PermissionDenied, error)) => Err(error),
            // As at a start: also one that answers in another way.
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => beside(&path),
        Err(error) => Err(error),
    }
}

/// Whether a file can be made beside the path, in a directory that is there.
fn beside(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    std::fs::metadata(directory).map(drop)?;
    writable(directory).map_err(|(_, error)| error)
}

/// The directory, or the nearest one above it that exists.
pub(super) fn existing(dir: &Path) -> PathBuf {
    let found = dir.ancestors().find(|dir| dir.exists());
    match found {
        Some(dir) => dir.to_owned(),
        None => PathBuf::from("."),
    }
}

/// Whether a file can be made in the directory, or the directory itself where it will be made. The file
/// is removed again.
pub(super) fn writable(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let place = existing(dir);
    let name = format!(".realign-doctor-{}", std::process::id());
    let path = place.join(name);
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).open(&path);
    made.and_then(|_file| std::fs::remove_file(&path))
        .map_err(|error| (place, error))
}

/// Whether the clock is where the files of the state directory say it has been.
pub(super) fn clock(paths: &Paths) -> Finding {
    const SUBJECT: &str = "clock";
    let since = since_1970();
    let now = SystemTime::UNIX_EPOCH + since;
    if since < EPOCH {
        return Finding::fault(
            SUBJECT,
            "it is set to a time before this release: set it, or certificates and ages are wrong",
        );
    }
    let written = std::fs::metadata(paths.database()).and_then(|m| m.modified());
    match written.ok().and_then(|at| at.duration_since(now).ok()) {
        Some(ahead) if ahead > SLACK => Finding::warning(
            SUBJECT,
            format!(
                "{} was written {} minutes from now: the clock was set back, and ages and \
                 [retention] count wrongly until then",
                paths.database().display(),
                ahead.as_secs() / 60
            ),
        ),
        _ => Finding::ok(SUBJECT, "set, and not behind what was written"),
    }
}
