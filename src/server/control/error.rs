//! Errors of the control loop.

use std::path::PathBuf;

use crate::state::StateError;
use realign_align::oracle::features::FeatureError;
use realign_align::policy::{PolicyErrors, WatchError};
use realign_align::preferences::DatasetError;
use realign_align::train::recipe::RecipeError;

/// Why the control loop did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The `[train]` section cannot be trained with.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The policy directory cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The loop's thread could not be started.
    #[error("cannot start the control loop's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why the policies of the directory did not become active.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadPoliciesError {
    /// A file is invalid, an example fails, or a rule is below its minimum trust.
    #[error(transparent)]
    Policies(#[from] PolicyErrors),
    /// A file, a probe or a judge could not be used, which may pass.
    #[error("{0}")]
    Unreadable(#[source] PolicyErrors),
    /// The model's hidden states, which probes read, are unavailable.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// Policies were active, and none is there any more.
    #[error(
        "{}: the policy directory {what}, and {kept}. Put the files back, or run `realign policy clear` \
         to serve without policies",
        directory.display()
    )]
    Vanished {
        /// The policy directory.
        directory: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What stays as it is.
        kept: &'static str,
    },
    /// The directory cannot be read.
    #[error("{}: cannot read the policy directory: {error}", directory.display())]
    Directory {
        /// The policy directory.
        directory: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The set cannot be stored, and what is not stored is not activated.
    #[error("the policies are valid but cannot be stored, so they are not active: {0}")]
    Store(#[source] StateError),
}

impl ReadPoliciesError {
    /// Whether the same files may be accepted later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Policies(_) | Self::Vanished { .. } => false,
            Self::Unreadable(_) | Self::Features(_) | Self::Directory { .. } | Self::Store(_) => {
                true
            }
        }
    }
}

/// Why the empty policy set did not become active.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClearError {
    /// The directory still holds policies.
    #[error("{}: there are policy files; remove them first, then clear", .0.display())]
    StillThere(PathBuf),
    /// The empty set cannot be prepared.
    #[error(transparent)]
    Read(#[from] ReadPoliciesError),
    /// The empty set was refused.
    #[error("{0}")]
    Refused(String),
}

/// Why a realignment could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    /// The preference data cannot be read.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// The realignment cannot be recorded.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its thread could not be started.
    #[error(transparent)]
    Thread(#[from] std::io::Error),
    /// The process died too often while it ran; holds where, and what to do.
    #[error("{0}")]
    Died(String),
    /// What it led to could not be published; holds why.
    #[error("{0}")]
    Elsewhere(String),
}

/// Why an operator's request started no realignment.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Another realignment is running; holds its id.
    #[error("realignment {0} is running; cancel it first or wait")]
    Running(String),
    /// An operator pinned what serves; holds its generation.
    #[error(
        "generation {0} is pinned by an operator; `realign adapters unpin` lets realignments swap \
         again"
    )]
    Pinned(String),
    /// No policies are active yet: what there is to realign to is unknown.
    #[error(
        "no policies are active yet; `last_error` of GET /admin/v1/policies says why, and a \
         realignment begins once they are"
    )]
    NoPolicies,
    /// The realignment that the active policies require has already been done.
    #[error("nothing to do")]
    NothingToDo,
    /// The realignment could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// What exceeds the limits could not be removed.
    #[error(transparent)]
    Collect(#[from] super::retention::CollectError),
}
