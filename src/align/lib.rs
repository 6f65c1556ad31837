//! From a policy file and preference data to a trained candidate.
//!
//! ```text
//! policy ─▶ oracle ─▶ triage ─▶ exam ─▶ gather ─▶ impact ─▶ train ─▶ gate
//!             ▲          ▲
//!        preferences ────┘
//! ```
//!
//! Independent of the server, the engine and HTTP.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may sleep"))]

pub mod draft;
pub mod exam;
pub mod gate;
pub mod gather;
pub mod impact;
pub mod oracle;
pub mod pipeline;
pub mod policy;
pub mod preferences;
pub mod train;
pub mod triage;
