//! A text as a sparse vector: word unigrams and bigrams and character n-grams, hashed into buckets
//! and weighted by inverse document frequency.
//!
//! Hidden states show what a text is about; whether it declines, hedges or insults often depends on
//! a few words that a mean over all tokens hides.

use serde::{Deserialize, Serialize};

/// Buckets of each family (words, characters). Collisions have no measurable effect from a quarter
/// of this on.
const BUCKETS: usize = 1 << 14;
/// Characters that are read; the rest of a longer text is ignored.
const CHARACTERS: usize = 6000;
/// Lengths of character n-grams.
const NGRAM_LENGTHS: std::ops::RangeInclusive<usize> = 3..=4;

/// Dimensions of a vector: the buckets of both families.
pub(crate) const WIDTH: usize = 2 * BUCKETS;

/// Non-zero buckets, ascending, with their values.
pub(crate) type SparseVector = Vec<(u32, f32)>;

/// The weight of each bucket: rare n-grams weigh more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vocabulary {
    /// Inverse document frequency, ln((1 + texts) / (1 + texts with it)) + 1; (families, buckets).
    #[serde(with = "super::bits::floats")]
    rarity: Vec<f32>,
}

impl Vocabulary {
    /// Computes the weights from the number of texts in which each bucket occurs.
    pub(crate) fn fit<'a>(texts: impl Iterator<Item = &'a str>) -> Vocabulary {
        let mut frequency = vec![0u32; WIDTH];
        let mut total = 0u32;
        for text in texts {
            total += 1;
            for (bucket, _) in counts(text) {
                frequency[bucket as usize] += 1;
            }
        }
        let rarity = frequency
            .into_iter()
            .map(|n| ((1.0 + total as f32) / (1.0 + n as f32)).ln() + 1.0);
        Vocabulary {
            rarity: rarity.collect(),
        }
    }

    /// The text's vector. Each family has length 1/√2, so that together they have length 1.
    pub(crate) fn vector(&self, text: &str) -> SparseVector {
        let mut out = counts(text);
        for (bucket, value) in &mut out {
            let rarity = self.rarity.get(*bucket as usize).copied().unwrap_or(0.0);
            *value = (1.0 + value.ln()) * rarity;
        }
        let first_ngram = out.partition_point(|(bucket, _)| (*bucket as usize) < BUCKETS);
        let (words, ngrams) = out.split_at_mut(first_ngram);
        for family in [words, ngrams] {
            let square: f32 = family.iter().map(|(_, v)| v * v).sum();
            let scale = (2.0 * square).sqrt().max(1e-12).recip();
            family.iter_mut().for_each(|(_, v)| *v *= scale);
        }
        out
    }
}

/// How often each bucket occurs, ascending by bucket.
fn counts(text: &str) -> SparseVector {
    let text: String = text
        .chars()
        .take(CHARACTERS)
        .flat_map(char::to_lowercase)
        .collect();
    let mut buckets = Vec::new();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    for (index, word) in words.iter().enumerate() {
        buckets.push(bucket(0, &[word]));
        if let Some(next) = words.get(index + 1) {
            buckets.push(bucket(0, &[word, next]));
        }
    }
    for word in text.split_whitespace() {
        let padded = format!(" {word} ");
        let mut starts: Vec<usize> = padded.char_indices().map(|(at, _)| at).collect();
        starts.push(padded.len());
        for length in NGRAM_LENGTHS {
            for window in starts.windows(length + 1) {
                buckets.push(bucket(1, &[&padded[window[0]..window[length]]]));
            }
        }
    }
    buckets.sort_unstable();
    let mut out: SparseVector = Vec::new();
    for bucket in buckets {
        match out.last_mut() {
            Some((last, count)) if *last == bucket => *count += 1.0,
            _ => out.push((bucket, 1.0)),
        }
    }
    out
}

/// FNV-1a over the parts, reduced to the family's buckets.
fn bucket(family: usize, parts: &[&str]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        // 0xff occurs in no UTF-8 text, so it separates the parts.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let folded = (hash ^ (hash >> 32)) as usize % BUCKETS;
    (family * BUCKETS + folded) as u32
}

/// Σ value · weights[bucket].
pub(crate) fn dot(row: &[(u32, f32)], weights: &[f32]) -> f32 {
    let known = row
        .iter()
        .filter_map(|(bucket, v)| Some(v * weights.get(*bucket as usize)?));
    known.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(vocabulary: &Vocabulary, a: &str, b: &str) -> f32 {
        let mut dense = vec![0.0; WIDTH];
        for (bucket, value) in vocabulary.vector(a) {
            dense[bucket as usize] = value;
        }
        dot(&vocabulary.vector(b), &dense)
    }

    #[test]
    fn alike_texts_are_near_and_rare_words_count_more() {
        let texts = ["the cat sleeps", "the dog sleeps", "the bird sings"];
        let known = Vocabulary::fit(texts.into_iter());
        let near = |a, b| similarity(&known, a, b);
        assert!((near("the cat sleeps", "The CAT sleeps") - 1.0).abs() < 1e-5);
        assert!(near("the cat sleeps", "a cat sleeps") > near("the cat sleeps", "the bird sings"));
        // Both share one word with the first; "the" is in every text.
        assert!(near("the cat", "one cat") > near("the cat", "the one"));
        assert!(near("cat", "xylophone") < 0.05);
    }

    #[test]
    fn any_text_has_a_vector_of_bounded_length() {
        let known = Vocabulary::fit(["a b", "ünï çødé 漢字"].into_iter());
        for text in ["", " ", "!?", "漢字", "a\u{301}", &"word ".repeat(9000)] {
            let row = known.vector(text);
            let square: f32 = row.iter().map(|(_, v)| v * v).sum();
            assert!(square < 1.001 && square.is_finite(), "{text:.9}: {square}");
            assert!(row.windows(2).all(|w| w[0].0 < w[1].0));
        }
        assert!(known.vector("").is_empty());
        // Punctuation is not a word, but has character n-grams.
        assert!(
            known
                .vector("!?")
                .iter()
                .all(|(p, _)| *p as usize >= BUCKETS)
        );
    }
}
