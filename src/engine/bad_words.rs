//! Texts that an answer must not contain, however the model splits them into tokens.

use std::collections::HashMap;
use std::sync::Arc;

use realign_model::Tokenizer;

/// Forbidden texts, looked up in a vocabulary. Clones share it.
#[derive(Clone)]
pub struct BadWords(Arc<Table>);

struct Table {
    tokenizer: Arc<Tokenizer>,
    words: Vec<Vec<u8>>,
    /// Tokens that contain a whole word.
    whole: Vec<u32>,
    /// By word and the number of its bytes that the text ends with: tokens that complete it.
    completing: HashMap<(usize, usize), Vec<u32>>,
}

impl std::fmt::Debug for BadWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BadWords").finish_non_exhaustive()
    }
}

impl PartialEq for BadWords {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl BadWords {
    /// Finds the tokens that complete each of the words; empty words are ignored. Reads the whole
    /// vocabulary, which takes milliseconds.
    pub fn new(words: &[String], tokenizer: &Arc<Tokenizer>) -> Self {
        let words = words.iter().filter(|word| !word.is_empty());
        let words: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).collect();
        // The places in words at which a token may continue them, by the byte there.
        let mut places: HashMap<u8, Vec<(usize, usize)>> = HashMap::new();
        for (w, word) in words.iter().enumerate() {
            for (at, byte) in word.iter().enumerate().skip(1) {
                places.entry(*byte).or_default().push((w, at));
            }
        }
        let (mut whole, mut completing) = (Vec::new(), HashMap::<_, Vec<u32>>::new());
        for id in 0..tokenizer.vocab_size() as u32 {
            let bytes = tokenizer.token_bytes(id);
            if words.iter().any(|word| contains(bytes, word)) {
                whole.push(id);
                continue;
            }
            let first = bytes.first().and_then(|first| places.get(first));
            for &(w, at) in first.into_iter().flatten() {
                if bytes.starts_with(&words[w][at..]) {
                    completing.entry((w, at)).or_default().push(id);
                }
            }
        }
        Self(Arc::new(Table {
            tokenizer: Arc::clone(tokenizer),
            words,
            whole,
            completing,
        }))
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The end of one sequence's text.
#[derive(Debug)]
pub(crate) struct BadWordsState {
    table: BadWords,
    /// As long as the longest word.
    tail: Vec<u8>,
}

impl BadWordsState {
    /// The state before the first token.
    pub(crate) fn new(table: &BadWords) -> Self {
        Self {
            table: table.clone(),
            tail: Vec::new(),
        }
    }

    /// Makes the tokens impossible that would complete a word.
    pub(crate) fn mask(&self, logits: &mut [f32]) {
        let Table {
            words,
            whole,
            completing,
            ..
        } = &*self.table.0;
        let mut forbid = |ids: &[u32]| {
            for id in ids {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        };
        forbid(whole);
        for (w, word) in words.iter().enumerate() {
            for at in 1..word.len() {
                if self.tail.ends_with(&word[..at])
                    && let Some(ids) = completing.get(&(w, at))
                {
                    forbid(ids);
                }
            }
        }
    }

    /// Appends a drawn token.
    pub(crate) fn accept(&mut self, id: u32) {
        let table = &self.table.0;
        self.tail.extend_from_slice(table.tokenizer.token_bytes(id));
        let longest = table.words.iter().map(Vec::len).max().unwrap_or(0);
        let surplus = self.tail.len().saturating_sub(longest);
        self.tail.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_model::test_support::test_model;

    /// Which tokens are forbidden after a text.
    fn forbidden(words: &[&str], text: &str, tokenizer: &Arc<Tokenizer>) -> Vec<u32> {
        let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
        let mut state = BadWordsState::new(&BadWords::new(&words, tokenizer));
        for id in tokenizer.encode(text, false).unwrap() {
            state.accept(id);
        }
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        state.mask(&mut logits);
        let ids = (0u32..).zip(&logits);
        ids.filter(|(_, l)| l.is_infinite())
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn a_word_is_forbidden_however_it_is_split() {
        let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
        let one = |text: &str| tokenizer.encode(text, false).unwrap()[0];
        let after = |words: &[&str], text: &str| forbidden(words, text, &tokenizer);
        assert!(after(&["xyz"], "wxy").contains(&one("z")));
        assert!(!after(&["xyz"], "wxy").contains(&one("y")));
        assert!(!after(&["xyz"], "wx").contains(&one("z")));
        assert!(after(&["q"], "").contains(&one("q")));
        assert!(after(&["aab"], "aaa").contains(&one("b")), "overlaps count");
        assert!(after(&[""], "a").is_empty());
        let whole = after(&["e"], "");
        let with_e = |id: &u32| tokenizer.token_bytes(*id).contains(&b'e');
        assert!(whole.iter().all(with_e) && !whole.is_empty());
    }
}
