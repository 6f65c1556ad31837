//! What is kept of a model's files between starts, and by what they are recognised.
//!
//! A start needs the SHA-256 of the files: it is the base model's identity, and names what was packed
//! of them. Reading gigabytes for it takes seconds, so it is written down with an [`Identity`]: the
//! files' places, device and inode numbers, sizes, times of the last change of content and of metadata
//! to the nanosecond, and a hash over samples of the content. The second time is set by the system
//! whenever a file is written, renamed or given other times, and can be set back by setting the clock only. Only if
//! all of that is as it was is the hash believed; else the files are read.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use realign_core::clock;
use realign_core::files::{self, Limit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[cfg(test)]
mod tests;

/// A directory for what is made of a model's files, and how large it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsCache {
    /// The directory; made when something is kept.
    pub directory: PathBuf,
    /// Most bytes of packed weights.
    pub max_bytes: u64,
}

/// Samples of each file, spread evenly.
const SAMPLES: u64 = 256;
/// Bytes of a sample, and of the file's beginning, which holds the header.
const SAMPLE: u64 = 4096;
const BEGINNING: u64 = 1 << 20;
/// A file that changed so lately may change again within the same tick of the file system's clock.
const SETTLED_SECONDS: u64 = 2;
/// Most bytes of what is written down of a model.
const MAX_NOTE: Limit = Limit::mib(1);

/// What tells files from others, short of reading all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    files: Vec<Seen>,
    quantisation: Option<String>,
    /// SHA-256 over samples of the content.
    samples: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    size: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// An identity with the hash of the files that have it.
#[derive(Serialize, Deserialize)]
struct Note {
    identity: Identity,
    hash: String,
    /// SHA-256 of both: a damaged note is none.
    check: String,
}

impl Identity {
    pub(crate) fn of(paths: &[PathBuf], quantisation: Option<String>) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let mut seen = Vec::with_capacity(paths.len());
        for path in paths {
            let mut file = files::open_regular(path)?;
            seen.push(Seen::of(path, &file)?);
            sample(&mut file, &mut hash)?;
        }
        Ok(Self {
            files: seen,
            quantisation,
            samples: hex::encode(hash.finalize()),
        })
    }

    /// Whether no file changed so lately that another change might not be seen by its times.
    fn is_settled(&self) -> bool {
        let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
        let settled = |time: (i64, i64)| time.0 + (SETTLED_SECONDS as i64) < now;
        let mut files = self.files.iter();
        files.all(|seen| settled(seen.modified) && settled(seen.changed))
    }

    /// A name for the files' places.
    fn place(&self) -> String {
        let mut hash = Sha256::new();
        for seen in &self.files {
            hash.update(seen.path.as_os_str().as_encoded_bytes());
            hash.update([0]);
        }
        hash.update(self.quantisation.as_deref().unwrap_or_default());
        hex::encode(&hash.finalize()[..16])
    }
}

impl Seen {
    #[cfg(unix)]
    fn of(path: &Path, file: &File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.canonicalize()?,
            size: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Elsewhere files have no numbers, and are read.
    #[cfg(not(unix))]
    fn of(_: &Path, _: &File) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn sample(file: &mut File, hash: &mut Sha256) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut part = |file: &mut File, at: u64, length: u64| -> io::Result<()> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.take(length).read_to_end(&mut bytes)?;
        hash.update(&bytes);
        Ok(())
    };
    part(file, 0, BEGINNING)?;
    let last = size.saturating_sub(SAMPLE);
    for index in 0..=SAMPLES {
        // In 128 bits: no size overflows.
        let at = u128::from(last) * u128::from(index) / u128::from(SAMPLES);
        part(file, u64::try_from(at).unwrap_or(last), SAMPLE)?;
    }
    Ok(())
}

impl Note {
    fn sum(identity: &Identity, hash: &str) -> Option<String> {
        let text = serde_json::to_string(identity).ok()?;
        Some(hex::encode(Sha256::digest(format!("{text} {hash}"))))
    }
}

impl WeightsCache {
    fn note(&self, identity: &Identity) -> PathBuf {
        let name = format!("{}.json", identity.place());
        self.directory.join("known").join(name)
    }

    /// The hash of files that were read before and have not changed.
    pub(crate) fn recall(&self, identity: &Identity) -> Option<String> {
        let text = files::read_text_if_there(&self.note(identity), MAX_NOTE).ok()??;
        let note: Note = serde_json::from_str(&text).ok()?;
        let whole = note.identity == *identity
            && Note::sum(identity, &note.hash).as_ref() == Some(&note.check);
        whole.then_some(note.hash)
    }

    /// Writes the hash of files down. What cannot be written is found again by reading.
    pub(crate) fn remember(&self, identity: &Identity, hash: &str) {
        if !identity.is_settled() {
            return;
        }
        if let Err(error) = self.write_note(identity, hash) {
            tracing::debug!(%error, directory = %self.directory.display(), "a model's hash is not kept");
        }
    }

    fn write_note(&self, identity: &Identity, hash: &str) -> io::Result<()> {
        let check = Note::sum(identity, hash).ok_or(io::ErrorKind::InvalidData)?;
        let note = Note {
            identity: identity.clone(),
            hash: hash.into(),
            check,
        };
        let path = self.note(identity);
        let directory = path.parent().unwrap_or(&self.directory);
        make_private(directory)?;
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let mut file = File::create(&part)?;
        file.write_all(serde_json::to_string(&note)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &path)
    }
}

/// Makes a directory, and those above it, that others cannot write to.
///
/// # Errors
/// The system's reason.
pub fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}
