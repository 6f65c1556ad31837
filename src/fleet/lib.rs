//! Rollouts over engines of others, and over realign servers that are driven like them.
//!
//! A target is one running engine: it lists what it has, loads an adapter, answers a probe, unloads.
//! A generation is `NAME@<generation>` on every target, so no name and no path ever comes to mean
//! other content, and nothing is loaded in place.
//!
//! ```text
//! load on every target that answers -> probe -> barrier -> canary -> switch (one write) -> drain -> unload
//! ```
//!
//! [`Core`] decides: a pure function of what was, what happened and the time. [`Runner`] carries its
//! decisions out, one piece of work per target at a time, and writes what must outlive the process
//! before anyone acts upon it. Every piece of work may be repeated, so a process that is killed goes
//! on where the file says it was.

mod announce;
mod canary;
mod http;
mod names;
mod resolve;
mod rollout;
mod runner;
mod state;
mod target;
#[cfg(test)]
mod tests;

pub use canary::{ArmStatus, CanaryRules, Observation, Seen, TrialStatus, Unit, WHOLE, takes};
pub use http::HttpTarget;
pub use names::{adapter_name, is_generation};
pub use resolve::{Address, addresses};
pub use rollout::{
    Canary, Cause, Command, Core, Durable, Entry, Event, Heard, Hold, OnFailure, Order, Refused,
    Release, Rollout, Rules, Seat, Stage, Step, TargetStatus, View, Work,
};
pub use runner::{Connect, OrderError, Runner, Settings};
pub use state::{StateError, StateFile};
pub use target::{Kind, Listing, Target, TargetError, TargetId};
