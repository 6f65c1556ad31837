//! A canary: a share of the requests gets the next generation first, and both are compared.
//!
//! Which generation a request gets is a hash of its key, so all requests of a conversation get the same
//! one, and those that got the next generation keep it when the share grows. The comparison is a
//! sequential test that may be looked at after every request.

mod histogram;
mod sequential;
mod split;
mod trial;

pub use split::{Unit, WHOLE, takes};
pub use trial::{ArmStatus, Observation, Seen, TrialStatus};
pub(crate) use trial::{Trial, Verdict};

/// How a canary goes. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanaryRules {
    /// Shares of the requests, in parts of [`WHOLE`], growing, each below the whole. Without any,
    /// all requests are switched at once.
    pub shares: Vec<u16>,
    /// Requests that both generations must have answered in a step.
    pub min_requests: u64,
    /// The shortest that a step takes.
    pub min_ms: u64,
    /// The longest that a step waits for its requests.
    pub max_ms: u64,
}

impl CanaryRules {
    /// The share after this one; `None` is all requests.
    pub(crate) fn after(&self, share: u16) -> Option<u16> {
        self.shares.iter().copied().find(|next| *next > share)
    }
}
