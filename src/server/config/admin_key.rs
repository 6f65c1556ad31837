//! The file with the operators' key. A server whose configuration has no such key makes one at its
//! first start; commands on the same machine read it from there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use realign_core::files::{self, Limit};

use super::keys::generate;

/// Maximum size of the file.
const LIMIT: Limit = Limit::bytes(4096);
/// Only the server's own user may read and write the file.
const MODE: u32 = 0o600;

/// Why the operators' key cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    /// The file cannot be read.
    #[error(
        "{}: {source}; run this as the server's user, or give the key itself \
         (--admin-key, REALIGN_ADMIN_KEY)",
        path.display()
    )]
    Read {
        /// The key file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file holds no key.
    #[error(
        "{}: {what}; remove it, and the next start of the server makes a new key",
        path.display()
    )]
    Content {
        /// The key file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The file cannot be made.
    #[error(
        "{}: {source}; the server keeps the operators' key there: make the directory writable for \
         it (paths.state), or set server.admin_key",
        path.display()
    )]
    Create {
        /// The key file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// The key in the file; `None` if there is no file.
///
/// # Errors
/// [`AdminKeyError`] for a file that cannot be read or holds no key.
pub fn read(path: &Path) -> Result<Option<String>, AdminKeyError> {
    let failed = |source| AdminKeyError::Read {
        path: path.to_owned(),
        source,
    };
    let content = |what| AdminKeyError::Content {
        path: path.to_owned(),
        what,
    };
    let Some(text) = files::read_text_if_there(path, LIMIT).map_err(failed)? else {
        return Ok(None);
    };
    let key = text.trim();
    if key.is_empty() {
        return Err(content("the file is empty"));
    }
    if key.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(content("more than one line or word is not a key"));
    }
    Ok(Some(key.to_owned()))
}

/// The key in the file, which is made if there is none.
///
/// # Errors
/// [`AdminKeyError`].
pub(crate) fn read_or_create(path: &Path) -> Result<String, AdminKeyError> {
    if let Some(key) = read(path)? {
        keep_private(path);
        return Ok(key);
    }
    let failed = |source| AdminKeyError::Create {
        path: path.to_owned(),
        source,
    };
    create(path).map_err(failed)?;
    // Another server on the same directory may have been faster: its key counts.
    read(path)?.ok_or_else(|| failed(ErrorKind::NotFound.into()))
}

/// Writes a new key next to the file and gives it the file's name, unless that exists by now: the
/// file is never there without a whole key, and an existing key is never replaced.
fn create(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let suffix = hex::encode(rand::random::<[u8; 6]>());
    let draft = path.with_extension(format!("{suffix}.tmp"));
    let named = write(&draft).and_then(|()| name(&draft, path));
    let removed = fs::remove_file(&draft);
    named?;
    removed.or_else(|error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    File::open(directory)?.sync_all()
}

fn write(draft: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(draft)?;
    // The umask may have taken bits away, never added any; set them all the same.
    file.set_permissions(Permissions::from_mode(MODE))?;
    writeln!(file, "{}", generate())?;
    file.sync_all()
}

fn name(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // Some file systems have no links.
        Err(_) if !path.exists() => fs::rename(draft, path),
        linked => linked,
    }
}

/// Takes the file away from other users who were given it, as a volume's ownership rules may do.
fn keep_private(path: &Path) {
    let shared = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if !shared {
        return;
    }
    match fs::set_permissions(path, Permissions::from_mode(MODE)) {
        Ok(()) => tracing::warn!(
            path = %path.display(),
            "other users could read the operators' key; now only the server's user can"
        ),
        Err(error) => tracing::warn!(
            path = %path.display(), %error,
            "other users can read the operators' key; set its mode to 0600"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_only_for_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/state/admin-key");
        assert_eq!(read(&path).unwrap(), None);
        let key = read_or_create(&path).unwrap();
        assert!(key.starts_with("rk-") && key.len() == 51, "{key}");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read_or_create(&path).unwrap(), key, "it stays");
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "no draft is left");
        fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        assert_eq!(read_or_create(&path).unwrap(), key);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn servers_that_start_together_have_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-key");
        let keys: Vec<String> = std::thread::scope(|scope| {
            let start = || read_or_create(&path).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-key");
        for text in ["", "\n", "one\ntwo\n", "one two"] {
            fs::write(&path, text).unwrap();
            let error = read_or_create(&path).unwrap_err().to_string();
            assert!(
                error.contains("admin-key") && error.contains("remove it"),
                "{error}"
            );
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read_or_create(&path).is_err());
        let beneath = dir.path().join("file/admin-key");
        fs::write(dir.path().join("file"), "").unwrap();
        let error = read_or_create(&beneath).unwrap_err().to_string();
        assert!(error.contains("file/admin-key"), "{error}");
    }
}
