//! Files as memory.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

use crate::aligned::AlignedBytes;

/// The bytes of a packed weight.
#[derive(Debug)]
pub(crate) enum Panels {
    /// In memory of its own.
    Own(AlignedBytes),
    /// A part of a file that is mapped, and stays so with it.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl std::ops::Deref for Panels {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Panels::Own(bytes) => bytes,
            Panels::Mapped(map, range) => &map[range.clone()],
        }
    }
}

/// Opens a file of weights; `None` if there is none.
///
/// # Errors
/// If it is no file that only its owner could have written.
pub(super) fn open(path: &Path) -> Result<Option<File>, String> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NOFOLLOW | libc::O_NONBLOCK,
    );
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    if !metadata.is_file() {
        return Err("it is no regular file".into());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: reads a number of the process; it cannot fail.
        let own = unsafe { libc::geteuid() };
        if metadata.uid() != own && metadata.uid() != 0 {
            return Err(format!(
                "it belongs to user {}, and this process is of user {own}",
                metadata.uid()
            ));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err("others than its owner may write to it".into());
        }
    }
    Ok(Some(file))
}

/// Maps a whole file, read-only and shared with every process that maps it.
///
/// # Errors
/// The system's reason.
pub(super) fn map(file: &File) -> std::io::Result<Arc<Mmap>> {
    // SAFETY: the file is complete, and this program never writes to a complete one or cuts it: it is
    // made under another name, has no permission to write from then on, and is only renamed and
    // unlinked. Another program of the same user that truncates it ends this process by SIGBUS, or
    // tears weights if it writes (docs/unsafe.md).
    let map = unsafe { MmapOptions::new().map(file)? };
    // Pages of 2 MiB, where the file system keeps them so. Advice: what is refused changes nothing.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Arc::new(map))
}
