//! Keeping the cache within its bound: what was used longest ago goes first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use realign_core::clock;
use realign_model::cache::WeightsCache;

/// How the names of files of weights end.
pub(super) const EXTENSION: &str = "weights";
/// What was not used for so long goes, whatever the bound: its model may be gone.
const UNUSED: Duration = Duration::from_secs(60 * 24 * 3600);

struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + clock::since_1970()
}

/// Says that a file is used.
pub(super) fn touch(file: &File) {
    // On a file system that is read-only there is nothing to remove either.
    let _ = file.set_modified(now());
}

/// Removes what is too much, but never `newest`. Servers that have a removed file mapped keep it.
pub(super) fn to_bound(cache: &WeightsCache, newest: &Path) {
    let mut kept = kept(&cache.directory);
    kept.sort_by_key(|kept| kept.used);
    let mut all: u64 = kept.iter().map(|kept| kept.bytes).sum();
    for old in kept {
        let unused = now().duration_since(old.used).unwrap_or_default() > UNUSED;
        if old.path == newest || (all <= cache.max_bytes && !unused) {
            continue;
        }
        match fs::remove_file(&old.path) {
            Ok(()) => {
                all = all.saturating_sub(old.bytes);
                tracing::info!(
                    path = %old.path.display(),
                    mb = old.bytes >> 20,
                    "packed weights removed from the cache (engine.weights_cache_gb, or unused for 60 days)"
                );
            }
            Err(error) => {
                tracing::warn!(path = %old.path.display(), %error, "packed weights cannot be removed");
            }
        }
    }
}

/// All files of weights; what cannot be looked at is left out.
fn kept(directory: &Path) -> Vec<Kept> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let shelves = entries(directory);
    let files = shelves.flat_map(|shelf| entries(&shelf.path()).collect::<Vec<_>>());
    let one = |entry: fs::DirEntry| {
        let path = entry.path();
        let metadata = entry.metadata().ok()?;
        let is_kept = metadata.is_file() && path.extension().is_some_and(|e| e == EXTENSION);
        is_kept.then_some(Kept {
            bytes: metadata.len(),
            used: metadata.modified().ok()?,
            path,
        })
    };
    files.filter_map(one).collect()
}
