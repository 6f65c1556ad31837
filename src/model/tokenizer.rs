//! Text to token ids and back, from a GGUF file's metadata or from a `tokenizer.json`.
//!
//! Two ways to encode exist because prompts mix two kinds of text. A template's own text may hold
//! control tokens (`<|im_end|>`); what a user typed may not, whatever it spells. See
//! [`Tokenizer::encode`] and [`Tokenizer::encode_guarded`].

mod gguf;
mod pieces;
mod pre;
mod replacement;
mod sentencepiece;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file;
use realign_core::files::{self, Limit};
use tokenizers::AddedVocabulary;
use tokenizers::tokenizer::{Model, OffsetType, PreTokenizer, Token};

use pieces::Literal;
use sentencepiece::SentencePiece;
pub use stream::StreamDecoder;

/// Maximum size of a tokenizer's file; the largest have about 35 MB.
const MAX_FILE: Limit = Limit::mib(512);
/// Tokens at the end of a prompt that are looked at for thoughts that it opens.
const TAIL: usize = 12;

/// Tokens that end a turn or a text in the model families this crate serves. A model may emit any
/// of them, whatever the one `eos_token_id` of its files says.
const END_TOKENS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|EOT|>",
    "</s>",
];

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file or a metadata entry is missing or has the wrong form.
    #[error("{place}: {problem}")]
    Malformed {
        /// The file, or the GGUF metadata key.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer is of a kind that this crate cannot reproduce exactly.
    #[error(
        "{place} is `{found}`; supported: {supported}. Or give the model's tokenizer.json with --tokenizer FILE"
    )]
    Unsupported {
        /// The file, or the GGUF metadata key.
        place: String,
        /// What it holds.
        found: String,
        /// What it may hold.
        supported: String,
    },
    /// A `tokenizer.json` that was given for a model belongs to another one.
    #[error(
        "{path} is the tokenizer of another model: {difference}. Give the tokenizer.json of the \
         model that the GGUF file was made from"
    )]
    OtherModel {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// Where it differs from the GGUF file's vocabulary.
        difference: String,
    },
    /// The text could not be encoded.
    #[error("the text could not be encoded: {0}")]
    Encode(String),
    /// A token id outside the vocabulary.
    #[error("token id {id} is not in the vocabulary (ids go from 0 to {max})")]
    UnknownId {
        /// The id.
        id: u32,
        /// Largest id.
        max: u32,
    },
}

/// What the files beside the vocabulary say about its use.
#[derive(Default)]
struct Conventions {
    bos: Option<u32>,
    add_bos: bool,
    eos: Vec<u32>,
}

