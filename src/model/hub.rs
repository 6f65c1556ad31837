//! Fetching a model from a Hugging Face hub (or a mirror named by `HF_ENDPOINT`).

use std::path::PathBuf;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use super::error::{ModelError, Result};

/// Files besides the weights that a model may bring; the first two are required.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Downloads configuration, tokenizer and safetensors of a repository into the hub cache
/// (`HF_HOME`) and returns the snapshot's directory. What is cached is not fetched again.
pub fn fetch(repo: &str, revision: &str) -> Result<PathBuf> {
    let error = |what: String| ModelError::Hub {
        repo: repo.into(),
        what,
    };
    let api = ApiBuilder::from_env()
        .build()
        .map_err(|e| error(e.to_string()))?;
    let remote = api.repo(Repo::with_revision(
        repo.into(),
        RepoType::Model,
        revision.into(),
    ));
    let info = remote.info().map_err(|e| error(advice(&e.to_string())))?;
    let listed: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let weights: Vec<&str> = listed
        .iter()
        .copied()
        .filter(|f| f.ends_with(".safetensors") && !f.contains('/'))
        .collect();
    // Some repositories hold the same weights once more in their authors' own layout.
    let single = weights.iter().copied().find(|f| *f == "model.safetensors");
    let weights = single.map_or(weights, |single| vec![single]);
    if weights.is_empty() {
        return Err(error("the repository has no *.safetensors files; other weight formats are not read from a hub".into()));
    }
    for (i, required) in SIDE_FILES.iter().enumerate() {
        if i < 2 && !listed.contains(required) {
            return Err(error(format!("the repository has no {required}")));
        }
    }
    let side_files = SIDE_FILES.iter().copied().filter(|f| listed.contains(f));
    let mut root = None;
    for file in side_files.chain(weights) {
        let path = get(&remote, file).map_err(|e| error(advice(&format!("{file}: {e}"))))?;
        root = path.parent().map(PathBuf::from);
    }
    root.ok_or_else(|| error("the hub cache returned no directory".into()))
}

fn get(remote: &ApiRepo, file: &str) -> std::result::Result<PathBuf, ApiError> {
    tracing::info!(
        file,
        "fetching from the hub (a cached file is used as it is)"
    );
    remote.get(file)
}

fn advice(reason: &str) -> String {
    format!(
        "{reason}. Check the id and the network (HF_ENDPOINT names a mirror, HF_TOKEN a token for gated models), \
         or download the repository elsewhere and pass its directory as --model"
    )
}
