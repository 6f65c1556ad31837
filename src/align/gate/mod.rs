//! Whether a candidate may serve: held-out policy agreement must rise, capability must not fall.

mod agreement;
mod capability;
mod verdict;

pub use agreement::{Agreement, HeldOutPrompt, NoPrompts};
pub(crate) use capability::ROW_BUDGET;
pub use capability::{Capability, NEUTRAL_TEXT, capability, paragraphs};
pub use verdict::{Measured, judge};
