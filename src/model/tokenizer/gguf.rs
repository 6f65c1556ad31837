//! Rebuilds a tokenizer pipeline from `tokenizer.ggml.*` metadata.
//!
//! GGUF stores vocabulary and merges, but only a *name* for the pre-tokenizer, so each name is a
//! pipeline written down here.

use std::collections::BTreeSet;

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, unicode::NFC};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::{Conventions, TokenizerError};

/// `tokenizer.ggml.token_type`: matched as a whole and has no text.
const TYPE_CONTROL: u64 = 3;
/// `tokenizer.ggml.token_type`: matched as a whole, ordinary text.
const TYPE_USER_DEFINED: u64 = 4;

const WORD: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizers that are known by name.
#[derive(Clone, Copy)]
enum Pre {
    /// GPT-2's split.
    Gpt2,
    /// GPT-2's split after isolating every digit.
    SingleDigits,
    /// One digit per piece, composed Unicode.
    Qwen2,
    /// Up to three digits per piece; whole words are looked up before merging.
    Llama3,
}

const PRE_NAMES: [(&str, Pre); 10] = [
    ("smollm", Pre::SingleDigits),
    ("starcoder", Pre::SingleDigits),
    ("refact", Pre::SingleDigits),
    ("command-r", Pre::SingleDigits),
    ("gpt-2", Pre::Gpt2),
    ("qwen2", Pre::Qwen2),
    ("deepseek-r1-qwen", Pre::Qwen2),
    ("llama-bpe", Pre::Llama3),
    ("llama3", Pre::Llama3),
    ("llama-v3", Pre::Llama3),
];

/// The pipeline of a GGUF file, and what the file says about begin and end tokens.
pub(super) fn build(
    content: &Content,
) -> Result<(tokenizers::Tokenizer, Conventions), TokenizerError> {
    let model = string(content, "tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(TokenizerError::Unsupported {
            place: "tokenizer.ggml.model".into(),
            found: model,
            supported: "gpt2".into(),
        });
    }
    let pre = pre_tokenizer(&string(content, "tokenizer.ggml.pre")?)?;
    let tokens = strings(content, "tokenizer.ggml.tokens")?;
    let mut tokenizer = byte_level_bpe(content, &tokens, pre)?;
    mark_added_tokens(content, &tokens, &mut tokenizer)?;
    let conventions = Conventions {
        bos: token_id(content, "tokenizer.ggml.bos_token_id", tokens.len())?,
        add_bos: boolean(content, "tokenizer.ggml.add_bos_token")
            .unwrap_or(matches!(pre, Pre::Llama3)),
        eos: end_ids(content, tokens.len())?,
    };
    Ok((tokenizer, conventions))
}

fn pre_tokenizer(name: &str) -> Result<Pre, TokenizerError> {
    let known = PRE_NAMES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, pre)| *pre)
        .ok_or_else(|| TokenizerError::Unsupported {
            place: "tokenizer.ggml.pre".into(),
            found: name.into(),
            supported: PRE_NAMES.map(|(name, _)| name).join(", "),
        })
}

fn byte_level_bpe(
    content: &Content,
    tokens: &[String],
    pre: Pre,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let merges = strings(content, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(malformed(
                "tokenizer.ggml.merges",
                format!("`{merge}` is not a pair"),
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let vocab: Vocab = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), id as u32))
        .collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(matches!(pre, Pre::Llama3))
        .build()
        .map_err(|e| malformed("tokenizer.ggml.merges", e.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(pieces_of(pre)?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    if matches!(pre, Pre::Qwen2) {
        tokenizer
            .with_normalizer(Some(NormalizerWrapper::from(NFC)))
            .map_err(|e| malformed("tokenizer.ggml.pre", e.to_string()))?;
    }
    Ok(tokenizer)
}

fn pieces_of(pre: Pre) -> Result<PreTokenizerWrapper, TokenizerError> {
    let gpt2_split = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    Ok(match pre {
        Pre::Gpt2 => gpt2_split.into(),
        Pre::SingleDigits => {
            Sequence::new(vec![Digits::new(true).into(), gpt2_split.into()]).into()
        }
        Pre::Qwen2 => Sequence::new(vec![split_on(r"\p{N}")?, bytes_only.into()]).into(),
        Pre::Llama3 => Sequence::new(vec![split_on(r"\p{N}{1,3}")?, bytes_only.into()]).into(),
    })
}

fn split_on(digits: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    let pattern = SplitPattern::Regex(format!("{WORD}{digits}{REST}"));
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map(Into::into)
        .map_err(|e| malformed("tokenizer.ggml.pre", e.to_string()))
}

/// Registers control and user-defined tokens, which are recognised before any splitting.
fn mark_added_tokens(
    content: &Content,
    tokens: &[String],
    tokenizer: &mut tokenizers::Tokenizer,
) -> Result<(), TokenizerError> {
    let key = "tokenizer.ggml.token_type";
    let Some(Value::Array(types)) = content.metadata.get(key) else {
        return Err(malformed(key, "missing, or not an array"));
    };
    if types.len() != tokens.len() {
        let problem = format!("{} entries for {} tokens", types.len(), tokens.len());
        return Err(malformed(key, problem));
    }
    let of_type = |wanted: u64| -> Vec<AddedToken> {
        let typed = types.iter().zip(tokens);
        let chosen = typed.filter(|(kind, _)| unsigned(kind) == Some(wanted));
        let special = wanted == TYPE_CONTROL;
        chosen
            .map(|(_, token)| AddedToken::from(token.clone(), special).normalized(false))
            .collect()
    };
    let fail = |e: tokenizers::Error| malformed(key, e.to_string());
    tokenizer
        .add_special_tokens(of_type(TYPE_CONTROL))
        .map_err(fail)?;
    tokenizer
        .add_tokens(of_type(TYPE_USER_DEFINED))
        .map_err(fail)?;
    Ok(())
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

fn strings(content: &Content, key: &str) -> Result<Vec<String>, TokenizerError> {
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

fn boolean(content: &Content, key: &str) -> Option<bool> {
    content.metadata.get(key)?.to_bool().ok()
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
