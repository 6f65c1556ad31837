//! Whether the terminals of a grammar end where its rules expect it.
//!
//! A terminal takes as much text as it can. That loses no text of the grammar unless a character
//! that may follow the terminal could also extend it, or another terminal that may stand in its
//! place. This finds such characters.

use std::collections::{BTreeSet, HashMap};

use super::Rules;
use super::automaton::{Set, extensions, one, overlap, union};
use super::parse::{Choices, Element, Item, Sequence};

/// How much work is spent, in visits of elements and positions: tens of milliseconds. A grammar
/// that takes more counts as ambiguous.
const BUDGET: usize = 500_000;

/// Whether a terminal of the rules that are not regular could end too late.
pub(super) fn is_ambiguous(rules: &Rules<'_>) -> bool {
    let mut terminals = Vec::new();
    for choices in irregular(rules) {
        collect(rules, choices, &mut terminals);
    }
    let count = rules.all.len();
    let mut analysis = Analysis {
        rules,
        index: terminals
            .iter()
            .enumerate()
            .map(|(i, t)| (key(t), i))
            .collect(),
        extensions: vec![Set::new(); terminals.len()],
        first: vec![(Set::new(), false); count],
        starts: vec![BTreeSet::new(); count],
        follow: vec![Set::new(); count],
        changed: false,
        found: false,
        budget: BUDGET,
    };
    analysis.finds(&terminals).unwrap_or(true)
}

fn irregular<'a>(rules: &Rules<'a>) -> impl Iterator<Item = &'a Choices> {
    let all = rules.all.iter().zip(&rules.regular);
    let irregular = all.filter(|(_, regular)| !**regular);
    irregular.map(|(rule, _)| &rule.choices)
}

/// The terminals of choices that are not regular.
fn collect<'a>(rules: &Rules<'_>, choices: &'a Choices, terminals: &mut Vec<&'a [Element]>) {
    for part in choices.iter().flat_map(|sequence| parts(rules, sequence)) {
        if rules.is_regular(&part[0]) {
            terminals.push(part);
        } else if let Item::Group(choices) = &part[0].item {
            collect(rules, choices, terminals);
        }
    }
}

/// A sequence as terminals, and single elements that are not regular.
fn parts<'a>(rules: &Rules<'_>, sequence: &'a Sequence) -> Vec<&'a [Element]> {
    let mut parts = Vec::new();
    for stretch in rules.stretches(sequence) {
        if rules.is_regular(&stretch[0]) {
            parts.push(stretch);
        } else {
            parts.extend(stretch.chunks(1));
        }
    }
    parts
}

/// Tells terminals apart, of which two may have the same text.
fn key(terminal: &[Element]) -> usize {
    terminal.as_ptr() as usize
}

struct Analysis<'a> {
    rules: &'a Rules<'a>,
    /// The terminals' numbers by their keys.
    index: HashMap<usize, usize>,
    /// By terminal: the characters that can extend it or one in its place.
    extensions: Vec<Set>,
    /// By rule: the characters that it can begin with, and whether it can be empty.
    first: Vec<(Set, bool)>,
    /// By rule that is not regular: the terminals that it can begin with.
    starts: Vec<BTreeSet<usize>>,
    /// By rule: the characters that can follow it.
    follow: Vec<Set>,
    /// Whether the last pass extended what follows a rule.
    changed: bool,
    /// Whether a terminal was found that what follows it could extend.
    found: bool,
    budget: usize,
}

impl<'a> Analysis<'a> {
    /// The result; `None` if it takes too much work.
    fn finds(&mut self, terminals: &[&[Element]]) -> Option<bool> {
        while self.extend_first()? {}
        while self.extend_starts()? {}
        let mut together: BTreeSet<Vec<usize>> = BTreeSet::new();
        for choices in irregular(self.rules) {
            self.together(choices, &mut together)?;
        }
        for group in together {
            let members: Vec<&[Element]> = group.iter().map(|i| terminals[*i]).collect();
            let found = extensions(self.rules, &members, &mut self.budget)?;
            for (i, set) in group.iter().zip(found) {
                self.extensions[*i] = union(&self.extensions[*i], &set);
            }
        }
        loop {
            self.changed = false;
            for i in 0..self.rules.all.len() {
                if !self.rules.regular[i] {
                    let (rules, after) = (self.rules, self.follow[i].clone());
                    let choices = &rules.all[i].choices;
                    self.follow(choices, &after)?;
                }
            }
            if self.found || !self.changed {
                return Some(self.found);
            }
        }
    }

    fn spend(&mut self, work: usize) -> Option<()> {
        self.budget = self.budget.checked_sub(work)?;
        Some(())
    }

    /// The rules in both orders, so that chains of references are followed in one go.
    fn both_ways(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.rules.all.len();
        (0..count).chain((0..count).rev())
    }

