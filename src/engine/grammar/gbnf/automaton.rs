//! Automata over the terminals of a grammar.

use std::collections::{BTreeSet, HashSet};

use super::Rules;
use super::parse::{Choices, Element, Item};

/// Characters, as ascending ranges that do not overlap.
pub(super) type Set = Vec<(u32, u32)>;

/// By terminal: the characters with which a text that it matches can go on, in it or in another of
/// them. `None` if it takes too much work.
pub(super) fn extensions(
    rules: &Rules<'_>,
    terminals: &[&[Element]],
    budget: &mut usize,
) -> Option<Vec<Set>> {
    let mut automaton = Automaton {
        rules,
        classes: Vec::new(),
        next: Vec::new(),
        budget,
    };
    let (mut first, mut ends) = (BTreeSet::new(), Vec::new());
    for (i, terminal) in terminals.iter().enumerate() {
        let part = automaton.elements(terminal)?;
        first.extend(part.first);
        ends.resize(automaton.classes.len(), None);
        part.last.into_iter().for_each(|at| ends[at] = Some(i));
    }
    let atoms = automaton.atoms();
    let mut extensions = vec![Set::new(); terminals.len()];
    let mut known = HashSet::new();
    // The positions that may come next, and the terminals that are complete.
    let mut open: Vec<(BTreeSet<usize>, BTreeSet<usize>)> = vec![(first, BTreeSet::new())];
    while let Some((targets, complete)) = open.pop() {
        automaton.spend(targets.len() * atoms.len())?;
        for atom in &atoms {
            let takes = |at: &usize| overlap(&automaton.classes[*at], &[*atom]);
            let reached: Vec<usize> = targets.iter().copied().filter(takes).collect();
            if reached.is_empty() {
                continue;
            }
            for terminal in &complete {
                extensions[*terminal] = union(&extensions[*terminal], &[*atom]);
            }
            if known.insert(reached.clone()) {
                automaton.spend(reached.iter().map(|at| automaton.next[*at].len()).sum())?;
                let next = reached.iter().flat_map(|at| &automaton.next[*at]).copied();
                let complete = reached.iter().filter_map(|at| ends[*at]);
                open.push((next.collect(), complete.collect()));
            }
        }
    }
    Some(extensions)
}

/// A regular expression by its characters' positions (Glushkov's construction).
struct Automaton<'a> {
    rules: &'a Rules<'a>,
    /// By position: the characters there.
    classes: Vec<Set>,
    /// By position: the positions that may come next.
    next: Vec<BTreeSet<usize>>,
    budget: &'a mut usize,
}

/// A part of the expression.
#[derive(Clone)]
struct Part {
    empty: bool,
    first: Vec<usize>,
    last: Vec<usize>,
}

impl Automaton<'_> {
    const NOTHING: Part = Part {
        empty: true,
        first: Vec::new(),
        last: Vec::new(),
    };

    fn spend(&mut self, work: usize) -> Option<()> {
        *self.budget = self.budget.checked_sub(work)?;
        Some(())
    }

    fn character(&mut self, class: Set) -> Option<Part> {
        self.spend(1)?;
        let at = self.classes.len();
        self.classes.push(class);
        self.next.push(BTreeSet::new());
        Some(Part {
            empty: false,
            first: vec![at],
            last: vec![at],
        })
    }

    fn elements(&mut self, elements: &[Element]) -> Option<Part> {
        let mut whole = Self::NOTHING;
        for element in elements {
            for _ in 0..element.min() {
                let part = self.item(&element.item)?;
                whole = self.then(whole, part)?;
            }
            match element.max() {
                None => {
                    let mut part = self.item(&element.item)?;
                    self.link(&part.last, &part.first)?;
                    part.empty = true;
                    whole = self.then(whole, part)?;
                }
                Some(max) => {
                    for _ in element.min()..max {
                        let mut part = self.item(&element.item)?;
                        part.empty = true;
                        whole = self.then(whole, part)?;
                    }
                }
            }
        }
        Some(whole)
    }

    fn item(&mut self, item: &Item) -> Option<Part> {
        match item {
            Item::Text(text) => {
                let mut whole = Self::NOTHING;
                for character in text.chars() {
                    let part = self.character(vec![one(character)])?;
                    whole = self.then(whole, part)?;
                }
                Some(whole)
            }
            Item::Class(class) => self.character(class.set()),
            Item::Rule(name) => {
                let rules = self.rules;
                self.choices(&rules.all[rules.index(name)].choices)
            }
            Item::Group(choices) => self.choices(choices),
        }
    }

    fn choices(&mut self, choices: &Choices) -> Option<Part> {
        let mut all = Part {
            empty: false,
            ..Self::NOTHING
        };
        for sequence in choices {
            let part = self.elements(sequence)?;
            all.empty |= part.empty;
            all.first.extend(part.first);
            all.last.extend(part.last);
        }
        Some(all)
    }

    fn then(&mut self, before: Part, after: Part) -> Option<Part> {
        self.link(&before.last, &after.first)?;
        let mut both = Part {
            empty: before.empty && after.empty,
            first: before.first,
            last: after.last,
        };
        if before.empty {
            both.first.extend(after.first);
        }
        if after.empty {
            both.last.extend(before.last);
        }
        Some(both)
    }

    fn link(&mut self, from: &[usize], to: &[usize]) -> Option<()> {
        self.spend(from.len() * to.len())?;
        for at in from {
            self.next[*at].extend(to);
        }
        Some(())
    }

    /// Ranges of characters that no class tells apart.
    fn atoms(&self) -> Set {
        let ranges = self.classes.iter().flatten();
        let bounds: BTreeSet<u32> = ranges.flat_map(|(low, high)| [*low, high + 1]).collect();
        let bounds: Vec<u32> = bounds.into_iter().collect();
        bounds
            .windows(2)
            .map(|pair| (pair[0], pair[1] - 1))
            .collect()
    }
}

/// A range of one character.
pub(super) fn one(character: char) -> (u32, u32) {
    (character.into(), character.into())
}

/// The characters of both.
pub(super) fn union(a: &[(u32, u32)], b: &[(u32, u32)]) -> Set {
    let mut all: Set = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    let mut merged: Set = Vec::with_capacity(all.len());
    for (low, high) in all {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    merged
}

/// Whether both have a character.
pub(super) fn overlap(a: &[(u32, u32)], b: &[(u32, u32)]) -> bool {
    a.iter()
        .any(|(low, high)| b.iter().any(|(l, h)| low <= h && l <= high))
}
