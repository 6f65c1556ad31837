//! The rollout: a pure function of what was, what happened, and the time.
//!
//! What a target should do next is worked out from what it has and what it should have, again and
//! again, so nothing has to be remembered about work that was under way when the process ended. Only
//! what [`Durable`] holds must outlive it: what serves, what served before, and how far the rollout
//! under way has come.

mod canary;
mod core;
mod durable;
mod event;
mod history;
mod orders;
mod seats;
mod view;

pub use self::core::Core;
pub use durable::{Cause, Durable, Refused, Release, Rollout, Stage};
pub use event::{Event, Heard, OnFailure, Rules, Step, Work};
pub use history::{Command, Entry, Hold, Order};
pub use view::{Canary, Seat, TargetStatus, View};
