//! SentencePiece's BPE, from pieces and scores.
//!
//! A SentencePiece model has no list of merges. Two neighbours may merge if the text of both
//! together is a piece; of all such pairs the one with the highest score goes first, and of equal
//! ones the leftmost. `tokenizers`' BPE ranks *pairs* instead, which differs where one piece can be
//! put together in several ways or holds a character that is no piece itself. So the merging is
//! done here, and `tokenizers` only does what comes before it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// SentencePiece's mark for a space.
pub(super) const SPACE: char = '▁';

/// What the vocabulary says about one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Made by merging.
    Normal,
    /// May be made on the way to a larger piece, but is taken apart again if it is left over.
    Unused,
    /// Matched as a whole before anything merges, the longest first.
    UserDefined,
    /// Stands for one byte of a character that no piece covers.
    Byte(u8),
    /// Stands for every character that nothing else covers.
    Unknown,
    /// Has no text.
    Control,
}

/// One token of the vocabulary; its id is its place in the list.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// A piece that merging may make.
#[derive(Clone, Copy)]
struct Mergeable {
    id: u32,
    /// Place among all scores, the highest first; equal for equal scores.
    rank: u32,
    unused: bool,
}

/// What stands for a character that is no piece.
enum Fallback {
    /// One token per byte.
    Bytes(Box<[u32; 256]>),
    /// One token for a whole run of such characters.
    Unknown(u32),
}

/// A SentencePiece vocabulary, ready to encode.
pub(super) struct SentencePiece {
    mergeable: HashMap<Box<str>, Mergeable>,
    /// By first character, the longest first.
    user_defined: HashMap<char, Vec<(Box<str>, u32)>>,
    fallback: Fallback,
}

/// A stretch of the text that is one token so far; empty once it went into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// Set for a user-defined token, which never merges.
    fixed: Option<u32>,
}

/// A pair that may merge. Ordered as merges are done: by rank, then from left to right.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    len: usize,
}

/// Why some texts could not be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum VocabularyError {
    #[error("the score of token {0} is not a number")]
    Score(usize),
    #[error("there are neither byte tokens nor an unknown token")]
    NoFallback,
    #[error("{0} of the 256 byte tokens are missing")]
    Bytes(usize),
}

/// How unused pieces came about: where the right part begins, within the piece.
type Seams = HashMap<Box<str>, usize>;

impl SentencePiece {
    /// Reads the vocabulary.
    ///
    /// # Errors
    /// If a score is not a number, or if there is neither a token for every byte nor an unknown
    /// token: some texts could not be encoded.
    pub(super) fn new(pieces: &[Piece<'_>]) -> Result<Self, VocabularyError> {
        if let Some(id) = pieces.iter().position(|piece| piece.score.is_nan()) {
            return Err(VocabularyError::Score(id));
        }
        let ranks = ranks(pieces);
        let mut mergeable = HashMap::with_capacity(pieces.len());
        let mut user_defined: HashMap<char, Vec<(Box<str>, u32)>> = HashMap::new();
        for (id, piece) in (0..).zip(pieces) {
            let text = piece.text.replace(' ', "▁").into_boxed_str();
            match piece.kind {
                PieceKind::Normal | PieceKind::Unused => {
                    let piece = Mergeable {
                        id,
                        rank: ranks[id as usize],
                        unused: piece.kind == PieceKind::Unused,
                    };
                    mergeable.insert(text, piece);
                }
                PieceKind::UserDefined => {
                    if let Some(first) = text.chars().next() {
                        user_defined.entry(first).or_default().push((text, id));
                    }
                }
                PieceKind::Byte(_) | PieceKind::Unknown | PieceKind::Control => {}
            }
        }
        for same_first in user_defined.values_mut() {
            same_first.sort_by_key(|(text, _)| Reverse(text.len()));
        }
        Ok(Self {
            mergeable,
            user_defined,
            fallback: fallback(pieces)?,
        })
    }

    /// Token ids of a text whose spaces are already written as [`SPACE`].
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut symbols = self.symbols(text);
        let seams = self.merge(text, &mut symbols);
        let mut ids = Ids::default();
        let mut at = (!symbols.is_empty()).then_some(0);
        while let Some(symbol) = at.and_then(|at| symbols.get(at)) {
            match symbol.fixed {
                Some(id) => ids.push(id),
                None => self.emit(symbol.text(text), &seams, &mut ids),
            }
            at = symbol.next;
        }
        ids.list
    }

