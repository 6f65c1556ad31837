//! Which safetensors files make up a model, and their tensors, with errors that name the file.
//!
//! Large models come as several files and an index, `model.safetensors.index.json`, whose
//! `weight_map` says which tensor is where. The index decides: whatever else lies in the directory
//! (an adapter, another layout of the same weights) is left alone.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use realign_core::files::{self, Limit};

use super::error::{ModelError, Result};
use super::mapped::{Blocks, MappedFile};

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

/// The tensors of a model's files, mapped.
#[derive(Default)]
pub(crate) struct Shards {
    files: Vec<MappedFile>,
    tensors: HashMap<String, Place>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Shards {
    /// Maps the files of a directory, each of which must be readable and hold what the index says. A
    /// tensor that several files hold is that of the file the index names; without an index it could
    /// be either, so it is an error.
    ///
    /// # Errors
    /// [`ModelError::Malformed`] naming the file, [`ModelError::Field`] naming the index.
    pub(crate) fn open(dir: &Path, files: &[PathBuf]) -> Result<Self> {
        let listing = read_index(dir)?.unwrap_or_default();
        let home: HashMap<&str, &str> = listing
            .iter()
            .flat_map(|(file, tensors)| tensors.iter().map(move |tensor| (&**tensor, &**file)))
            .collect();
        let mut all = Self::default();
        for path in files {
            let mut found = all.add(path)?;
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let mut listed = listing.get(name).into_iter().flatten();
            if let Some(tensor) = listed.find(|tensor| !found.contains_key(*tensor)) {
                let what = format!("puts tensor `{tensor}` in {name}, which does not hold it");
                return Err(wrong(dir, what));
            }
            found.retain(|tensor, _| home.get(&**tensor).is_none_or(|file| *file == name));
            if let Some(tensor) = found.keys().filter(|t| all.contains(t)).min() {
                let other = &files[all.tensors[tensor].file];
                return Err(ModelError::Malformed {
                    path: path.clone(),
                    what: format!(
                        "holds tensor `{tensor}`, and so does {}; remove one of the files, or add the index \
                         that says which it is ({INDEX})",
                        other.display()
                    ),
                });
            }
            all.tensors.extend(found);
        }
        Ok(all)
    }

    /// Maps one more file. Returns its tensors.
    fn add(&mut self, path: &Path) -> Result<HashMap<String, Place>> {
        let map = files::open_regular(path).and_then(|file| MappedFile::new(&file));
        let map = map.map_err(|source| ModelError::Io {
            path: path.into(),
            source,
        })?;
        let tensors = SafeTensors::deserialize(map.bytes()).map_err(|e| ModelError::Malformed {
            path: path.into(),
            what: format!("is truncated or no safetensors file: {e}"),
        })?;
        let start = map.bytes().as_ptr().addr();
        let place = |(name, view): (String, TensorView<'_>)| {
            let at = view.data().as_ptr().addr() - start;
            let place = Place {
                file: self.files.len(),
                bytes: at..at + view.data().len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            };
            (name, place)
        };
        let found = tensors.tensors().into_iter().map(place).collect();
        self.files.push(map);
        Ok(found)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A matrix where it is mapped; `None` if it has to be read.
    pub(crate) fn matrix(&self, name: &str) -> Option<Blocks> {
        let place = self.tensors.get(name)?;
        let dtype = match place.dtype {
            Dtype::F32 => GgmlDType::F32,
            Dtype::F16 => GgmlDType::F16,
            Dtype::BF16 => GgmlDType::BF16,
            _ => return None,
        };
        self.files[place.file].matrix(dtype, &place.shape, place.bytes.start)
    }

    /// A copy of a tensor in its own type. The memory that its part of the file takes is given back:
    /// a model that is copied out of its file would otherwise be there twice.
    ///
    /// # Errors
    /// If there is no such tensor, or candle does not know its type.
    pub(crate) fn load(&self, name: &str) -> candle_core::Result<Tensor> {
        let Some(place) = self.tensors.get(name) else {
            bail!("is missing");
        };
        let file = &self.files[place.file];
        let bytes = &file.bytes()[place.bytes.clone()];
        let view = TensorView::new(place.dtype, place.shape.clone(), bytes)?;
        let tensor = view.load(&Device::Cpu);
        file.release(place.bytes.clone());
        tensor
    }
}

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

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn a_tensor_in_two_files_is_the_one_that_the_index_names_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one.safetensors", "two.safetensors"].map(|name| dir.path().join(name));
        for (value, path) in [1f32, 2.0].into_iter().zip(&files) {
            let tensor = Tensor::full(value, 2, &Device::Cpu).unwrap();
            candle_core::safetensors::save(&HashMap::from([("a", tensor)]), path).unwrap();
        }
        let error = Shards::open(dir.path(), &files).err().unwrap().to_string();
        for part in ["`a`", "one.safetensors", "two.safetensors"] {
            assert!(error.contains(part), "{error}");
        }
        for (value, name) in [(1.0, "one"), (2.0, "two")] {
            let listed = format!(r#"{{"weight_map": {{"a": "{name}.safetensors"}}}}"#);
            std::fs::write(dir.path().join(INDEX), listed).unwrap();
            let shards = Shards::open(dir.path(), &files).unwrap();
            let read = shards.load("a").unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(read, [value; 2]);
        }
    }

    #[test]
    fn a_mapped_matrix_has_the_values_of_one_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE);
        let values = Tensor::rand(-1f32, 1f32, (5, 33), &Device::Cpu).unwrap();
        let of = |dtype| values.to_dtype(dtype).unwrap();
        let tensors = HashMap::from([
            ("a", of(DType::BF16)),
            ("b", of(DType::F32)),
            ("c", of(DType::F16)),
            ("of integers", of(DType::I64)),
            ("vector", of(DType::F32).flatten_all().unwrap()),
        ]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let shards = Shards::open(dir.path(), &[path]).unwrap();
        for name in ["a", "b", "c"] {
            let mapped = shards.matrix(name).unwrap();
            assert_eq!(mapped.shape(), (5, 33));
            let floats = |t: Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            let expected = floats(tensors[name].clone());
            // Twice: what was read is given back, and is read again.
            for _ in 0..2 {
                let copy = mapped.in_memory().unwrap().dense().unwrap();
                assert_eq!(floats(copy), expected, "{name}");
                assert_eq!(floats(shards.load(name).unwrap()), expected, "{name}");
            }
        }
        for name in ["of integers", "vector"] {
            assert!(
                shards.matrix(name).is_none(),
                "{name} is no matrix of floats"
            );
            let read = shards.load(name).unwrap();
            assert_eq!(read.dims(), tensors[name].dims());
        }
        assert!(shards.matrix("absent").is_none());
        assert!(shards.load("absent").is_err());
    }
}
