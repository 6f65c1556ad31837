//! A model with everything that its files bring: weights, tokenizer, chat template, identity.

use std::sync::Arc;

use super::backend::{Backend, ComputeDevice};
use super::chat::ChatTemplate;
use super::error::{ModelError, Result};
use super::source::{ModelFiles, ModelSource};
use super::spec::ModelSpec;
use super::time_slices::TimeSlices;
use super::tokenizer::Tokenizer;

/// A loaded model; clones share it.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    /// Weights and shapes, where they compute.
    pub backend: Arc<dyn Backend>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are laid out.
    pub chat: Arc<ChatTemplate>,
    /// SHA-256 over the model's files, 64 hex digits.
    pub base_hash: Arc<str>,
    /// The files' own name.
    pub name: Arc<str>,
}

impl LoadedModel {
    /// Fetches what has to be fetched, loads everything, and checks that the parts fit together.
    ///
    /// # Errors
    /// If a part cannot be read, or parts do not fit together.
    pub fn load(source: &str, device: &dyn ComputeDevice) -> Result<Self> {
        Self::load_sharing(source, device, Arc::new(TimeSlices::undivided()))
    }

    /// As [`LoadedModel::load`], for an engine and learning passes that divide the time so.
    ///
    /// # Errors
    /// As there.
    pub fn load_sharing(
        source: &str,
        device: &dyn ComputeDevice,
        slices: Arc<TimeSlices>,
    ) -> Result<Self> {
        let files = ModelSource::parse(source)?.fetch()?;
        // Side by side: each takes a good part of a second.
        let (text, backend, hash) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new;
            let text = thread().spawn_scoped(scope, || text_parts(&files));
            let hash = thread().spawn_scoped(scope, || files.base_hash());
            let backend = device.load(&files, slices);
            // Where the system refuses a thread, one after the other.
            let text = text.map_or_else(|_refused| text_parts(&files), joined);
            (
                text,
                backend,
                hash.map_or_else(|_refused| files.base_hash(), joined),
            )
        });
        // A tokenizer of another model is the more telling mistake.
        let (tokenizer, chat) = text?;
        check_vocabulary(&files, &tokenizer)?;
        Ok(Self {
            backend: backend?,
            tokenizer: Arc::new(tokenizer),
            chat: Arc::new(chat),
            base_hash: hash?.into(),
            name: files.name().into(),
        })
    }

    /// Shapes and constants of the model.
    pub fn spec(&self) -> &ModelSpec {
        self.backend.spec()
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn check_vocabulary(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), files.spec()?.vocab_size);
    if tokens <= rows {
        return Ok(());
    }
    Err(ModelError::Malformed {
        path: files.root.clone(),
        what: format!(
            "the tokenizer has {tokens} tokens, the embedding (`vocab_size`) only {rows} rows: \
             they belong to different models"
        ),
    })
}

fn text_parts(files: &ModelFiles) -> Result<(Tokenizer, ChatTemplate)> {
    let text =
        |e: &dyn std::fmt::Display| ModelError::Text(format!("{}: {e}", files.root.display()));
    if let Some(content) = files.gguf_content()? {
        let tokenizer = Tokenizer::from_gguf(&content).map_err(|e| text(&e))?;
        let chat =
            ChatTemplate::from_gguf(&files.root, &content, &tokenizer).map_err(|e| text(&e))?;
        return Ok((tokenizer, chat));
    }
    let tokenizer =
        Tokenizer::from_file(&files.root.join("tokenizer.json")).map_err(|e| text(&e))?;
    let chat = ChatTemplate::from_directory(&files.root, &tokenizer).map_err(|e| text(&e))?;
    Ok((tokenizer, chat))
}