/// A byte-level BPE or SentencePiece-style BPE tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Merges instead of `inner`'s model, for a SentencePiece vocabulary without merges.
    merger: Option<SentencePiece>,
    /// As `inner`'s added vocabulary, but control tokens are ordinary text.
    plain: AddedVocabulary,
    /// Bytes of each token by id; empty for control tokens and unused ids.
    pieces: Vec<Box<[u8]>>,
    /// Control tokens and their literals.
    control: BTreeMap<u32, String>,
    bos: Option<u32>,
    add_bos: bool,
    eos: Option<u32>,
    end_ids: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.pieces.len())
            .field("end_ids", &self.end_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer from a GGUF file's `tokenizer.ggml.*` metadata.
    ///
    /// # Errors
    /// If an entry is missing, malformed, or names a pre-tokenizer that this crate does not know:
    /// a guess would shift every token id silently.
    pub fn from_gguf(content: &gguf_file::Content) -> Result<Self, TokenizerError> {
        let built = gguf::build(content)?;
        let place = "tokenizer.ggml.model";
        let mut tokenizer =
            Self::assemble(built.pipeline, built.conventions, Literal::Added, place)?;
        tokenizer.merger = built.merger;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` for a GGUF file, instead of the tokenizer in its metadata. Begin
    /// and end ids are the GGUF file's.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`]; [`TokenizerError::OtherModel`] unless its vocabulary is the
    /// file's.
    pub(crate) fn from_file_for(
        path: &Path,
        content: &gguf_file::Content,
    ) -> Result<Self, TokenizerError> {
        let inner = read_tokenizer(path)?;
        replacement::check(&inner, content).map_err(|difference| TokenizerError::OtherModel {
            path: path.into(),
            difference,
        })?;
        let beside = conventions_beside(path, &inner)?;
        let conventions = gguf::conventions(content, beside.add_bos)?;
        let place = path.display().to_string();
        Self::assemble(inner, conventions, Literal::Nothing, &place)
    }

    /// Reads a Hugging Face `tokenizer.json`. End-of-turn ids are also taken from
    /// `generation_config.json` and `config.json` in the same directory, if they are there.
    ///
    /// # Errors
    /// If a file cannot be read or parsed, or if the decoder is of an unsupported kind.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let place = path.display().to_string();
        let inner = read_tokenizer(path)?;
        let conventions = conventions_beside(path, &inner)?;
        Self::assemble(inner, conventions, Literal::Nothing, &place)
    }

    /// As [`Tokenizer::from_file`], from the text of a `tokenizer.json` with nothing beside it.
    ///
    /// # Errors
    /// If the text cannot be parsed, or if the decoder is of an unsupported kind.
    pub fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let inner =
            text.parse::<tokenizers::Tokenizer>()
                .map_err(|e| TokenizerError::Malformed {
                    place: "tokenizer".into(),
                    problem: e.to_string(),
                })?;
        Self::assemble(inner, Conventions::default(), Literal::Nothing, "tokenizer")
    }

    fn assemble(
        inner: tokenizers::Tokenizer,
        conventions: Conventions,
        literal: Literal,
        place: &str,
    ) -> Result<Self, TokenizerError> {
        let control: BTreeMap<u32, String> = inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        let pieces = pieces::token_bytes(&inner, &control, literal, place)?;
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let known = END_TOKENS
            .iter()
            .filter_map(|literal| inner.token_to_id(literal));
        // Only a control token may end a turn: "</s>" may be plain text in some vocabularies.
        let known = known.filter(|id| control.contains_key(id));
        let end_ids: BTreeSet<u32> = conventions.eos.iter().copied().chain(known).collect();
        Ok(Self {
            merger: None,
            plain,
            pieces,
            control,
            bos: conventions.bos,
            add_bos: conventions.add_bos,
            eos: conventions.eos.first().copied(),
            end_ids: end_ids.into_iter().collect(),
            inner,
        })
    }

    /// Token ids of a text; no begin-of-text token is added.
    ///
    /// With `parse_special`, literals such as `<|im_end|>` become control tokens; without, they
    /// are ordinary text.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`], if the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let vocabulary = if parse_special {
            self.inner.get_added_vocabulary()
        } else {
            &self.plain
        };
        self.encode_with(vocabulary, text, None)
    }

    /// As `encode` with `parse_special`, but every `guard` character is removed after control
    /// tokens were recognised: a literal with a guard inside it stays text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_guarded(
        &self,
        text: &str,
        guard: char,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(self.inner.get_added_vocabulary(), text, Some(guard))
    }

    /// Token ids of a prompt that no template wrote: begin-of-text first, if the model wants it;
    /// control literals are text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.extend(self.encode(text, false)?);
        Ok(ids)
    }

    /// Token ids of a prompt that a client's own template wrote: control literals are control tokens. With
    /// `begin`, begin-of-text comes first, if the model wants it and the text has none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_templated(&self, text: &str, begin: bool) -> Result<Vec<u32>, TokenizerError> {
        let ids = self.encode(text, true)?;
        let first = self.bos.filter(|_| self.add_bos && begin);
        let missing = first.filter(|bos| ids.first() != Some(bos));
        Ok(missing.into_iter().chain(ids).collect())
    }

    fn encode_with(
        &self,
        vocabulary: &AddedVocabulary,
        text: &str,
        guard: Option<char>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let fail = |e: tokenizers::Error| TokenizerError::Encode(e.to_string());
        let mut parts = vocabulary.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(guard) = guard {
            let unguard = |part: &mut tokenizers::NormalizedString| {
                part.filter(|c| c != guard);
                Ok(())
            };
            parts.normalize(unguard).map_err(fail)?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts).map_err(fail)?;
        }
        let tokenized = match &self.merger {
            Some(merger) => parts.tokenize(|part| {
                let ids = merger.encode(part.get()).into_iter();
                Ok(ids
                    .map(|id| Token::new(id, String::new(), (0, 0)))
                    .collect())
            }),
            None => parts.tokenize(|part| self.inner.get_model().tokenize(part.get())),
        };
        tokenized.map_err(fail)?;
        let encoding = parts
            .into_encoding(None, 0, OffsetType::None)
            .map_err(fail)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of a sequence of ids; control tokens have none. Bytes that are not UTF-8 become
    /// U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let piece = self.pieces.get(id as usize);
            bytes.extend_from_slice(piece.ok_or_else(|| self.unknown(id))?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A token's own text: a control token's literal, U+FFFD for a part of a character, empty for
    /// an id outside the vocabulary.
    pub fn token_text(&self, id: u32) -> String {
        match self.control.get(&id) {
            Some(literal) => literal.clone(),
            None => String::from_utf8_lossy(self.token_bytes(id)).into_owned(),
        }
    }

    /// The end of a prompt, in which a chat template may have opened or ended the model's thoughts.
    pub fn tail(&self, prompt: &[u32]) -> String {
        let last = &prompt[prompt.len().saturating_sub(TAIL)..];
        last.iter().map(|&id| self.token_text(id)).collect()
    }

    /// The bytes that a token adds to the text: none for a control token or an unknown id.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Whether the id is a control token, which has a meaning and no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.contains_key(&id)
    }

    /// The literals of all control tokens, e.g. `<|im_start|>`, with their ids.
    pub fn control_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.control
            .iter()
            .map(|(id, literal)| (*id, literal.as_str()))
    }

    #[cfg(test)]
    /// The id of a token given by its literal, control token or not.
    pub(crate) fn token_id(&self, literal: &str) -> Option<u32> {
        self.inner.token_to_id(literal)
    }

    /// Ids at which generation ends, ascending: the model's declared end-of-sequence ids and every
    /// well-known end-of-turn token that the vocabulary has.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The first declared end-of-sequence id.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The begin-of-text id, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Number of ids, unused ones included: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Fails for an id outside the vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`].
    pub fn check_id(&self, id: u32) -> Result<(), TokenizerError> {
        if (id as usize) < self.pieces.len() {
            Ok(())
        } else {
            Err(self.unknown(id))
        }
    }

    fn unknown(&self, id: u32) -> TokenizerError {
        TokenizerError::UnknownId {
            id,
            max: (self.pieces.len() as u32).saturating_sub(1),
        }
    }
}