    /// User-defined tokens where they match, single characters elsewhere.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let candidates = self.user_defined.get(&first).map_or(&[][..], Vec::as_slice);
            let matched = candidates
                .iter()
                .find(|(literal, _)| rest.starts_with(&**literal));
            let len = matched.map_or(first.len_utf8(), |(literal, _)| literal.len());
            let at = symbols.len();
            symbols.push(Symbol {
                start: text.len() - rest.len(),
                len,
                previous: at.checked_sub(1),
                next: Some(at + 1),
                fixed: matched.map(|(_, id)| *id),
            });
            rest = &rest[len..];
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        symbols
    }

    /// Merges until no pair is a piece.
    fn merge(&self, text: &str, symbols: &mut [Symbol]) -> Seams {
        let mut seams = Seams::new();
        let mut queue: BinaryHeap<Reverse<Candidate>> = (1..symbols.len())
            .filter_map(|right| self.candidate(text, symbols, right - 1, right, &mut seams))
            .collect();
        while let Some(Reverse(best)) = queue.pop() {
            let (left, right) = (&symbols[best.left], &symbols[best.right]);
            // One of the two went into another merge since the pair was queued.
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            let next = right.next;
            symbols[best.right].len = 0;
            symbols[best.left].len = best.len;
            symbols[best.left].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(best.left);
                queue.extend(self.candidate(text, symbols, best.left, next, &mut seams));
            }
            if let Some(previous) = symbols[best.left].previous {
                queue.extend(self.candidate(text, symbols, previous, best.left, &mut seams));
            }
        }
        seams
    }

    fn candidate(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        seams: &mut Seams,
    ) -> Option<Reverse<Candidate>> {
        let (first, second) = (&symbols[left], &symbols[right]);
        if first.fixed.is_some() || second.fixed.is_some() {
            return None;
        }
        let len = first.len + second.len;
        let whole = &text[first.start..first.start + len];
        let piece = self.mergeable.get(whole)?;
        if piece.unused {
            seams.insert(whole.into(), first.len);
        }
        Some(Reverse(Candidate {
            rank: piece.rank,
            left,
            right,
            len,
        }))
    }

    /// Appends the ids of a stretch that nothing merges with any more.
    fn emit(&self, text: &str, seams: &Seams, ids: &mut Ids) {
        let piece = self.mergeable.get(text);
        let seam = piece
            .filter(|piece| piece.unused)
            .and_then(|_| seams.get(text));
        match (piece, seam, &self.fallback) {
            (Some(_), Some(seam), _) => {
                let (left, right) = text.split_at(*seam);
                self.emit(left, seams, ids);
                self.emit(right, seams, ids);
            }
            (Some(piece), None, _) => ids.push(piece.id),
            (None, _, Fallback::Bytes(bytes)) => {
                for byte in text.bytes() {
                    ids.push(bytes[usize::from(byte)]);
                }
            }
            (None, _, Fallback::Unknown(id)) => ids.push_unknown(*id),
        }
    }
}

impl Symbol {
    fn text<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start..self.start + self.len]
    }
}

/// The result, in which neighbouring unknown characters share one token.
#[derive(Default)]
struct Ids {
    list: Vec<u32>,
    after_unknown: bool,
}

impl Ids {
    fn push(&mut self, id: u32) {
        self.list.push(id);
        self.after_unknown = false;
    }

    fn push_unknown(&mut self, id: u32) {
        if !self.after_unknown {
            self.list.push(id);
        }
        self.after_unknown = true;
    }
}

