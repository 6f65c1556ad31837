//! What bytes each token stands for, so that decoding is a table look-up.

use std::collections::{BTreeMap, HashMap};

use tokenizers::DecoderWrapper;

use super::TokenizerError;

/// How a vocabulary spells bytes.
enum Spelling {
    /// Every byte is one printable character (GPT-2's table).
    ByteLevel,
    /// Text with `▁` for a space and `<0xAB>` for single bytes (SentencePiece).
    SentencePiece,
}

/// Bytes per id, from 0 to the largest id; control tokens have none.
pub(super) fn token_bytes(
    tokenizer: &tokenizers::Tokenizer,
    control: &BTreeMap<u32, String>,
    place: &str,
) -> Result<Vec<Box<[u8]>>, TokenizerError> {
    let spelling =
        spelling(tokenizer.get_decoder()).ok_or_else(|| TokenizerError::Unsupported {
            place: format!("{place}: the decoder"),
            found: "neither byte-level nor SentencePiece".into(),
            supported: "ByteLevel; Metaspace; Replace, ByteFallback and Fuse".into(),
        })?;
    let vocab = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |max| *max as usize + 1);
    let mut pieces: Vec<Box<[u8]>> = vec![Box::default(); size];
    let alphabet = byte_alphabet();
    let added = tokenizer.get_added_tokens_decoder();
    for (token, id) in vocab {
        if control.contains_key(&id) {
            continue;
        }
        // Added tokens are spelled as they are read, whatever the model's spelling is.
        let bytes = match (&spelling, added.contains_key(&id)) {
            (_, true) => token.into_bytes(),
            (Spelling::ByteLevel, false) => byte_level(&token, &alphabet),
            (Spelling::SentencePiece, false) => sentence_piece(&token),
        };
        pieces[id as usize] = bytes.into();
    }
    Ok(pieces)
}

fn spelling(decoder: Option<&DecoderWrapper>) -> Option<Spelling> {
    match decoder? {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => {
            Some(Spelling::SentencePiece)
        }
        DecoderWrapper::Sequence(steps) => steps
            .get_decoders()
            .iter()
            .find_map(|step| spelling(Some(step))),
        DecoderWrapper::BPE(_)
        | DecoderWrapper::WordPiece(_)
        | DecoderWrapper::CTC(_)
        | DecoderWrapper::Replace(_)
        | DecoderWrapper::Fuse(_)
        | DecoderWrapper::Strip(_) => None,
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

fn sentence_piece(token: &str) -> Vec<u8> {
    match byte_literal(token) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    }
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

    #[test]
    fn spellings_read_back_as_bytes() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        for (token, expect) in [("Ġthe", &b" the"[..]), ("Ċ", b"\n"), ("Ã©", "é".as_bytes())] {
            assert_eq!(byte_level(token, &alphabet), expect, "{token}");
        }
        let pieces = [
            ("▁the", &b" the"[..]),
            ("<0x0A>", b"\n"),
            ("<0xZZ>", b"<0xZZ>"),
        ];
        for (token, expect) in pieces {
            assert_eq!(sentence_piece(token), expect, "{token}");
        }
    }
}
