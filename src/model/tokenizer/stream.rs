//! Token ids to text, one at a time.

use std::sync::Arc;

use super::Tokenizer;

/// Turns a growing sequence of ids into text without ever emitting part of a character.
///
/// Each token's bytes are looked at once, so the whole is linear in the text. Joined, the outputs
/// equal [`Tokenizer::decode`] of all ids.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    /// At most three bytes: the beginning of a character that is not complete yet.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the beginning of a response.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// Takes the next id; returns the text that became complete with it, if any. Control tokens
    /// and ids outside the vocabulary add no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.pending
            .extend_from_slice(self.tokenizer.token_bytes(id));
        let text = take_complete(&mut self.pending);
        Some(text).filter(|text| !text.is_empty())
    }

    /// Ends the text: an incomplete character becomes U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        Some(String::from_utf8_lossy(&rest).into_owned()).filter(|text| !text.is_empty())
    }
}

/// Removes everything from the buffer but an incomplete last character, with U+FFFD for what can
/// never become UTF-8.
fn take_complete(buffer: &mut Vec<u8>) -> String {
    let keep = buffer.len() - incomplete_tail(buffer);
    let text = String::from_utf8_lossy(&buffer[..keep]).into_owned();
    buffer.drain(..keep);
    text
}

/// Length of a valid but incomplete character at the end, 0 to 3 bytes.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(3);
    let is_begun = |len: &usize| {
        let tail = &bytes[bytes.len() - len..];
        // `error_len` is `None` exactly if more bytes could complete the character.
        matches!(std::str::from_utf8(tail), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (1..=longest).rev().find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&[u8]]) {
        let mut buffer = Vec::new();
        let mut text = String::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            text.push_str(&take_complete(&mut buffer));
            assert!(buffer.len() <= 3, "{chunks:?} left {buffer:?}");
        }
        text.push_str(&String::from_utf8_lossy(&buffer));
        assert_eq!(
            text,
            String::from_utf8_lossy(&chunks.concat()),
            "{chunks:?}"
        );
    }

    #[test]
    fn chunked_bytes_read_as_the_whole() {
        check(&[b"\xF0\x9F", b"\x98", b"\x80!"]);
        check(&[b"a\xE2\x82", b"b"]);
        check(&[b"\xFF", b"\xC3", b"\xA9"]);
        check(&[b"\xED\xA0", b"\x80x"]);
        check(&[b"\xF0\x9F\x98", b"\xF0\x9F\x98\x80"]);
    }

    #[test]
    fn random_bytes_in_random_chunks_read_as_the_whole() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        // Bytes that begin, continue and break characters, often next to each other.
        let alphabet = *b"a\x80\x98\x9F\xA0\xC3\xE2\xED\xF0\xF4\xFF";
        for _ in 0..500 {
            let mut pick = || alphabet[rng.random_range(0..alphabet.len())];
            let bytes: Vec<u8> = (0..24).map(|_| pick()).collect();
            for size in 1..5 {
                check(&bytes.chunks(size).collect::<Vec<_>>());
            }
        }
    }
}
