//! A text as a sparse vector: words, pairs of words and pieces of words, hashed and weighted.
//!
//! Hidden states say what a text is about; whether it declines, hedges or insults often shows in a
//! few words that a mean over all tokens hides.

use serde::{Deserialize, Serialize};

/// Places of each family's vector. Collisions cost nothing measurable from a quarter of this on.
const PLACES: usize = 1 << 14;
/// Characters that are read; what a response is shows long before.
const CHARACTERS: usize = 6000;
/// Lengths of the pieces of words, in characters.
const PIECES: std::ops::RangeInclusive<usize> = 3..=4;

/// Elements of a vector.
pub const WIDTH: usize = 2 * PLACES;

/// Places that are not zero, ascending, with their values.
pub type Sparse = Vec<(u32, f32)>;

/// How much each place counts: rarer n-grams more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// ln((1 + texts) / (1 + texts with it)) + 1, (families, places).
    #[serde(with = "super::bits::floats")]
    rarity: Vec<f32>,
}

impl Vocabulary {
    /// Counts in how many of the texts each place occurs.
    pub fn fit<'a>(texts: impl Iterator<Item = &'a str>) -> Vocabulary {
        let mut with = vec![0u32; WIDTH];
        let mut all = 0u32;
        for text in texts {
            all += 1;
            for (place, _) in counts(text) {
                with[place as usize] += 1;
            }
        }
        let rarity = with
            .into_iter()
            .map(|n| ((1.0 + all as f32) / (1.0 + n as f32)).ln() + 1.0);
        Vocabulary {
            rarity: rarity.collect(),
        }
    }

    /// The text's vector. Each family has length 1/√2, so that together they have length 1.
    pub fn vector(&self, text: &str) -> Sparse {
        let mut out = counts(text);
        for (place, value) in &mut out {
            let rarity = self.rarity.get(*place as usize).copied().unwrap_or(0.0);
            *value = (1.0 + value.ln()) * rarity;
        }
        let border = out.partition_point(|(place, _)| (*place as usize) < PLACES);
        let (words, pieces) = out.split_at_mut(border);
        for family in [words, pieces] {
            let square: f32 = family.iter().map(|(_, v)| v * v).sum();
            let scale = (2.0 * square).sqrt().max(1e-12).recip();
            family.iter_mut().for_each(|(_, v)| *v *= scale);
        }
        out
    }
}

/// How often each place occurs, ascending by place.
fn counts(text: &str) -> Sparse {
    let text: String = text
        .chars()
        .take(CHARACTERS)
        .flat_map(char::to_lowercase)
        .collect();
    let mut places = Vec::new();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    for (index, word) in words.iter().enumerate() {
        places.push(place(0, &[word]));
        if let Some(next) = words.get(index + 1) {
            places.push(place(0, &[word, next]));
        }
    }
    for word in text.split_whitespace() {
        let padded = format!(" {word} ");
        let mut starts: Vec<usize> = padded.char_indices().map(|(at, _)| at).collect();
        starts.push(padded.len());
        for length in PIECES {
            for window in starts.windows(length + 1) {
                places.push(place(1, &[&padded[window[0]..window[length]]]));
            }
        }
    }
    places.sort_unstable();
    let mut out: Sparse = Vec::new();
    for place in places {
        match out.last_mut() {
            Some((last, count)) if *last == place => *count += 1.0,
            _ => out.push((place, 1.0)),
        }
    }
    out
}

/// FNV-1a over the parts, folded to the family's places.
fn place(family: usize, parts: &[&str]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        // 0xff stands in no UTF-8 text, so it ends a part.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let folded = (hash ^ (hash >> 32)) as usize % PLACES;
    (family * PLACES + folded) as u32
}

/// Σ value · weights[place].
pub fn dot(row: &[(u32, f32)], weights: &[f32]) -> f32 {
    let known = row
        .iter()
        .filter_map(|(place, v)| Some(v * weights.get(*place as usize)?));
    known.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(vocabulary: &Vocabulary, a: &str, b: &str) -> f32 {
        let mut dense = vec![0.0; WIDTH];
        for (place, value) in vocabulary.vector(a) {
            dense[place as usize] = value;
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
        // Punctuation alone is no word, and has pieces.
        assert!(
            known
                .vector("!?")
                .iter()
                .all(|(p, _)| *p as usize >= PLACES)
        );
    }
}
