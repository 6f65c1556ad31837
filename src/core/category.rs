//! What triage says of a preference pair (TRACE, section 3).

use serde::{Deserialize, Serialize};

/// What training does with a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// Chosen violates, rejected complies: the preference is turned round.
    Invert,
    /// Both violate: both are suppressed.
    Punish,
    /// Chosen complies: behaviour is kept.
    Retain,
}

impl Category {
    /// All categories, in the order of the paper's table.
    pub const ALL: [Category; 3] = [Category::Invert, Category::Punish, Category::Retain];

    /// The category of a pair from its two verdicts.
    pub fn of(chosen_complies: bool, rejected_complies: bool) -> Category {
        match (chosen_complies, rejected_complies) {
            (true, _) => Category::Retain,
            (false, true) => Category::Invert,
            (false, false) => Category::Punish,
        }
    }

    /// The name in metrics, JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Invert => "invert",
            Category::Punish => "punish",
            Category::Retain => "retain",
        }
    }

    /// Whether the pair is in conflict with the policy.
    pub fn is_conflict(self) -> bool {
        self != Category::Retain
    }
}

/// Pairs per category.
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
    /// Pairs of one category.
    pub fn get(&self, category: Category) -> usize {
        match category {
            Category::Invert => self.invert,
            Category::Punish => self.punish,
            Category::Retain => self.retain,
        }
    }

    /// All pairs.
    pub fn total(&self) -> usize {
        self.invert + self.punish + self.retain
    }

    /// Pairs in conflict with the policy.
    pub fn conflicts(&self) -> usize {
        self.invert + self.punish
    }

    /// Share of pairs in conflict, 0 to 1; 0 if there are no pairs.
    pub fn gap_ratio(&self) -> f64 {
        match self.total() {
            0 => 0.0,
            total => self.conflicts() as f64 / total as f64,
        }
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
