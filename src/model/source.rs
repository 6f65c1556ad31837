//! Where a model comes from: a GGUF file, a directory of safetensors, or a hub repository.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use candle_core::quantized::gguf_file;
use realign_core::files;
use sha2::{Digest, Sha256};

use super::cache::{Identity, WeightsCache};
use super::decoder::{Decoder, StoredMatrix};
use super::error::{ModelError, Result};
use super::gguf;
use super::lora::LoraWeights;
use super::quantise::Quantisation;
use super::shards::{self, Shards};
use super::spec::ModelSpec;
use super::weights::{Target, WeightFile, merge};

/// What `--model` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A `.gguf` file.
    Gguf(PathBuf),
    /// A directory with `config.json`, `tokenizer.json` and `*.safetensors`.
    Directory(PathBuf),
    /// `hf:<owner>/<name>[@revision]`, fetched once and cached.
    Hub {
        /// `<owner>/<name>`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// Reads `--model`: an `hf:` id, a directory, or a GGUF file.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(id) = text.strip_prefix("hf:") {
            let (repo, revision) = id.split_once('@').unwrap_or((id, "main"));
            let well_formed =
                repo.split('/').count() == 2 && repo.split('/').all(|part| !part.is_empty());
            if !well_formed || revision.is_empty() {
                let what = format!(
                    "`{text}` is not a hub id; write hf:<owner>/<name>, e.g. hf:Qwen/Qwen2.5-0.5B-Instruct"
                );
                return Err(ModelError::Malformed {
                    path: text.into(),
                    what,
                });
            }
            return Ok(ModelSource::Hub {
                repo: repo.into(),
                revision: revision.into(),
            });
        }
        let path = PathBuf::from(text);
        match std::fs::metadata(&path) {
            Ok(m) if m.is_dir() => Ok(ModelSource::Directory(path)),
            Ok(_) if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => Ok(ModelSource::Gguf(path)),
            Ok(_) => Err(ModelError::Malformed {
                path,
                what: "is neither a .gguf file nor a directory with config.json and *.safetensors".into(),
            }),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Err(ModelError::Malformed {
                path,
                what: "there is no such file or directory; `make model` fetches the default model, `hf:<owner>/<name>` one from a hub".into(),
            }),
            Err(source) => Err(ModelError::Io { path, source }),
        }
    }

    /// Fetches what has to be fetched; afterwards everything is on this machine.
    pub fn fetch(self) -> Result<ModelFiles> {
        match self {
            ModelSource::Gguf(path) => Ok(ModelFiles {
                weights: vec![path.clone()],
                root: path,
                kind: Kind::Gguf,
                quantisation: None,
                cache: None,
                seen: None,
                hash: Arc::default(),
            }),
            ModelSource::Directory(dir) => directory_files(dir),
            ModelSource::Hub { repo, revision } => {
                super::hub::fetch(&repo, &revision).and_then(directory_files)
            }
        }
    }
}

/// A model on this machine.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The GGUF file or the directory.
    pub root: PathBuf,
    weights: Vec<PathBuf>,
    kind: Kind,
    quantisation: Option<Quantisation>,
    /// Where packed weights are kept, and what was known of these files before.
    cache: Option<WeightsCache>,
    /// What the files were like when they were given a cache, before anything of them was read.
    seen: Option<Identity>,
    /// What was found to be their hash; clones share it.
    hash: Arc<Mutex<Option<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gguf,
    Safetensors,
}

