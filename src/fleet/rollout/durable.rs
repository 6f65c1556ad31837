//! What outlives the process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::target::TargetId;

/// A generation that should serve, as of one publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Counts publications.
    pub epoch: u64,
    /// The generation's id, 12 hex digits.
    pub generation: String,
    /// Whether it is the base model, which every target has.
    pub is_base: bool,
}

impl Release {
    /// Whether two are the same content.
    pub fn is_same(&self, other: &Release) -> bool {
        self.generation == other.generation && self.is_base == other.is_base
    }
}

/// How far a rollout has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The adapter is loaded on every target that answers.
    Load,
    /// Every one of them answers by it.
    Probe,
    /// It serves; answers of earlier generations go on to their end.
    Drain,
    /// What is neither current nor previous is unloaded.
    Unload,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 4] = [Stage::Load, Stage::Probe, Stage::Drain, Stage::Unload];

    /// Its name in metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Probe => "probe",
            Stage::Drain => "drain",
            Stage::Unload => "unload",
        }
    }
}

/// A rollout under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// What is to serve; what serves, from [`Stage::Drain`] on.
    pub to: Release,
    /// How far it has come.
    pub stage: Stage,
    /// Targets that it goes on without, and why.
    pub excluded: BTreeMap<TargetId, String>,
}

/// A release that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which one. The next publication is tried again.
    pub release: Release,
    /// Why.
    pub why: String,
}

/// What serves, and the rollout under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// The format of the file.
    pub format: u32,
    /// What requests get; `None` before the first rollout has ended.
    pub current: Option<Release>,
    /// What served before, and is kept loaded.
    pub previous: Option<Release>,
    /// The rollout under way.
    pub rollout: Option<Rollout>,
    /// What was given up last, until something serves after it.
    pub refused: Option<Refused>,
}

impl Durable {
    /// The format that is written.
    pub const FORMAT: u32 = 1;
}
