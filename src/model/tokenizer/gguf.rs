//! Rebuilds a tokenizer pipeline from `tokenizer.ggml.*` metadata.
//!
//! For byte-level BPE (`gpt2`), GGUF stores vocabulary and merges, and a name for the
//! pre-tokenizer ([`Pre`]). For SentencePiece (`llama`), it stores pieces, scores and types, from
//! which [`SentencePiece`] merges. Gemma 4 has SentencePiece's spelling with a list of merges.

use std::collections::BTreeSet;

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, prepend::Prepend, unicode::NFC};
use tokenizers::{AddedToken, DecoderWrapper, decoders};

use super::pieces::byte_literal;
use super::pre::{self, Pre};
use super::sentencepiece::{Piece, PieceKind, SPACE, SentencePiece};
use super::{Conventions, TokenizerError};

/// The vocabulary, by id.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
/// `tokenizer.ggml.token_type`: ordinary text.
pub(super) const TYPE_NORMAL: u64 = 1;
/// `tokenizer.ggml.token_type`: stands for what nothing else covers.
const TYPE_UNKNOWN: u64 = 2;
/// `tokenizer.ggml.token_type`: matched as a whole and has no text.
pub(super) const TYPE_CONTROL: u64 = 3;
/// `tokenizer.ggml.token_type`: matched as a whole, ordinary text.
const TYPE_USER_DEFINED: u64 = 4;
/// `tokenizer.ggml.token_type`: never a result.
const TYPE_UNUSED: u64 = 5;
/// `tokenizer.ggml.token_type`: one byte, written `<0xAB>`.
const TYPE_BYTE: u64 = 6;

/// A GGUF file's tokenizer.
pub(super) struct Built {
    pub(super) pipeline: tokenizers::Tokenizer,
    /// Merges instead of the pipeline's own model, if there.
    pub(super) merger: Option<SentencePiece>,
    pub(super) conventions: Conventions,
}

