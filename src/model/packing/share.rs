//! What the prompts of a batch begin with, and how many examples fit into one.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Example;

/// Fewer tokens than this are not shared: more and shorter parts cost attention time.
const SHARED: usize = 8;

/// What an example may share with others: its prompt's first turn, such as a template's system
/// prompt, if that ends as its responses do.
///
/// It depends on the example alone. Attention sums part by part, so an example's values would
/// otherwise depend on what else lies in its batch, and a run that is resumed would end elsewhere.
pub(super) fn beginning(example: &Example) -> &[u32] {
    let prompt = &example.prompt;
    let ending = example.responses.first().and_then(|r| r.last());
    let turn = ending.and_then(|ending| prompt.iter().position(|token| token == ending));
    match turn {
        Some(last) if last + 1 >= SHARED => &prompt[..=last],
        _ => &[],
    }
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

    /// A prompt of a system turn, which ends with 2 as the response does, and a question.
    fn example(system: u32, own: &[u32]) -> Example {
        let turn = (0..10).map(|i| 100 * system + i).chain([2]);
        Example::new(turn.chain(own.iter().copied()).collect(), vec![vec![9, 2]])
    }

    #[test]
    fn a_first_turn_is_shared_if_it_is_long_enough_and_ends_as_a_response() {
        assert_eq!(beginning(&example(1, &[7, 2, 8])).len(), 11);
        let short = Example::new(vec![5, 6, 2, 7, 7, 7, 7, 7, 7], vec![vec![9, 2]]);
        assert!(beginning(&short).is_empty());
        let other = Example::new((10..30).collect(), vec![vec![9, 2]]);
        assert!(beginning(&other).is_empty());
        assert!(beginning(&Example::new((0..9).collect(), vec![])).is_empty());
        let all = [
            example(1, &[7]),
            other.clone(),
            example(3, &[7]),
            example(1, &[8]),
            other,
        ];
        assert_eq!(
            groups(&all.iter().collect::<Vec<_>>()),
            [vec![0, 3], vec![1], vec![2], vec![4]]
        );
    }

    #[test]
    fn groups_respect_the_budget_but_never_lose_an_example() {
        let plain = |n: usize| Example::new(vec![1; n], vec![vec![2]]);
        let examples: Vec<Example> = [3, 3, 9, 1, 1].into_iter().map(plain).collect();
        assert_eq!(group_by_rows(&examples, 6), [0..2, 2..3, 3..5]);
        assert_eq!(group_by_rows(&[], 6), Vec::<Range<usize>>::new());
        // Rows that stand once count once: 11 + 3 · 2, and not 3 · 13.
        let alike: Vec<Example> = (0..5).map(|i| example(1, &[20 + i])).collect();
        assert_eq!(group_by_rows(&alike, 17), [0..3, 3..5]);
        assert_eq!(Packed::new(&alike[..3]).token_count(), 17);
    }
}
