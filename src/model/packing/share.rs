//! What the examples of a batch have in common, and how many fit into one.

use std::ops::Range;

use super::Example;

/// Examples whose prompts begin with the same tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Tokens that all share, laid out once.
    pub(super) prefix: usize,
    /// The examples, ascending.
    pub(super) members: Vec<usize>,
}

/// Fewer common tokens than this are not shared: more and shorter parts cost attention time.
const SHARED: usize = 8;

/// Groups examples by what their prompts begin with, so that as few rows as possible are left.
pub(super) fn share(examples: &[&Example]) -> Vec<Group> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|i| (&examples[*i].prompt, *i));
    let prompt = |at: usize| &examples[order[at]].prompt;
    // For the first n examples in the order of their prompts: the rows that sharing saves at
    // most, and the last group that saves them: where it begins, and what it shares.
    let mut best = vec![(0, 0, 0)];
    for end in 0..order.len() {
        let mut prefix = prompt(end).len();
        let mut found = (best[end].0, end, prefix);
        for begin in (0..end).rev() {
            prefix = prefix.min(common(prompt(begin), prompt(begin + 1)));
            if prefix < SHARED {
                break;
            }
            let saved = best[begin].0 + prefix * (end - begin);
            if saved > found.0 {
                found = (saved, begin, prefix);
            }
        }
        best.push(found);
    }
    let mut groups = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let (_, begin, prefix) = best[end];
        let mut members = order[begin..end].to_vec();
        members.sort_unstable();
        groups.push(Group { prefix, members });
        end = begin;
    }
    groups.sort_by_key(|g| g.members[0]);
    groups
}

/// How many tokens two prompts have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Splits examples, in order, into groups of at most `budget` rows (at least one example each), so
/// that memory is bounded up front.
pub fn group_by_rows(examples: &[Example], budget: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    for i in 0..examples.len() {
        if i > start && !fits(&examples[start..=i], budget) {
            groups.push(start..i);
            start = i;
        }
    }
    if start < examples.len() {
        groups.push(start..examples.len());
    }
    groups
}

/// Whether examples take at most `budget` rows together.
fn fits(examples: &[Example], budget: usize) -> bool {
    let apart: usize = examples.iter().map(Example::rows).sum();
    let saved = || {
        let groups = share(&examples.iter().collect::<Vec<_>>());
        let saved = groups.iter().map(|g| g.prefix * (g.members.len() - 1));
        saved.sum::<usize>()
    };
    apart <= budget || apart - saved() <= budget
}

#[cfg(test)]
mod tests {
    use super::super::Packed;
    use super::*;

    #[test]
    fn what_is_shared_leaves_as_few_rows_as_possible() {
        let example = |prompt: &str| {
            let tokens = prompt.chars().map(u32::from).collect();
            Example::new(tokens, vec![vec![2]])
        };
        let groups = |prompts: &[&str]| -> Vec<(usize, Vec<usize>)> {
            let examples: Vec<Example> = prompts.iter().map(|p| example(p)).collect();
            let groups = share(&examples.iter().collect::<Vec<_>>());
            groups.into_iter().map(|g| (g.prefix, g.members)).collect()
        };
        // Nine letters of two against twelve of three.
        let two_kinds = [
            "abcdefghi-1",
            "abcdefghijkl-2",
            "abcdefghijkl-3",
            "abcdefghijkl-4",
        ];
        assert_eq!(groups(&two_kinds), [(9, vec![0, 1, 2, 3])]);
        let long = "a system prompt of some length: ";
        let (one, two) = (format!("{long}1"), format!("{long}2"));
        assert_eq!(
            groups(&["a system", &one, "a system prompt?", &two]),
            [(8, vec![0]), (long.len(), vec![1, 3]), (16, vec![2])]
        );
        assert_eq!(groups(&["short", "short"]), [(5, vec![0]), (5, vec![1])]);
        assert_eq!(groups(&[]), []);
    }

    #[test]
    fn groups_respect_the_budget_but_never_lose_an_example() {
        let example = |n: usize| Example::new(vec![1; n], vec![vec![2]]);
        let examples: Vec<Example> = [3, 3, 9, 1, 1].into_iter().map(example).collect();
        assert_eq!(group_by_rows(&examples, 6), [0..2, 2..3, 3..5]);
        assert_eq!(group_by_rows(&[], 6), Vec::<Range<usize>>::new());
        // Rows that stand once count once: 12 + 3 · 1, and not 3 · 13.
        let alike: Vec<Example> = (0..4)
            .map(|i| Example::new((0..12).chain([20 + i]).collect(), vec![vec![2]]))
            .collect();
        assert_eq!(group_by_rows(&alike, 15), [0..3, 3..4]);
        assert_eq!(Packed::new(&alike[..3]).token_count(), 15);
    }
}
