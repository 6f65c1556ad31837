//! What outlives the process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::history::{Entry, Hold};
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
    /// A share of the requests gets it.
    Canary,
    /// It serves; answers of earlier generations go on to their end.
    Drain,
    /// What is neither current nor previous is unloaded.
    Unload,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 5] = [
        Stage::Load,
        Stage::Probe,
        Stage::Canary,
        Stage::Drain,
        Stage::Unload,
    ];

    /// Its name in metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Load => "load",
            Stage::Probe => "probe",
            Stage::Canary => "canary",
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
    /// The share of the requests that gets it in [`Stage::Canary`], in parts of ten thousand.
    #[serde(default)]
    pub share: u16,
    /// Targets that it goes on without, and why.
    pub excluded: BTreeMap<TargetId, String>,
}

/// Why a release was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Targets could not take it. Its next publication is tried again.
    #[default]
    Failed,
    /// An operator said so. It stays given up, also under the next epoch.
    Aborted,
    /// It was worse than what serves. It stays given up, also under the next epoch.
    Canary,
}

/// A release that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which one.
    pub release: Release,
    /// Why.
    pub why: String,
    /// What kind of reason that is.
    #[serde(default)]
    pub cause: Cause,
}

impl Refused {
    /// Whether a release stays given up.
    pub(super) fn holds(&self, release: &Release) -> bool {
        match self.cause {
            Cause::Failed => self.release == *release,
            Cause::Aborted | Cause::Canary => self.release.is_same(release),
        }
    }
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
    /// Who paused rollouts, if they are.
    #[serde(default)]
    pub paused: Option<Hold>,
    /// What was done, by whom and why; the newest last.
    #[serde(default)]
    pub history: Vec<Entry>,
}

impl Durable {
    /// The format that is written.
    pub const FORMAT: u32 = 2;
}
