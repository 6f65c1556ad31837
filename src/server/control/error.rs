//! Errors of the control loop.

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
    /// The model's hidden states, which probes read, are unavailable.
    #[error(transparent)]
    Features(#[from] FeatureError),
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
}

/// Why an operator's request started no realignment.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Another realignment is running; holds its id.
    #[error("realignment {0} is running; cancel it first or wait")]
    Running(String),
    /// The realignment that the active policies require has already been done.
    #[error("nothing to do")]
    NothingToDo,
    /// The realignment could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
}