/// Reads the tokenizer, and what the file says about begin and end tokens.
pub(super) fn build(content: &Content) -> Result<Built, TokenizerError> {
    let model = string(content, "tokenizer.ggml.model")?;
    let tokens = strings(content, TOKENS)?;
    let types = token_types(content, tokens.len())?;
    // What holds where the file does not say: the conventions of the format's reference reader.
    let (mut pipeline, merger, adds_bos) = match kind(content, &model)? {
        Kind::ByteLevel(pre) => (byte_level_bpe(content, &tokens, pre)?, None, pre.adds_bos),
        Kind::Lines => (line_bpe(content, &tokens)?, None, false),
        Kind::SentencePiece => {
            let prefix = boolean(content, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            let merger = sentence_piece(content, &tokens, &types)?;
            let pipeline = sentence_piece_pipeline(&tokens, prefix)?;
            (pipeline, Some(merger), true)
        }
    };
    if merger.is_none() {
        add_tokens(&mut pipeline, &tokens, &types, &[TYPE_USER_DEFINED], false)?;
    }
    // The unknown token has no text either.
    let special = [TYPE_CONTROL, TYPE_UNKNOWN];
    add_tokens(&mut pipeline, &tokens, &types, &special, true)?;
    Ok(Built {
        pipeline,
        merger,
        conventions: conventions(content, adds_bos)?,
    })
}

/// What the file says about begin and end tokens, and `adds_bos` where it says nothing.
pub(super) fn conventions(
    content: &Content,
    adds_bos: bool,
) -> Result<Conventions, TokenizerError> {
    let tokens = strings(content, TOKENS)?.len();
    Ok(Conventions {
        bos: token_id(content, "tokenizer.ggml.bos_token_id", tokens)?,
        add_bos: boolean(content, "tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos),
        eos: end_ids(content, tokens)?,
    })
}

/// How a vocabulary merges.
enum Kind {
    ByteLevel(Pre),
    /// SentencePiece's spelling, a list of merges, and pieces that end where lines do.
    Lines,
    SentencePiece,
}

/// Pre-tokenizers of vocabularies that spell as SentencePiece does and merge by a list.
const LINE_NAMES: [&str; 3] = ["gemma4", "sarvam-moe", "granite-embed-multi-311m"];

fn kind(content: &Content, model: &str) -> Result<Kind, TokenizerError> {
    match model {
        "llama" => Ok(Kind::SentencePiece),
        "gemma4" => Ok(Kind::Lines),
        "gpt2" => match content.metadata.get(pre::KEY) {
            None => Ok(Kind::ByteLevel(Pre::named("default")?)),
            Some(Value::String(name)) if LINE_NAMES.contains(&name.as_str()) => Ok(Kind::Lines),
            Some(Value::String(name)) => Pre::named(name).map(Kind::ByteLevel),
            Some(_) => Err(malformed(pre::KEY, "not a string")),
        },
        other => Err(TokenizerError::Unsupported {
            place: "tokenizer.ggml.model".into(),
            found: other.into(),
            supported: "gpt2 (byte-level BPE), llama (SentencePiece BPE), gemma4".into(),
        }),
    }
}

fn merges(content: &Content) -> Result<Vec<(String, String)>, TokenizerError> {
    strings(content, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(malformed(
                "tokenizer.ggml.merges",
                format!("`{merge}` is not a pair"),
            )),
        })
        .collect()
}

fn byte_level_bpe(
    content: &Content,
    tokens: &[String],
    pre: Pre,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let bpe = BPE::builder()
        .vocab_and_merges(vocab(tokens), merges(content)?)
        .ignore_merges(pre.whole_words)
        .build()
        .map_err(|e| malformed("tokenizer.ggml.merges", e.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pre.steps()?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    if pre.composes {
        tokenizer
            .with_normalizer(Some(NormalizerWrapper::from(NFC)))
            .map_err(|e| malformed(pre::KEY, e.to_string()))?;
    }
    Ok(tokenizer)
}

/// SentencePiece's spelling, as a decoder.
fn spaces_and_bytes() -> Result<DecoderWrapper, TokenizerError> {
    let spaces = Replace::new(SPACE.to_string(), " ")
        .map_err(|e| malformed("tokenizer.ggml.tokens", e.to_string()))?;
    let steps = vec![spaces.into(), ByteFallback::default().into()];
    Ok(decoders::sequence::Sequence::new(steps).into())
}

/// Spaces become [`SPACE`], lines and runs of line ends merge apart, and what no token covers is
/// written as bytes.
fn line_bpe(content: &Content, tokens: &[String]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let fail = |e: tokenizers::Error| malformed("tokenizer.ggml.merges", e.to_string());
    let unknown = token_id(content, "tokenizer.ggml.unknown_token_id", tokens.len())?;
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocab(tokens), merges(content)?)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(id) = unknown {
        bpe = bpe.unk_token(tokens[id as usize].clone());
    }
    let mut pipeline = tokenizers::Tokenizer::new(bpe.build().map_err(fail)?);
    let spaces = Replace::new(" ", SPACE.to_string()).map_err(fail)?;
    pipeline.with_normalizer(Some(spaces)).map_err(fail)?;
    pipeline.with_pre_tokenizer(Some(pre::split(r"[^\n]+|[\n]+")?));
    pipeline.with_decoder(Some(spaces_and_bytes()?));
    Ok(pipeline)
}

/// The steps around a SentencePiece merger: spaces become [`SPACE`], after one more at the
/// beginning of each stretch of text if the vocabulary wants a prefix.
fn sentence_piece_pipeline(
    tokens: &[String],
    prefix: bool,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let fail = |e: tokenizers::Error| malformed("tokenizer.ggml.tokens", e.to_string());
    let bpe = BPE::builder()
        .vocab_and_merges(vocab(tokens), Vec::new())
        .build()
        .map_err(fail)?;
    let mut pipeline = tokenizers::Tokenizer::new(bpe);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        steps.push(Prepend::new(SPACE.to_string()).into());
    }
    steps.push(Replace::new(" ", SPACE.to_string()).map_err(fail)?.into());
    let steps = tokenizers::normalizers::Sequence::new(steps);
    pipeline.with_normalizer(Some(steps)).map_err(fail)?;
    pipeline.with_decoder(Some(spaces_and_bytes()?));
    Ok(pipeline)
}

fn sentence_piece(
    content: &Content,
    tokens: &[String],
    types: &[u64],
) -> Result<SentencePiece, TokenizerError> {
    let key = "tokenizer.ggml.scores";
    let Some(Value::Array(scores)) = content.metadata.get(key) else {
        return Err(malformed(key, "missing, or not an array"));
    };
    if scores.len() != tokens.len() {
        let problem = format!("{} entries for {} tokens", scores.len(), tokens.len());
        return Err(malformed(key, problem));
    }
    let mut pieces = Vec::with_capacity(tokens.len());
    for (id, ((text, score), kind)) in tokens.iter().zip(scores).zip(types).enumerate() {
        let Value::F32(score) = *score else {
            return Err(malformed(key, "not an array of 32-bit floats"));
        };
        let kind = piece_kind(text, *kind).map_err(|problem| {
            let problem = format!("token {id} (`{text}`) {problem}");
            malformed("tokenizer.ggml.token_type", problem)
        })?;
        pieces.push(Piece { text, score, kind });
    }
    mark_unknown(content, &mut pieces)?;
    SentencePiece::new(&pieces).map_err(|problem| malformed(key, problem.to_string()))
}

/// Why a token has no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum KindError {
    #[error("is a byte token, but not written as <0xAB>")]
    Byte,
    #[error("has type {0}; allowed are 1 to 6")]
    Unknown(u64),
}

