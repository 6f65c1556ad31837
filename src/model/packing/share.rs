//! What the prompts of a batch begin with, and how many examples fit into one.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Example;

/// Fewer tokens than this are not shared: more and shorter parts cost attention time.
const SHARED: usize = 8;

/// What an example may share with others: its prompt's first turn, such as a template's system
/// prompt. The next turn begins with the token that the first began with, behind a token that
/// begins the text in some families.
///
/// It depends on the prompt alone. Attention sums part by part, so an example's values would
/// otherwise depend on what else lies in its batch, and a run that is resumed would end elsewhere.
pub(super) fn beginning(example: &Example) -> &[u32] {
    let prompt = &example.prompt;
    let next_turn = |begin: &u32| {
        let next = prompt.iter().skip(SHARED).position(|token| token == begin);
        next.map(|at| SHARED + at)
    };
    let turn = prompt.iter().take(2).find_map(next_turn).unwrap_or(0);
    &prompt[..turn]
}

/// Examples whose prompts begin with the same turn, ascending; one that shares nothing is alone.
pub(super) fn groups(examples: &[&Example]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut by_beginning = HashMap::new();
    for (i, example) in examples.iter().enumerate() {
        let beginning = beginning(example);
        let next = groups.len();
        let group = match beginning.is_empty() {
            true => next,
            false => *by_beginning.entry(beginning).or_insert(next),
        };
        if group == next {
            groups.push(Vec::new());
        }
        groups[group].push(i);
    }
    groups
}

/// Splits examples, in order, into groups of at most `budget` rows (at least one example each), so
/// that memory is bounded up front. What they share counts once.
pub fn group_by_rows(examples: &[Example], budget: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut rows, mut known) = (0, 0, HashSet::new());
    for (i, example) in examples.iter().enumerate() {
        let beginning = beginning(example);
        let further = match known.contains(beginning) {
            true => example.rows() - beginning.len(),
            false => example.rows(),
        };
        if i > start && rows + further > budget {
            groups.push(start..i);
            (start, rows, known) = (i, example.rows(), HashSet::new());
        } else {
            rows += further;
        }
        known.insert(beginning);
    }
    if start < examples.len() {
        groups.push(start..examples.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::Packed;
    use super::*;

    /// A prompt of a system turn and a question; turns begin with 1.
    fn example(system: u32, own: &[u32]) -> Example {
        let turn = [1].into_iter().chain((0..10).map(|i| 100 * system + i));
        let question = [1].into_iter().chain(own.iter().copied());
        Example::new(turn.chain(question).collect(), vec![vec![9, 2]])
    }

    #[test]
    fn a_first_turn_is_shared_if_it_is_long_enough() {
        assert_eq!(beginning(&example(3, &[7, 1, 8])).len(), 11);
        let plain = |prompt: Vec<u32>| Example::new(prompt, vec![vec![9, 2]]);
        let with_bos = plain([5].into_iter().chain(example(3, &[7]).prompt).collect());
        assert_eq!(beginning(&with_bos).len(), 12);
        assert!(beginning(&plain(vec![1, 6, 2, 1, 7, 7, 7, 7, 7])).is_empty());
        assert!(beginning(&plain(vec![1])).is_empty());
        let other = plain((10..30).collect());
        assert!(beginning(&other).is_empty());
        let all = [
            example(4, &[7]),
            other.clone(),
            example(3, &[7]),
            example(4, &[8]),
            other,
        ];
        assert_eq!(
            groups(&all.iter().collect::<Vec<_>>()),
            [vec![0, 3], vec![1], vec![2], vec![4]]
        );
    }

    #[test]
    fn groups_respect_the_budget_but_never_lose_an_example() {
        let plain = |n: u32| Example::new((0..n).collect(), vec![vec![2]]);
        let examples: Vec<Example> = [3, 3, 9, 1, 1].into_iter().map(plain).collect();
        assert_eq!(group_by_rows(&examples, 6), [0..2, 2..3, 3..5]);
        assert_eq!(group_by_rows(&[], 6), Vec::<Range<usize>>::new());
        // Rows that stand once count once: 11 + 3 · 3, and not 3 · 14.
        let alike: Vec<Example> = (0..5).map(|i| example(4, &[20 + i])).collect();
        assert_eq!(group_by_rows(&alike, 20), [0..3, 3..5]);
        assert_eq!(Packed::new(&alike[..3]).token_count(), 20);
    }
}