/// Each piece's place among the distinct scores, the highest first.
fn ranks(pieces: &[Piece<'_>]) -> Vec<u32> {
    // Adding 0 makes -0 and 0 the same bit pattern; `total_cmp` would tell them apart.
    let score = |id: usize| pieces[id].score + 0.0;
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    let mut ranks = vec![0; pieces.len()];
    for pair in order.windows(2) {
        ranks[pair[1]] = ranks[pair[0]] + u32::from(score(pair[0]) != score(pair[1]));
    }
    ranks
}

fn fallback(pieces: &[Piece<'_>]) -> Result<Fallback, VocabularyError> {
    let mut bytes = [None; 256];
    let mut unknown = None;
    for (id, piece) in (0..).zip(pieces) {
        match piece.kind {
            PieceKind::Byte(byte) => bytes[usize::from(byte)] = Some(id),
            PieceKind::Unknown => unknown = Some(id),
            PieceKind::Normal | PieceKind::Unused | PieceKind::UserDefined | PieceKind::Control => {
            }
        }
    }
    let missing = bytes.iter().filter(|id| id.is_none()).count();
    match (missing, unknown) {
        (0, _) => Ok(Fallback::Bytes(Box::new(
            bytes.map(Option::unwrap_or_default),
        ))),
        (256, Some(id)) => Ok(Fallback::Unknown(id)),
        (256, None) => Err(VocabularyError::NoFallback),
        (missing, _) => Err(VocabularyError::Bytes(missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::PieceKind::{Control, Normal, Unknown, Unused, UserDefined};
    use super::*;

    fn vocabulary(pieces: &[(&'static str, f32, PieceKind)]) -> SentencePiece {
        let pieces: Vec<Piece<'_>> = pieces
            .iter()
            .map(|&(text, score, kind)| Piece { text, score, kind })
            .collect();
        SentencePiece::new(&pieces).expect("a vocabulary")
    }

    #[test]
    fn merges_go_by_score_then_from_left_to_right() {
        let vocabulary = vocabulary(&[
            ("<unk>", 0.0, Unknown),
            ("a", 0.0, Normal),
            ("b", 0.0, Normal),
            ("aa", -1.0, Normal),
            ("ab", -1.0, Normal),
            ("bb", -0.5, Normal),
        ]);
        for (text, expect) in [
            ("aaa", &[3, 1][..]),
            ("aab", &[3, 2]),
            ("bab", &[2, 4]),
            ("abb", &[1, 5]),
            ("", &[]),
        ] {
            assert_eq!(vocabulary.encode(text), expect, "{text}");
        }
    }

    #[test]
    fn a_piece_may_hold_characters_that_are_none() {
        let vocabulary = vocabulary(&[
            ("<unk>", 0.0, Unknown),
            ("x", 0.0, Normal),
            ("éx", -1.0, Normal),
        ]);
        assert_eq!(vocabulary.encode("éxéé"), [2, 0]);
    }

    #[test]
    fn user_defined_tokens_match_first_and_never_merge() {
        let vocabulary = vocabulary(&[
            ("<unk>", 0.0, Unknown),
            ("<c>", 0.0, Control),
            ("\n", 0.0, UserDefined),
            ("\n\n", 0.0, UserDefined),
            ("  ", 0.0, UserDefined),
            ("▁", 0.0, Normal),
            ("▁▁▁", 0.0, Normal),
        ]);
        assert_eq!(vocabulary.encode("\n\n\n"), [3, 2]);
        assert_eq!(vocabulary.encode("▁▁▁"), [4, 5]);
        assert_eq!(vocabulary.encode("<c>"), [0]);
    }

    #[test]
    fn an_unused_piece_is_a_step_but_no_result() {
        let vocabulary = vocabulary(&[
            ("<unk>", 0.0, Unknown),
            ("a", 0.0, Normal),
            ("b", 0.0, Normal),
            ("ab", -1.0, Unused),
            ("aba", -2.0, Normal),
        ]);
        assert_eq!(vocabulary.encode("ab"), [1, 2]);
        assert_eq!(vocabulary.encode("aba"), [4]);
        assert_eq!(vocabulary.encode("abab"), [1, 2, 1, 2]);
    }

    #[test]
    fn a_vocabulary_that_cannot_write_every_text_is_refused() {
        let refused = |pieces: &[Piece<'_>]| {
            let error = SentencePiece::new(pieces).err();
            error.map(|e| e.to_string()).unwrap_or_default()
        };
        let piece = |kind, score| Piece {
            text: "a",
            score,
            kind,
        };
        assert!(refused(&[piece(Normal, 0.0)]).contains("unknown token"));
        assert!(refused(&[piece(PieceKind::Byte(3), 0.0)]).contains("255 of the 256"));
        assert!(refused(&[piece(Normal, f32::NAN)]).contains("token 0"));
    }
}
