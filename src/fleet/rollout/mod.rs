//! The rollout: a pure function of what was, what happened, and the time.
//!
//! What a target should do next is worked out from what it has and what it should have, again and
//! again, so nothing has to be remembered about work that was under way when the process ended. Only
//! what [`Durable`] holds must outlive it: what serves, what served before, and how far the rollout
//! under way has come.

mod core;
mod durable;
mod event;
mod seats;
mod view;

pub use self::core::Core;
pub use durable::{Durable, Refused, Release, Rollout, Stage};
pub use event::{Event, OnFailure, Rules, Step, Work};
pub use view::{Seat, TargetStatus, View};
