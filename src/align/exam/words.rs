//! How close prompts are in their words: TF-IDF over words and pairs of words. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Weights of words in a collection of prompts.
#[derive(Debug)]
pub(crate) struct Words {
    frequency: HashMap<String, usize>,
    prompts: usize,
}

/// A prompt's words with their weights; of length 1.
#[derive(Debug)]
pub(crate) struct Weighed(BTreeMap<String, f64>);

impl Words {
    /// Counts in how many of the prompts each word occurs.
    pub(crate) fn new<'a>(prompts: impl IntoIterator<Item = &'a str>) -> Words {
        let mut words = Words {
            frequency: HashMap::new(),
            prompts: 0,
        };
        for prompt in prompts {
            words.prompts += 1;
            let unique: HashSet<String> = terms(prompt).into_iter().collect();
            for term in unique {
                *words.frequency.entry(term).or_default() += 1;
            }
        }
        words
    }

    /// A prompt's weights.
    pub(crate) fn weigh(&self, prompt: &str) -> Weighed {
        // In an order of their own: a sum must not depend on the order of a hash table.
        let mut weights: BTreeMap<String, f64> = BTreeMap::new();
        for term in terms(prompt) {
            let seen = self.frequency.get(&term).copied().unwrap_or(0);
            let rare = ((self.prompts + 1) as f64 / (seen + 1) as f64).ln() + 1.0;
            *weights.entry(term).or_default() += rare;
        }
        let norm = weights.values().map(|w| w * w).sum::<f64>().sqrt();
        weights.values_mut().for_each(|w| *w /= norm.max(1e-12));
        Weighed(weights)
    }
}

impl Weighed {
    /// Cosine of two prompts, 0 to 1.
    pub(crate) fn cosine(&self, other: &Weighed) -> f64 {
        let terms = self.0.iter();
        terms
            .map(|(term, weight)| weight * other.0.get(term).unwrap_or(&0.0))
            .sum()
    }

    /// The cosine with the closest of several prompts; 0 without any.
    pub(crate) fn closest(&self, others: &[Weighed]) -> f64 {
        let cosines = others.iter().map(|other| self.cosine(other));
        cosines.fold(0.0, f64::max)
    }
}

/// Lower-case words, and pairs of neighbouring words. A character of a script without spaces is a
/// word.
fn terms(prompt: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for c in prompt.chars() {
        if !c.is_alphanumeric() {
            open = false;
        } else if c as u32 >= 0x2e80 {
            words.push(c.to_string());
            open = false;
        } else if let Some(last) = words.last_mut().filter(|_| open) {
            last.extend(c.to_lowercase());
        } else {
            words.push(c.to_lowercase().collect());
            open = true;
        }
    }
    let pairs: Vec<String> = words.windows(2).map(|w| w.join(" ")).collect();
    words.extend(pairs);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_prompt_shares_rare_words() {
        let prompts = [
            "How many socks should I take on a trip?",
            "How many tablets should I take?",
            "Write a poem about rain.",
        ];
        let words = Words::new(prompts);
        let [socks, tablets, poem] = prompts.map(|p| words.weigh(p));
        assert!(socks.cosine(&tablets) > socks.cosine(&poem));
        assert!((socks.cosine(&socks) - 1.0).abs() < 1e-9);
        assert_eq!(socks.closest(&[]), 0.0);
        assert_eq!(
            terms("水 很冷, Hi"),
            ["水", "很", "冷", "hi", "水 很", "很 冷", "冷 hi"]
        );
    }
}
