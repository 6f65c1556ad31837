//! Which safetensors files make up a model, and opening them with errors that name the file.
//!
//! Large models come as several files and an index, `model.safetensors.index.json`, whose
//! `weight_map` says which tensor is where. The index decides: whatever else lies in the directory
//! (an adapter, another layout of the same weights) is left alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;

use realign_core::files::{self, Limit};

use super::error::{ModelError, Result};

const INDEX: &str = "model.safetensors.index.json";
/// Maximum size of an index; real ones have a few hundred kilobytes.
const MAX_INDEX: Limit = Limit::mib(64);
const SINGLE: &str = "model.safetensors";

/// Tensor names by the file that holds them.
type Listing = BTreeMap<String, Vec<String>>;

/// The weight files of a directory: those of the index, or else `model.safetensors`, or else
/// every `*.safetensors` of `found`.
///
/// # Errors
/// [`ModelError::Field`] if the index lists a file that is not there.
pub(crate) fn select(dir: &Path, found: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let Some(listing) = read_index(dir)? else {
        let single = dir.join(SINGLE);
        return Ok(match found.contains(&single) {
            true => vec![single],
            false => found,
        });
    };
    let files: Vec<PathBuf> = listing.keys().map(|file| dir.join(file)).collect();
    match files.iter().find(|file| !file.is_file()) {
        Some(absent) => Err(wrong(
            dir,
            format!("lists {}, which is not there", absent.display()),
        )),
        None => Ok(files),
    }
}

/// Maps the files of a directory, after each was found readable and to hold what the index says.
///
/// # Errors
/// [`ModelError::Malformed`] naming the file, [`ModelError::Field`] naming the index.
pub(crate) fn open(dir: &Path, files: &[PathBuf]) -> Result<MmapedSafetensors> {
    let listing = read_index(dir)?.unwrap_or_default();
    for path in files {
        let tensors = map(path, std::slice::from_ref(path))?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let listed = listing.get(name).into_iter().flatten();
        for tensor in listed {
            if tensors.get(tensor).is_err() {
                let what = format!("puts tensor `{tensor}` in {name}, which does not hold it");
                return Err(wrong(dir, what));
            }
        }
    }
    map(dir, files)
}

fn map(place: &Path, paths: &[PathBuf]) -> Result<MmapedSafetensors> {
    for path in paths {
        // Mapping opens each file again, which for a named pipe would block.
        files::open_regular(path).map_err(|source| ModelError::Io {
            path: path.clone(),
            source,
        })?;
    }
    // SAFETY: the files are mapped read-only, and nothing here changes them. If another process
    // does while they are mapped, tensors may be torn, or SIGBUS ends this one (docs/unsafe.md).
    let tensors = unsafe { MmapedSafetensors::multi(paths) };
    tensors.map_err(|e| ModelError::Malformed {
        path: place.into(),
        what: format!("is truncated or no safetensors file: {e}"),
    })
}

/// Gives back the memory that a tensor's part of its mapped file takes. A later look reads the
/// file again, so this is only a matter of what is resident: a model that is copied out of its file
/// would otherwise be there twice.
pub(crate) fn release(tensors: &MmapedSafetensors, name: &str) {
    #[cfg(target_os = "linux")]
    if let Ok(view) = tensors.get(name) {
        let part = view.data().as_ptr_range();
        // A page at either end may have bytes of a neighbour, which are read again too.
        let start = part.start.map_addr(|at| at & !(PAGE - 1));
        let length = part.end.addr() - start.addr();
        // SAFETY: the range lies in a mapping of a file that `map` made and `tensors` keeps, read-only
        // and without changes of its own, from the page that holds its first byte on. Its pages are
        // filled from the file whenever they are looked at. The call is advice and may fail.
        unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (tensors, name);
}

/// A multiple of every page size that Linux has for files: an address below a tensor's that is not
/// one of its file's would be refused.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

fn wrong(dir: &Path, what: impl Into<String>) -> ModelError {
    ModelError::Field {
        path: dir.join(INDEX),
        field: "weight_map".into(),
        what: what.into(),
    }
}

fn read_index(dir: &Path) -> Result<Option<Listing>> {
    let path = dir.join(INDEX);
    let text = match files::read_text_if_there(&path, MAX_INDEX) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        Err(source) => return Err(ModelError::Io { path, source }),
    };
    let index: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| ModelError::Malformed {
            path: path.clone(),
            what: format!("not a JSON file: {e}"),
        })?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.filter(|map| !map.is_empty()).ok_or_else(|| {
        let what = "expected an object from tensor names to file names";
        wrong(dir, what)
    })?;
    let mut listing = Listing::new();
    for (tensor, file) in map {
        // A plain name only: an index from elsewhere must not reach outside its directory.
        let plain = file.as_str().filter(|f| {
            f.ends_with(".safetensors") && Path::new(f).file_name().is_some_and(|n| n == *f)
        });
        let Some(file) = plain else {
            let what = format!("tensor `{tensor}`: {file} is not the name of a safetensors file");
            return Err(wrong(dir, what));
        };
        listing.entry(file.into()).or_default().push(tensor.clone());
    }
    Ok(Some(listing))
}