fn read_tokenizer(path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let malformed = |e: tokenizers::Error| TokenizerError::Malformed {
        place: path.display().to_string(),
        problem: e.to_string(),
    };
    let bytes = files::read(path, MAX_FILE).map_err(|source| TokenizerError::Read {
        path: path.into(),
        source,
    })?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(malformed)?;
    // Truncation and padding stored in the file are for training jobs, not for serving.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(malformed)?;
    Ok(inner)
}

/// Reads begin and end ids from the configuration files beside a `tokenizer.json`.
fn conventions_beside(
    path: &Path,
    inner: &tokenizers::Tokenizer,
) -> Result<Conventions, TokenizerError> {
    let mut found = Conventions::default();
    for name in ["generation_config.json", "config.json"] {
        let Some(config) = read_json(&path.with_file_name(name))? else {
            continue;
        };
        let ids = match config.get("eos_token_id") {
            Some(serde_json::Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
            None => Vec::new(),
        };
        found.eos.extend(
            ids.into_iter()
                .filter_map(|id| u32::try_from(id.as_u64()?).ok()),
        );
    }
    if let Some(config) = read_json(&path.with_file_name("tokenizer_config.json"))? {
        let id_of = |key: &str| {
            let token = config.get(key)?;
            let literal = token.as_str().or_else(|| token.get("content")?.as_str())?;
            inner.token_to_id(literal)
        };
        found.bos = id_of("bos_token");
        found.add_bos = config
            .get("add_bos_token")
            .and_then(|v| v.as_bool())
            .unwrap_or(false);
        // First: the tokenizer's own end token is the one its chat template writes.
        if let Some(id) = id_of("eos_token") {
            found.eos.insert(0, id);
        }
    }
    Ok(found)
}

fn read_json(path: &Path) -> Result<Option<serde_json::Value>, TokenizerError> {
    let text = match files::read_text_if_there(path, MAX_FILE) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        Err(source) => {
            return Err(TokenizerError::Read {
                path: path.into(),
                source,
            });
        }
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| TokenizerError::Malformed {
            place: path.display().to_string(),
            problem: e.to_string(),
        })
}
