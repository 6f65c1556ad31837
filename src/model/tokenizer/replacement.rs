//! Whether a `tokenizer.json` is that of a GGUF file.

use candle_core::quantized::gguf_file::Content;

use super::gguf::{TOKENS, TYPE_CONTROL, TYPE_NORMAL, strings, token_types};

/// One token in so many may differ: converters and fine-tunes rename reserved ones.
const TOLERATED: usize = 1000;

/// Compares the two vocabularies, id by id: ordinary tokens have the same text, and so have control
/// tokens, but for a few. Tokens that a file calls unused or user-defined are not compared, because
/// converters rewrite them.
///
/// # Errors
/// The first difference, or that the file has no vocabulary to compare with.
pub(super) fn check(given: &tokenizers::Tokenizer, content: &Content) -> Result<(), String> {
    let tokens = strings(content, TOKENS).map_err(|e| e.to_string())?;
    let types = token_types(content, tokens.len()).map_err(|e| e.to_string())?;
    let size = given.get_vocab_size(true);
    let ordinary = types.iter().filter(|kind| **kind == TYPE_NORMAL).count();
    if size < ordinary || size > tokens.len() {
        return Err(format!(
            "it has {size} tokens, the GGUF file {}, {ordinary} of them ordinary",
            tokens.len()
        ));
    }
    let compared = |kind: &u64| matches!(*kind, TYPE_NORMAL | TYPE_CONTROL);
    let differs = |id: u32, text: &str| given.id_to_token(id).is_none_or(|other| other != text);
    let rows = (0..).zip(&tokens).zip(&types);
    let different: Vec<(u32, &String)> = rows
        .filter(|((id, text), kind)| compared(kind) && differs(*id, text))
        .map(|(row, _)| row)
        .collect();
    match different.first() {
        Some((id, text)) if different.len() > tokens.len() / TOLERATED => {
            let other = given.id_to_token(*id);
            let other = other.map_or_else(|| "absent".into(), |other| format!("`{other}`"));
            Err(format!(
                "token {id} is {other} there and `{text}` in the GGUF file, and {} more differ",
                different.len() - 1
            ))
        }
        _ => Ok(()),
    }
}
