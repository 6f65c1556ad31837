//! Words and short phrases of texts, and which of them cover one set of texts and touch no other.

use std::collections::{HashMap, HashSet};

/// Most words of a phrase.
const LONGEST: usize = 4;
/// Words that say nothing about a rule by themselves.
const STOPWORDS: &str = "a about after all also am an and any are as at be because been before but by can \
    could did do does for from get had has have he her here him his how i if in into is it its just like \
    made make many may me might more most much must my no not of on one only or other our out over own \
    please same she should so some such than that the their them then there these they this those to too \
    two up us use very want was we were what when where which who why will with would yes you your";

/// A phrase that occurs in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gram {
    /// As it stands in the text, with single spaces.
    pub(super) text: String,
    /// Number of words.
    pub(super) words: usize,
    /// Whether it begins with a capital although no sentence begins there.
    pub(super) is_name: bool,
}

impl Gram {
    /// Whether it ends with a word that says something, and begins with one or with a denial.
    pub(super) fn is_framed(&self) -> bool {
        let lower = self.text.to_lowercase();
        let (first, last) = (lower.split(' ').next(), lower.rsplit(' ').next());
        let denies = |word: &str| ["not", "no", "never", "cannot", "can't"].contains(&word);
        first.is_some_and(|word| denies(word) || !is_stopword(word))
            && last.is_some_and(|word| !is_stopword(word))
    }
}

pub(super) fn is_stopword(word: &str) -> bool {
    STOPWORDS.split_whitespace().any(|stop| stop == word)
}

/// A word with what stands around it.
struct Word<'a> {
    core: &'a str,
    /// Nothing but white space lies between it and the word before.
    follows: bool,
    /// A sentence begins with it.
    begins: bool,
}

fn words(text: &str) -> Vec<Word<'_>> {
    let mut out = Vec::new();
    let (mut follows, mut begins) = (false, true);
    for token in text.split_whitespace() {
        let core = token.trim_matches(|c: char| !c.is_alphanumeric());
        if core.is_empty() {
            follows = false;
            continue;
        }
        let at = token.find(core).unwrap_or(0);
        let (before, after) = (&token[..at], &token[at + core.len()..]);
        out.push(Word {
            core,
            follows: follows && before.is_empty(),
            begins: begins || before.contains(['"', '“', '(']),
        });
        follows = after.is_empty();
        begins = after.contains(['.', '!', '?', ':']);
    }
    out
}

/// Whether a word's form is a name's, rather than that of a word that begins a sentence.
fn is_name(word: &Word<'_>) -> bool {
    let capital = word.core.chars().next().is_some_and(char::is_uppercase);
    let own = word.core.len() > 1 && !is_stopword(&word.core.to_lowercase());
    capital && !word.begins && own
}

/// Every phrase of a text that says something, each once.
pub(super) fn grams(text: &str) -> Vec<Gram> {
    let words = words(text);
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for start in 0..words.len() {
        for count in 1..=LONGEST.min(words.len() - start) {
            let part = &words[start..start + count];
            if count > 1 && !part[count - 1].follows {
                break;
            }
            let lower: Vec<String> = part.iter().map(|w| w.core.to_lowercase()).collect();
            let is_content =
                |word: &String| !is_stopword(word) && word.chars().any(char::is_alphabetic);
            if !lower.iter().any(is_content) || !seen.insert(lower.join(" ")) {
                continue;
            }
            out.push(Gram {
                text: part.iter().map(|w| w.core).collect::<Vec<_>>().join(" "),
                words: count,
                is_name: part.iter().all(is_name),
            });
        }
    }
    out
}

/// Names in a text, and what stands in quotation marks.
pub(super) fn names(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let quotes = [('"', '"'), ('“', '”'), ('`', '`')];
    for (open, close) in quotes {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once(open) {
            let Some((quoted, behind)) = after.split_once(close) else {
                break;
            };
            out.push(quoted.trim().to_owned());
            rest = behind;
        }
    }
    let grams = grams(text);
    let whole: Vec<&Gram> = grams.iter().filter(|gram| gram.is_name).collect();
    // The longest form of a name, not its parts.
    let part = |gram: &Gram| {
        let longer = |other: &&Gram| {
            other.words > gram.words
                && format!(" {} ", other.text).contains(&format!(" {} ", gram.text))
        };
        whole.iter().any(longer)
    };
    out.extend(
        whole
            .iter()
            .filter(|gram| !part(gram))
            .map(|gram| gram.text.clone()),
    );
    let mut seen = HashSet::new();
    out.retain(|name| !name.is_empty() && seen.insert(name.to_lowercase()));
    out
}

/// Lower-case words of a text that say something.
pub(super) fn content(text: &str) -> HashSet<String> {
    let words = words(text).into_iter().map(|word| word.core.to_lowercase());
    words
        .filter(|word| word.len() > 2 && !is_stopword(word))
        .collect()
}

/// Phrases by their lower-case form, with the texts that have them.
pub(super) fn places(texts: &[&str]) -> HashMap<String, (Gram, Vec<usize>)> {
    let mut out: HashMap<String, (Gram, Vec<usize>)> = HashMap::new();
    for (index, text) in texts.iter().enumerate() {
        for gram in grams(text) {
            let key = gram.text.to_lowercase();
            let entry = out.entry(key).or_insert_with(|| (gram.clone(), Vec::new()));
            // A word that begins a sentence somewhere may be a name elsewhere.
            entry.0.is_name |= gram.is_name;
            entry.1.push(index);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_end_where_a_sentence_or_a_clause_does() {
        let all: Vec<String> = grams("Ask a doctor, who knows.")
            .into_iter()
            .map(|g| g.text)
            .collect();
        assert!(all.contains(&"Ask a doctor".to_owned()), "{all:?}");
        assert!(all.contains(&"who knows".to_owned()), "{all:?}");
        assert!(!all.iter().any(|g| g.contains("doctor who")), "{all:?}");
        assert!(!all.contains(&"a".to_owned()));
    }

    #[test]
    fn names_are_whole_and_begin_no_sentence() {
        assert_eq!(
            names("Never mention Globex Corporation or \"acme\". Always say our name."),
            ["acme", "Globex Corporation"]
        );
        assert!(names("Answers are short. They are polite.").is_empty());
    }
}
