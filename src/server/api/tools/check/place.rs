//! Where a check is, and what it has seen.

use std::collections::BTreeSet;

/// A place in the answer.
#[derive(Clone, Copy, Default)]
pub(super) struct At<'a> {
    outer: Option<&'a At<'a>>,
    name: &'a str,
    index: Option<usize>,
    pub(super) depth: usize,
}

impl<'a> At<'a> {
    pub(super) fn field(&'a self, name: &'a str) -> Self {
        Self {
            outer: Some(self),
            name,
            index: None,
            depth: self.depth + 1,
        }
    }

    pub(super) fn item(&'a self, index: usize) -> Self {
        Self {
            outer: Some(self),
            name: "",
            index: Some(index),
            depth: self.depth + 1,
        }
    }

    pub(super) fn pointer(&self) -> String {
        let outer = self.outer.map(At::pointer).unwrap_or_default();
        match (self.outer, self.index) {
            (None, _) => outer,
            (_, Some(index)) => format!("{outer}/{index}"),
            _ => format!(
                "{outer}/{}",
                self.name.replace('~', "~0").replace('/', "~1")
            ),
        }
    }

    /// The same place, one schema deeper.
    pub(super) fn deeper(self) -> Self {
        let depth = self.depth + 1;
        Self { depth, ..self }
    }
}

/// What schemas said of the parts of a value, for `unevaluated…`.
#[derive(Default)]
pub(super) struct Evaluated {
    pub(super) names: BTreeSet<String>,
    pub(super) items: BTreeSet<usize>,
}

impl Evaluated {
    pub(super) fn extend(&mut self, more: Self) {
        self.names.extend(more.names);
        self.items.extend(more.items);
    }
}
