//! A Unix socket to listen on: the file, who may use it, and what happens to one that is left over.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use super::sockets::BACKLOG;

/// Owner and group may connect.
const MODE: u32 = 0o660;
/// How long another process that makes a socket in the same directory is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// A listening socket, whose file is removed with it.
#[derive(Debug)]
pub(in crate::serve) struct UnixSocket {
    // Dropped first: while the socket is open, no other file can have its id.
    file: SocketFile,
    listener: UnixListener,
}

impl UnixSocket {
    /// Listens on `path`. A socket there that nothing answers on is replaced.
    ///
    /// # Errors
    /// Something answers on it, it is another kind of file, or the directory cannot be written to.
    pub(super) async fn bind(path: &Path) -> io::Result<Self> {
        // The file is removed at the end, wherever the process works then.
        let path = std::path::absolute(path)?;
        // Two servers that find the same left-over socket must not remove each other's new one.
        let _lock = lock(path.parent().unwrap_or(&path)).await?;
        remove_left_over(&path).await?;
        let socket = tokio::net::UnixSocket::new_stream()?;
        socket.bind(&path)?;
        let file = SocketFile::of(path)?;
        // Connections are refused before `listen`, so none is made with the mode that the file had first.
        fs::set_permissions(&file.path, Permissions::from_mode(MODE))?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self { file, listener })
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// The file of a socket, removed when dropped unless another one has its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: PathBuf) -> io::Result<Self> {
        let id = id(&fs::symlink_metadata(&path)?);
        Ok(Self { path, id })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| id(&found) == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file cannot be removed");
        }
    }
}

fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// The system's lock on a directory, for as long as the value lives. A file system without locks is
/// none.
async fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(RETRY).await,
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process has locked its directory",
                ));
            }
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "the socket's directory cannot be locked");
                return Ok(file);
            }
            Ok(()) => return Ok(file),
        }
    }
}

/// Removes a socket that a process left when it was killed.
async fn remove_left_over(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Also one whose queue of connections is full.
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process answers on it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bound: io::Result<UnixSocket>) -> String {
        bound.expect_err("it cannot be bound").to_string()
    }

    #[tokio::test]
    async fn a_socket_is_made_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.sock");
        let socket = UnixSocket::bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, MODE);
        let said = refused(UnixSocket::bind(&path).await);
        assert!(said.contains("answers"), "{said}");
        assert!(
            UnixStream::connect(&path).await.is_ok(),
            "the first one still listens"
        );
        drop(socket);
        assert!(!path.exists());

        // A killed process leaves the file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = UnixSocket::bind(&path).await.unwrap();
        // What has taken the path meanwhile is not this server's.
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "text").unwrap();
        let said = refused(UnixSocket::bind(&path).await);
        assert!(said.contains("no socket"), "{said}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        refused(UnixSocket::bind(&link).await);
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        refused(UnixSocket::bind(&dir.path().join("missing/r.sock")).await);
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2, "nothing else was made");
    }
}
