//! A model with everything that its files bring: weights, tokenizer, chat template, identity.

use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;

use super::backend::{Backend, ComputeDevice};
use super::cache::WeightsCache;
use super::chat::ChatTemplate;
use super::error::{ModelError, Result};
use super::quantise::Quantisation;
use super::source::{ModelFiles, ModelSource};
use super::spec::ModelSpec;
use super::time_slices::TimeSlices;
use super::tokenizer::{Tokenizer, TokenizerError};

/// What to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelChoice<'a> {
    /// A GGUF file, a directory of safetensors, or `hf:<owner>/<name>`.
    pub model: &'a str,
    /// A `tokenizer.json` instead of the tokenizer in the model's own files.
    pub tokenizer: Option<&'a Path>,
    /// What matrices of safetensors are quantised to while they are loaded.
    pub quantisation: Option<Quantisation>,
    /// Where packed weights are kept between starts; `None`: nowhere.
    pub weights_cache: Option<&'a WeightsCache>,
}

impl<'a> From<&'a str> for ModelChoice<'a> {
    fn from(model: &'a str) -> Self {
        Self {
            model,
            tokenizer: None,
            quantisation: None,
            weights_cache: None,
        }
    }
}

impl<'a> From<&'a String> for ModelChoice<'a> {
    fn from(model: &'a String) -> Self {
        model.as_str().into()
    }
}

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
    pub fn load<'a>(
        choice: impl Into<ModelChoice<'a>>,
        device: &dyn ComputeDevice,
    ) -> Result<Self> {
        Self::load_sharing(choice, device, Arc::new(TimeSlices::undivided()))
    }

    /// A response's tokens as the model would generate them after a prompt, without the end of the turn;
    /// none of a text that cannot be encoded.
    pub fn said(&self, response: &str) -> Vec<u32> {
        let encoded = self.chat.encode_response(&self.tokenizer, response);
        let mut tokens = encoded.unwrap_or_default();
        tokens.pop();
        tokens
    }

    /// As [`LoadedModel::load`], for an engine and learning passes that divide the time so.
    ///
    /// # Errors
    /// As there.
    pub fn load_sharing<'a>(
        choice: impl Into<ModelChoice<'a>>,
        device: &dyn ComputeDevice,
        slices: Arc<TimeSlices>,
    ) -> Result<Self> {
        let choice = choice.into();
        let files = ModelSource::parse(choice.model)?
            .fetch()?
            .quantised(choice.quantisation)?
            .cached(choice.weights_cache);
        // Side by side: each takes a good part of a second.
        let (text, backend, hash) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new;
            let text = thread().spawn_scoped(scope, || text_parts(&files, choice.tokenizer));
            let hash = thread().spawn_scoped(scope, || files.base_hash());
            let backend = device.load(&files, slices);
            // Where the system refuses a thread, one after the other.
            let text = text.map_or_else(|_refused| text_parts(&files, choice.tokenizer), joined);
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

/// What a model's files say, without their weights.
#[derive(Debug)]
pub struct Described {
    /// The files.
    pub files: ModelFiles,
    /// Shapes and constants.
    pub spec: ModelSpec,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// How conversations are laid out.
    pub chat: ChatTemplate,
}

impl Described {
    /// Reads headers, tokenizer and chat template of files that are here, and checks that they fit
    /// together.
    ///
    /// # Errors
    /// As [`LoadedModel::load`], but for the weights.
    pub fn read(files: ModelFiles, tokenizer: Option<&Path>) -> Result<Self> {
        let spec = files.spec()?;
        let (tokenizer, chat) = text_parts(&files, tokenizer)?;
        check_vocabulary(&files, &tokenizer)?;
        Ok(Self {
            files,
            spec,
            tokenizer,
            chat,
        })
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

/// Tokenizer and chat template; `named` is a `tokenizer.json` that the operator gave.
fn text_parts(files: &ModelFiles, named: Option<&Path>) -> Result<(Tokenizer, ChatTemplate)> {
    let text =
        |e: &dyn std::fmt::Display| ModelError::Text(format!("{}: {e}", files.root.display()));
    if let Some(content) = files.gguf_content()? {
        let tokenizer = gguf_tokenizer(&files.root, &content, named).map_err(|e| text(&e))?;
        let chat =
            ChatTemplate::from_gguf(&files.root, &content, &tokenizer).map_err(|e| text(&e))?;
        return Ok((tokenizer, chat));
    }
    let own = files.root.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(named.unwrap_or(&own)).map_err(|e| text(&e))?;
    let chat = ChatTemplate::from_directory(&files.root, &tokenizer).map_err(|e| text(&e))?;
    Ok((tokenizer, chat))
}

/// The named `tokenizer.json`, or the GGUF file's own, or, where that cannot be reproduced, the
/// `tokenizer.json` beside the file.
pub(crate) fn gguf_tokenizer(
    file: &Path,
    content: &Content,
    named: Option<&Path>,
) -> std::result::Result<Tokenizer, TokenizerError> {
    if let Some(path) = named {
        return Tokenizer::from_file_for(path, content);
    }
    let beside = file.with_file_name("tokenizer.json");
    match Tokenizer::from_gguf(content) {
        Err(error @ TokenizerError::Unsupported { .. }) if beside.is_file() => {
            tracing::info!("{error}; reading {}", beside.display());
            Tokenizer::from_file_for(&beside, content)
        }
        other => other,
    }
}
