//! Drafts: tokens that a sequence may go on with, because the same words went on with them before.
//!
//! A step computes the rows of a draft beside the sequence's own, and tokens are then drawn one by one
//! as ever: as long as the one that is drawn is the one that was drafted, the next row's logits are
//! there already. So no token and no random number changes, only the number of steps. Answers that
//! repeat their prompt (summaries, corrected texts, changed code) gain; others must lose nothing, so
//! a sequence whose drafts miss makes them more and more rarely.

use std::collections::HashMap;

/// Tokens that have to be the same for what followed them to be a draft.
const GRAM: usize = 3;
/// Tokens of a first draft, and of one after a miss.
const FIRST: usize = 2;
/// Most steps without a draft after a miss.
const LONGEST_PAUSE: usize = 64;

/// Drafts of one sequence.
#[derive(Debug)]
pub(crate) struct Drafts {
    /// What follows each run of tokens, as its place; the latest counts.
    followers: HashMap<[u32; GRAM], usize>,
    /// Tokens whose runs are in there.
    read: usize,
    /// Tokens of the next draft, at most.
    length: usize,
    /// Steps until the next draft.
    rest: usize,
    /// Steps without a draft after the next miss.
    pause: usize,
}

impl Default for Drafts {
    fn default() -> Self {
        Self {
            followers: HashMap::new(),
            read: GRAM,
            length: FIRST,
            rest: 0,
            pause: 1,
        }
    }
}

impl Drafts {
    /// At most `most` tokens that may follow these.
    pub(crate) fn of(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        if self.rest > 0 {
            self.rest -= 1;
            return Vec::new();
        }
        // The last run is looked for before it is read: nothing follows it yet.
        for end in self.read..tokens.len() {
            if let Some(run) = tokens[..end].last_chunk() {
                self.followers.insert(*run, end);
            }
        }
        self.read = self.read.max(tokens.len());
        let place = tokens.last_chunk().and_then(|run| self.followers.get(run));
        let Some(&place) = place else {
            return Vec::new();
        };
        let follow = &tokens[place..];
        follow[..self.length.min(most).min(follow.len())].to_vec()
    }

    /// Learns how many tokens of a draft were drawn.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize, most: usize) {
        if accepted == 0 {
            self.length = FIRST;
            self.rest = self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
            return;
        }
        self.pause = 1;
        if accepted == drafted {
            self.length = (2 * self.length).min(most);
        } else {
            self.length = (accepted + 1).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_same_words_is_a_draft() {
        let mut drafts = Drafts::default();
        assert!(drafts.of(&[1, 2], 8).is_empty(), "too short");
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(drafts.of(&tokens, 8), [4, 5]);
        assert_eq!(drafts.of(&tokens, 1), [4]);
        assert!(drafts.of(&tokens, 0).is_empty());
        // The latest place counts, and a draft ends with the text.
        let tokens = [1, 2, 3, 4, 1, 2, 3, 7, 1, 2, 3];
        assert_eq!(Drafts::default().of(&tokens, 8), [7, 1]);
        assert_eq!(Drafts::default().of(&[5; 5], 8), [5]);
        assert!(Drafts::default().of(&[1, 2, 3, 4, 5, 6], 8).is_empty());
    }

    #[test]
    fn tokens_that_come_later_are_read_too() {
        let mut drafts = Drafts::default();
        let mut tokens = vec![1, 2, 3];
        assert!(drafts.of(&tokens, 8).is_empty());
        for token in [4, 5, 1, 2] {
            tokens.push(token);
            assert!(drafts.of(&tokens, 8).is_empty());
        }
        tokens.push(3);
        assert_eq!(drafts.of(&tokens, 8), [4, 5]);
    }

    #[test]
    fn drafts_that_hit_grow_and_those_that_miss_become_rare() {
        let mut drafts = Drafts::default();
        let tokens: Vec<u32> = (0..20).chain(0..3).collect();
        drafts.learn(2, 2, 8);
        assert_eq!(drafts.of(&tokens, 8).len(), 4);
        drafts.learn(4, 4, 8);
        drafts.learn(8, 8, 8);
        assert_eq!(drafts.of(&tokens, 8).len(), 8);
        drafts.learn(8, 2, 8);
        assert_eq!(drafts.of(&tokens, 8).len(), 3);
        let made = |drafts: &mut Drafts| {
            let mut made = 0;
            for _ in 0..1000 {
                let draft = drafts.of(&tokens, 8);
                if !draft.is_empty() {
                    made += 1;
                    drafts.learn(draft.len(), 0, 8);
                }
            }
            made
        };
        assert_eq!(made(&mut drafts), 21, "of 1,000 steps");
        drafts.rest = 0;
        drafts.learn(2, 1, 8);
        drafts.learn(2, 0, 8);
        assert!(drafts.of(&tokens, 8).is_empty());
        assert!(!drafts.of(&tokens, 8).is_empty(), "one step later");
    }
}
