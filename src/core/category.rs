//! The categories that triage assigns to preference pairs (TRACE, section 3).

use serde::{Deserialize, Serialize};

/// How training treats a preference pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// Chosen violates, rejected complies: the preference is inverted.
    Invert,
    /// Both violate: both are suppressed.
    Punish,
    /// Chosen complies: the behaviour is retained.
    Retain,
}

impl Category {
    /// All categories, in the order of the paper's table.
    pub const ALL: [Category; 3] = [Category::Invert, Category::Punish, Category::Retain];

    /// The category that follows from the two verdicts.
    pub fn of(chosen_complies: bool, rejected_complies: bool) -> Category {
        match (chosen_complies, rejected_complies) {
            (true, _) => Category::Retain,
            (false, true) => Category::Invert,
            (false, false) => Category::Punish,
        }
    }

    /// The name used in metrics, JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Invert => "invert",
            Category::Punish => "punish",
            Category::Retain => "retain",
        }
    }

    /// Whether the pair conflicts with the policy (everything except RETAIN).
    pub fn is_conflict(self) -> bool {
        self != Category::Retain
    }
}

/// Number of pairs in each category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriageCounts {
    /// D_I of the paper.
    pub invert: usize,
    /// D_II of the paper.
    pub punish: usize,
    /// D_R of the paper.
    pub retain: usize,
}

impl TriageCounts {
    /// Number of pairs in `category`.
    pub fn get(&self, category: Category) -> usize {
        match category {
            Category::Invert => self.invert,
            Category::Punish => self.punish,
            Category::Retain => self.retain,
        }
    }

    /// Number of pairs in all categories.
    pub fn total(&self) -> usize {
        self.invert + self.punish + self.retain
    }

    /// Number of pairs that conflict with the policy.
    pub fn conflicts(&self) -> usize {
        self.invert + self.punish
    }

    /// Fraction of pairs in conflict, 0 to 1; 0 if there are no pairs.
    pub fn gap_ratio(&self) -> f64 {
        if self.total() == 0 {
            return 0.0;
        }
        self.conflicts() as f64 / self.total() as f64
    }
}

impl FromIterator<Category> for TriageCounts {
    fn from_iter<I: IntoIterator<Item = Category>>(categories: I) -> Self {
        let mut counts = TriageCounts::default();
        for category in categories {
            match category {
                Category::Invert => counts.invert += 1,
                Category::Punish => counts.punish += 1,
                Category::Retain => counts.retain += 1,
            }
        }
        counts
    }
}