fn directory_files(dir: PathBuf) -> Result<ModelFiles> {
    let listing = std::fs::read_dir(&dir).map_err(|source| ModelError::Io {
        path: dir.clone(),
        source,
    })?;
    let mut paths: Vec<PathBuf> = listing
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .collect();
    paths.sort();
    let with_extension = |wanted: &str| -> Vec<PathBuf> {
        paths
            .iter()
            .filter(|p| p.extension().is_some_and(|e| e == wanted))
            .cloned()
            .collect()
    };
    let found = with_extension("safetensors");
    if !found.is_empty() {
        return Ok(ModelFiles {
            weights: shards::select(&dir, found)?,
            root: dir,
            kind: Kind::Safetensors,
            quantisation: None,
            cache: None,
            seen: None,
            hash: Arc::default(),
        });
    }
    match with_extension("gguf").as_slice() {
        [one] => Ok(ModelFiles {
            root: one.clone(),
            weights: vec![one.clone()],
            kind: Kind::Gguf,
            quantisation: None,
            cache: None,
            seen: None,
            hash: Arc::default(),
        }),
        [] => Err(ModelError::Malformed {
            path: dir,
            what: "has no *.safetensors and no *.gguf file".into(),
        }),
        many => {
            let what = format!("has {} GGUF files; name one of them", many.len());
            Err(ModelError::Malformed { path: dir, what })
        }
    }
}

impl ModelFiles {
    /// The same files, their matrices quantised while they are loaded.
    ///
    /// # Errors
    /// For a GGUF file, which is quantised already.
    pub fn quantised(self, to: Option<Quantisation>) -> Result<Self> {
        if to.is_some() && self.kind == Kind::Gguf {
            return Err(ModelError::Malformed {
                path: self.root,
                what: "engine.isq quantises safetensors while they are loaded; a GGUF file is \
                       quantised already: leave engine.isq out"
                    .into(),
            });
        }
        Ok(Self {
            quantisation: to,
            hash: Arc::default(),
            ..self
        })
    }

    /// The same files, with a directory in which what is made of them is kept.
    pub fn cached(self, cache: Option<&WeightsCache>) -> Self {
        Self {
            seen: cache.and_then(|_| self.identity()),
            cache: cache.cloned(),
            ..self
        }
    }

    /// Where what is made of them is kept.
    pub fn cache(&self) -> Option<&WeightsCache> {
        self.cache.as_ref()
    }

    /// The weight files, and the configuration of safetensors.
    fn all(&self) -> Vec<PathBuf> {
        let config = (self.kind == Kind::Safetensors).then(|| self.root.join("config.json"));
        config.into_iter().chain(self.weights.clone()).collect()
    }

    /// What tells the files as they are now from others, short of reading all of them; `None` if that
    /// cannot be told.
    fn identity(&self) -> Option<Identity> {
        let quantisation = self.quantisation.map(|q| q.to_string());
        Identity::of(&self.all(), quantisation).ok()
    }

    /// Whether the files are known to be as they were when they were given their cache.
    pub fn are_unchanged(&self) -> bool {
        self.seen.is_some() && self.identity() == self.seen
    }

    /// [`ModelFiles::base_hash`], if it is known without reading the files.
    pub fn known_hash(&self) -> Option<String> {
        self.cache.as_ref()?.recall(self.seen.as_ref()?)
    }

    /// The GGUF file, if that is what this is.
    pub fn gguf(&self) -> Option<&Path> {
        (self.kind == Kind::Gguf).then_some(self.root.as_path())
    }

    /// A name for people: the file's stem or the directory's name.
    pub fn name(&self) -> String {
        let part = match self.kind {
            Kind::Gguf => self.root.file_stem(),
            Kind::Safetensors => self.root.file_name(),
        };
        part.map_or_else(|| "model".to_string(), |s| s.to_string_lossy().into_owned())
    }