    fn extend_first(&mut self) -> Option<bool> {
        let mut changed = false;
        for i in self.both_ways() {
            let choices = &self.rules.all[i].choices;
            self.spend(choices.iter().map(Vec::len).sum::<usize>() + 1)?;
            let found = self.first_of_choices(choices);
            changed |= found != self.first[i];
            self.first[i] = found;
        }
        Some(changed)
    }

    fn first_of_choices(&self, choices: &Choices) -> (Set, bool) {
        let mut all = (Set::new(), false);
        for sequence in choices {
            let (first, empty) = self.first_of(sequence);
            all = (union(&all.0, &first), all.1 || empty);
        }
        all
    }

    fn first_of(&self, elements: &[Element]) -> (Set, bool) {
        let mut all = Set::new();
        for element in elements {
            let (first, empty) = match &element.item {
                Item::Text(text) => (text.chars().take(1).map(one).collect(), text.is_empty()),
                Item::Class(class) => (class.set(), false),
                Item::Rule(name) => self.first[self.rules.index(name)].clone(),
                Item::Group(choices) => self.first_of_choices(choices),
            };
            if element.max() != Some(0) {
                all = union(&all, &first);
            }
            if !empty && element.min() > 0 {
                return (all, false);
            }
        }
        (all, true)
    }

    fn extend_starts(&mut self) -> Option<bool> {
        let mut changed = false;
        for i in self.both_ways() {
            if !self.rules.regular[i] {
                let choices = &self.rules.all[i].choices;
                self.spend(choices.iter().map(Vec::len).sum::<usize>() + 1)?;
                let found = self.starts_of_choices(choices);
                self.spend(found.len())?;
                changed |= found != self.starts[i];
                self.starts[i] = found;
            }
        }
        Some(changed)
    }

    fn starts_of_choices(&self, choices: &Choices) -> BTreeSet<usize> {
        let starts = |sequence| self.starts_of(&parts(self.rules, sequence));
        choices.iter().flat_map(starts).collect()
    }

    /// The terminals that these parts can begin with.
    fn starts_of(&self, parts: &[&[Element]]) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        for part in parts {
            match (self.index.get(&key(part)), &part[0].item) {
                (Some(terminal), _) if self.rules.is_regular(&part[0]) => {
                    all.insert(*terminal);
                }
                (_, Item::Rule(name)) => all.extend(&self.starts[self.rules.index(name)]),
                (_, Item::Group(choices)) => all.extend(self.starts_of_choices(choices)),
                (_, Item::Text(_) | Item::Class(_)) => {}
            }
            if !self.first_of(part).1 {
                break;
            }
        }
        all
    }

    /// Sets of terminals that may stand in the same place.
    fn together(&mut self, choices: &Choices, into: &mut BTreeSet<Vec<usize>>) -> Option<()> {
        into.insert(self.starts_of_choices(choices).into_iter().collect());
        for sequence in choices {
            let parts = parts(self.rules, sequence);
            let all = self.starts_of(&parts).len();
            self.spend((parts.len() + all) * parts.len())?;
            for (at, part) in parts.iter().enumerate() {
                into.insert(self.starts_of(&parts[at..]).into_iter().collect());
                if self.rules.is_regular(&part[0]) {
                    continue;
                }
                if part[0].repeats() {
                    let mut again = self.starts_of(&[part]);
                    again.extend(self.starts_of(&parts[at + 1..]));
                    into.insert(again.into_iter().collect());
                }
                if let Item::Group(choices) = &part[0].item {
                    self.together(choices, into)?;
                }
            }
        }
        Some(())
    }

    /// Goes through choices that `after` may follow: extends what follows rules, and looks for
    /// terminals that what follows them could extend.
    fn follow(&mut self, choices: &Choices, after: &[(u32, u32)]) -> Option<()> {
        for sequence in choices {
            let mut done = 0;
            for part in parts(self.rules, sequence) {
                self.spend(sequence.len() - done + 1)?;
                done += part.len();
                let (mut next, empty) = self.first_of(&sequence[done..]);
                if empty {
                    next = union(&next, after);
                }
                if self.rules.is_regular(&part[0]) {
                    let terminal = self.index.get(&key(part));
                    self.found |= terminal.is_none_or(|i| overlap(&self.extensions[*i], &next));
                    continue;
                }
                if part[0].repeats() {
                    next = union(&next, &self.first_of(part).0);
                }
                match &part[0].item {
                    Item::Rule(name) => {
                        let follow = &mut self.follow[self.rules.index(name)];
                        let all = union(follow, &next);
                        self.changed |= all != *follow;
                        *follow = all;
                    }
                    Item::Group(choices) => self.follow(choices, &next)?,
                    Item::Text(_) | Item::Class(_) => {}
                }
            }
        }
        Some(())
    }
}
