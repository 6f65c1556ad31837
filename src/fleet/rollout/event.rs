//! What happens, and what is to be done.

use std::collections::BTreeSet;

use super::history::Order;
use super::{Core, Release};
use crate::canary::{CanaryRules, Observation};
use crate::target::{Listing, TargetError, TargetId};

/// What happens to a target that cannot take a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The rollout goes on without it, unless that would be half of the targets.
    Exclude,
    /// The rollout ends, and what serves goes on to serve.
    Abort,
}

/// What does not change while a gateway runs. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The served name.
    pub name: String,
    /// Where targets find a generation: `<this>/<generation>`.
    pub adapters_path: String,
    /// What happens to a target that cannot take a release.
    pub on_failure: OnFailure,
    /// How many publications behind a target may be and still answer where no other can.
    pub max_skew_epochs: u64,
    /// The longest that an answer may take.
    pub max_request_ms: u64,
    /// Time between two looks at a target.
    pub look_ms: u64,
    /// Attempts at a piece of work until a target counts as unable.
    pub attempts: u32,
    /// How a share of the requests gets a generation first.
    pub canary: CanaryRules,
}

impl Rules {
    /// Where a target finds a generation.
    pub(super) fn path(&self, generation: &str) -> String {
        format!("{}/{generation}", self.adapters_path)
    }
}

/// A piece of work at a target. It may be done twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Look at what it has.
    List,
    /// Load a generation's adapter.
    Load {
        /// The generation.
        generation: String,
        /// The adapter's name.
        name: String,
        /// Where the target finds it.
        path: String,
    },
    /// Have it answer.
    Probe {
        /// The generation.
        generation: String,
        /// What requests send as `model` to get it.
        model: String,
    },
    /// Unload an adapter.
    Unload {
        /// The adapter's name.
        name: String,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What should serve, as the store or the directory says it now.
    Desired(Release),
    /// These are all targets now.
    Targets(BTreeSet<TargetId>),
    /// A piece of work ended. The listing is that of [`Work::List`].
    Done(TargetId, Work, Result<Option<Listing>, TargetError>),
    /// A request found a target gone, or without what it had.
    Suspect(TargetId),
    /// Time passed.
    Tick(Heard),
    /// An operator's order. One that [`Core::may`] refuses changes nothing.
    Order(Order),
}

/// What is known of requests at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The generations that they hold.
    pub leased: BTreeSet<String>,
    /// What was seen of those in a canary since the last time.
    pub observed: Vec<Observation>,
    /// The time of day, in Unix seconds.
    pub at: u64,
}

/// What follows from an event.
#[derive(Debug)]
pub struct Step {
    /// What is now. Where its durable part differs, that is written before anything else.
    pub core: Core,
    /// What is to be done.
    pub work: Vec<(TargetId, Work)>,
}