fn piece_kind(text: &str, kind: u64) -> Result<PieceKind, KindError> {
    match kind {
        TYPE_NORMAL => Ok(PieceKind::Normal),
        TYPE_UNKNOWN => Ok(PieceKind::Unknown),
        TYPE_CONTROL => Ok(PieceKind::Control),
        TYPE_USER_DEFINED => Ok(PieceKind::UserDefined),
        TYPE_UNUSED => Ok(PieceKind::Unused),
        TYPE_BYTE => byte_literal(text)
            .map(PieceKind::Byte)
            .ok_or(KindError::Byte),
        other => Err(KindError::Unknown(other)),
    }
}

/// Some files give the unknown token as a control token, and name it by its id.
fn mark_unknown(content: &Content, pieces: &mut [Piece<'_>]) -> Result<(), TokenizerError> {
    let key = "tokenizer.ggml.unknown_token_id";
    if let Some(id) = token_id(content, key, pieces.len())? {
        let piece = &mut pieces[id as usize];
        if piece.kind == PieceKind::Control {
            piece.kind = PieceKind::Unknown;
        }
    }
    Ok(())
}

pub(super) fn token_types(content: &Content, tokens: usize) -> Result<Vec<u64>, TokenizerError> {
    let key = "tokenizer.ggml.token_type";
    let Some(Value::Array(types)) = content.metadata.get(key) else {
        return Err(malformed(key, "missing, or not an array"));
    };
    if types.len() != tokens {
        let problem = format!("{} entries for {tokens} tokens", types.len());
        return Err(malformed(key, problem));
    }
    let types = types.iter().map(unsigned).collect::<Option<Vec<u64>>>();
    types.ok_or_else(|| malformed(key, "not an array of whole numbers"))
}

/// Registers the tokens of the given types, which are recognised before any splitting.
fn add_tokens(
    pipeline: &mut tokenizers::Tokenizer,
    tokens: &[String],
    types: &[u64],
    wanted: &[u64],
    special: bool,
) -> Result<(), TokenizerError> {
    let typed = types.iter().zip(tokens);
    let chosen: Vec<AddedToken> = typed
        .filter(|(kind, _)| wanted.contains(kind))
        .map(|(_, token)| AddedToken::from(token.clone(), special).normalized(false))
        .collect();
    let added = match special {
        true => pipeline.add_special_tokens(chosen),
        false => pipeline.add_tokens(chosen),
    };
    added.map_err(|e| malformed("tokenizer.ggml.token_type", e.to_string()))?;
    Ok(())
}

fn vocab(tokens: &[String]) -> Vocab {
    (0..)
        .zip(tokens)
        .map(|(id, token)| (token.clone(), id))
        .collect()
}

/// End-of-sequence, end-of-turn and end-of-message ids, the first of them first.
fn end_ids(content: &Content, vocab_size: usize) -> Result<Vec<u32>, TokenizerError> {
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let id = token_id(content, &format!("tokenizer.ggml.{key}"), vocab_size)?;
        ids.extend(id.filter(|id| seen.insert(*id)));
    }
    Ok(ids)
}

fn token_id(
    content: &Content,
    key: &str,
    vocab_size: usize,
) -> Result<Option<u32>, TokenizerError> {
    let Some(value) = content.metadata.get(key) else {
        return Ok(None);
    };
    match unsigned(value) {
        Some(id) if id < vocab_size as u64 => Ok(Some(id as u32)),
        _ => Err(malformed(
            key,
            format!("{value:?} is not an id below {vocab_size}"),
        )),
    }
}

fn string(content: &Content, key: &str) -> Result<String, TokenizerError> {
    match content.metadata.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(malformed(key, "not a string")),
        None => Err(malformed(key, "missing from the GGUF metadata")),
    }
}

pub(super) fn strings(content: &Content, key: &str) -> Result<Vec<String>, TokenizerError> {
    let Some(Value::Array(values)) = content.metadata.get(key) else {
        return Err(malformed(
            key,
            "missing from the GGUF metadata, or not an array",
        ));
    };
    let texts = values.iter().map(|value| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(malformed(key, "not an array of strings")),
    });
    texts.collect()
}

fn boolean(content: &Content, key: &str) -> Result<Option<bool>, TokenizerError> {
    match content.metadata.get(key) {
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(malformed(key, "not a boolean")),
        None => Ok(None),
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::U64(v) => Some(v),
        Value::I8(v) => v.try_into().ok(),
        Value::I16(v) => v.try_into().ok(),
        Value::I32(v) => v.try_into().ok(),
        Value::I64(v) => v.try_into().ok(),
        Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
    }
}

fn malformed(key: &str, problem: impl Into<String>) -> TokenizerError {
    TokenizerError::Malformed {
        place: key.into(),
        problem: problem.into(),
    }
}
