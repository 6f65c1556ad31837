//! What bytes each token stands for, so that decoding is a table look-up.

use std::collections::{BTreeMap, HashMap};

use tokenizers::DecoderWrapper;

use super::TokenizerError;

/// How a vocabulary spells text: the steps of its decoder that act on single tokens.
#[derive(Debug, Default, PartialEq)]
struct Spelling {
    /// Every byte is one printable character (GPT-2's table).
    byte_level: bool,
    /// Single bytes are written `<0xAB>` (SentencePiece).
    byte_literals: bool,
    /// What is written for what: `▁` for a space.
    replaced: Vec<(String, String)>,
}

/// Bytes per id, from 0 to the largest id; control tokens have none. `literal` says which of the
/// added tokens are spelled as they are read; all others go through the decoder's steps.
pub(super) fn token_bytes(
    tokenizer: &tokenizers::Tokenizer,
    control: &BTreeMap<u32, String>,
    literal: Literal,
    place: &str,
) -> Result<Vec<Box<[u8]>>, TokenizerError> {
    let mut spelling = Spelling::default();
    match tokenizer.get_decoder() {
        Some(decoder) => spelling.add(decoder, place)?,
        None => return Err(unsupported(place, "missing")),
    }
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |max| *max as usize + 1);
    let mut pieces: Vec<Box<[u8]>> = vec![Box::default(); size];
    let alphabet = byte_alphabet();
    let added = tokenizer.get_added_tokens_decoder();
    for (token, id) in vocab {
        if control.contains_key(&id) {
            continue;
        }
        let bytes = match literal == Literal::Added && added.contains_key(&id) {
            true => token.into_bytes(),
            false => spelling.bytes(&token, &alphabet),
        };
        pieces[id as usize] = bytes.into();
    }
    Ok(pieces)
}

/// Which tokens are spelled as they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    /// None: `tokenizers` decodes added tokens as it does all others.
    Nothing,
    /// Added tokens: what a GGUF file calls user-defined.
    Added,
}

fn unsupported(place: &str, found: impl Into<String>) -> TokenizerError {
    TokenizerError::Unsupported {
        place: format!("{place}: the decoder"),
        found: found.into(),
        supported: "ByteLevel; Metaspace; Replace of a string, ByteFallback, Fuse and Strip".into(),
    }
}

impl Spelling {
    /// Takes up a step. Fuse changes no text. Strip removes a space at the beginning of a whole
    /// text, and an answer continues one.
    fn add(&mut self, step: &DecoderWrapper, place: &str) -> Result<(), TokenizerError> {
        match step {
            DecoderWrapper::ByteLevel(_) => self.byte_level = true,
            DecoderWrapper::ByteFallback(_) => self.byte_literals = true,
            DecoderWrapper::Metaspace(space) => {
                let mark = space.get_replacement().to_string();
                self.replaced.push((mark, " ".into()));
                // SentencePiece vocabularies have byte tokens whether the step is listed or not.
                self.byte_literals = true;
            }
            DecoderWrapper::Replace(_) => {
                let written = serde_json::to_value(step).unwrap_or_default();
                let texts = (
                    written["pattern"]["String"].as_str(),
                    written["content"].as_str(),
                );
                let (Some(pattern), Some(content)) = texts else {
                    return Err(unsupported(place, "a Replace of a regex"));
                };
                self.replaced.push((pattern.into(), content.into()));
            }
            DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => {}
            DecoderWrapper::Sequence(steps) => {
                for step in steps.get_decoders() {
                    self.add(step, place)?;
                }
            }
            DecoderWrapper::BPE(_) => return Err(unsupported(place, "BPEDecoder")),
            DecoderWrapper::WordPiece(_) => return Err(unsupported(place, "WordPiece")),
            DecoderWrapper::CTC(_) => return Err(unsupported(place, "CTC")),
        }
        Ok(())
    }

    fn bytes(&self, token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
        let mut text = std::borrow::Cow::Borrowed(token);
        for (pattern, content) in &self.replaced {
            if text.contains(pattern.as_str()) {
                text = text.replace(pattern.as_str(), content).into();
            }
        }
        match byte_literal(&text).filter(|_| self.byte_literals) {
            Some(byte) => vec![byte],
            None if self.byte_level => byte_level(&text, alphabet),
            None => text.into_owned().into_bytes(),
        }
    }
}

/// GPT-2's table: printable Latin-1 bytes stand for themselves, the others for the characters from
/// U+0100 on, in byte order.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut table = HashMap::with_capacity(256);
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { u32::from(byte) } else { next };
        next += u32::from(!printable);
        table.extend(char::from_u32(code).map(|c| (c, byte)));
    }
    table
}

fn byte_level(token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match alphabet.get(&c) {
            Some(byte) => bytes.push(*byte),
            // Not of the alphabet: a token that was added by hand. It reads as it is written.
            None => return token.as_bytes().to_vec(),
        }
    }
    bytes
}

/// The byte that SentencePiece writes as `<0xAB>`.
pub(super) fn byte_literal(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` alone would take a sign.
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(hex, 16).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelling(decoder: &str) -> Result<Spelling, String> {
        let decoder: DecoderWrapper = serde_json::from_str(decoder).map_err(|e| e.to_string())?;
        let mut spelling = Spelling::default();
        let added = spelling.add(&decoder, "here");
        added.map(|()| spelling).map_err(|e| e.to_string())
    }

    #[test]
    fn tokens_are_spelled_by_the_steps_of_the_decoder() {
        let byte_level =
            r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
        let gemma = r#"{"type":"Sequence","decoders":[
            {"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"}]}"#;
        let metaspace =
            r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true}"#;
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        for (decoder, token, expect) in [
            (byte_level, "Ġthe", &b" the"[..]),
            (byte_level, "Ċ", b"\n"),
            (byte_level, "Ã©", "é".as_bytes()),
            (byte_level, "<0x0A>", b"<0x0A>"),
            (byte_level, "東", "東".as_bytes()),
            (gemma, "▁the", b" the"),
            (gemma, "▁▁▁", b"   "),
            (gemma, "<0x0A>", b"\n"),
            (gemma, "<0xZZ>", b"<0xZZ>"),
            (metaspace, "_a", b" a"),
        ] {
            let spelling = spelling(decoder).unwrap();
            assert_eq!(spelling.bytes(token, &alphabet), expect, "{token}");
        }
    }

    #[test]
    fn a_step_that_a_table_cannot_hold_is_refused_by_name() {
        let word_piece = r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###;
        let regex = r#"{"type":"Replace","pattern":{"Regex":"a+"},"content":" "}"#;
        for (decoder, says) in [(word_piece, "WordPiece"), (regex, "regex")] {
            let error = spelling(decoder).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