    /// SHA-256 over the weight files, configuration and quantisation, 64 hex digits: the base model's
    /// identity. With a cache, files that have not changed since they were read last are not read again.
    pub fn base_hash(&self) -> Result<String> {
        let mut found = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hash) = &*found {
            return Ok(hash.clone());
        }
        let hash = match self.known_hash() {
            Some(hash) => hash,
            None => self.read_hash()?,
        };
        *found = Some(hash.clone());
        Ok(hash)
    }

    fn read_hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for path in &self.all() {
            let io = |source| ModelError::Io {
                path: path.clone(),
                source,
            };
            let mut file = files::open_regular(path).map_err(io)?;
            let mut buffer = vec![0u8; 1 << 20];
            loop {
                let n = file.read(&mut buffer).map_err(io)?;
                if n == 0 {
                    break;
                }
                hash.update(&buffer[..n]);
            }
        }
        if let Some(quantisation) = self.quantisation {
            // An adapter that was trained on other bits is another base model's.
            hash.update(format!("quantised to {quantisation}"));
        }
        let hash = hex::encode(hash.finalize());
        // Of files that changed meanwhile the hash may be that of neither content.
        if let (Some(cache), Some(seen)) = (&self.cache, &self.seen)
            && self.are_unchanged()
        {
            cache.remember(seen, &hash);
        }
        Ok(hash)
    }

    /// The GGUF header, for the tokenizer and the chat template.
    pub fn gguf_content(&self) -> Result<Option<gguf_file::Content>> {
        self.gguf()
            .map(|path| gguf::open(path).map(|(content, _)| content))
            .transpose()
    }

    /// `gguf` or `safetensors`.
    pub fn format(&self) -> &'static str {
        match self.kind {
            Kind::Gguf => "gguf",
            Kind::Safetensors => "safetensors",
        }
    }

    /// Size of the weight files together, in bytes.
    pub fn weight_bytes(&self) -> Result<u64> {
        let size = |path: &PathBuf| {
            let file = std::fs::metadata(path).map_err(|source| ModelError::Io {
                path: path.clone(),
                source,
            })?;
            Ok(file.len())
        };
        self.weights.iter().map(size).sum()
    }

    /// Shapes and constants, without the weights.
    pub fn spec(&self) -> Result<ModelSpec> {
        match self.gguf_content()? {
            Some(content) => ModelSpec::from_gguf(&self.root, &content),
            None => ModelSpec::from_config_json(&self.root.join("config.json")),
        }
    }

    /// Writes copies of the weight files with an adapter merged in into a directory that is there:
    /// `model.gguf`, or `model-00001-of-0000N.safetensors` and so on.
    ///
    /// # Errors
    /// If a file cannot be read or written, or lacks a matrix of the adapter.
    pub fn write_merged(&self, adapter: &LoraWeights, into: &Path) -> Result<()> {
        match self.gguf_content()? {
            Some(content) => {
                let spec = ModelSpec::from_gguf(&self.root, &content)?;
                let to = into.join("model.gguf");
                merge::gguf(&self.root, &content, &spec, adapter, &to)
            }
            None => merge::safetensors(&self.weights, adapter, into),
        }
    }

    /// Loads the weights and checks every shape against the configuration. Norms and biases are put
    /// on `device`; `matrix` makes each matrix what a backend keeps, one by one.
    ///
    /// # Errors
    /// If a file cannot be read, lacks a tensor or has one of another shape; those of `matrix`.
    pub fn load<W: Clone>(
        &self,
        device: &Device,
        mut matrix: impl FnMut(StoredMatrix) -> candle_core::Result<W>,
    ) -> Result<Decoder<W>> {
        let mut to = Target {
            device,
            matrix: &mut matrix,
        };
        match self.kind {
            Kind::Gguf => {
                let (content, reader) = gguf::open(&self.root)?;
                let spec = ModelSpec::from_gguf(&self.root, &content)?;
                WeightFile::gguf(&self.root, content, reader, &spec).load(spec, &mut to)
            }
            Kind::Safetensors => {
                let spec = ModelSpec::from_config_json(&self.root.join("config.json"))?;
                let tensors = Shards::open(&self.root, &self.weights)?;
                // Errors about a tensor name the file where there is only one.
                let place = match self.weights.as_slice() {
                    [one] => one,
                    _ => &self.root,
                };
                WeightFile::safetensors(place, tensors)
                    .quantised(self.quantisation)
                    .load(spec, &mut to)
            }
        }
    }
}
