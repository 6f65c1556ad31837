//! The learning half of a realignment, as one pipeline: triaged pairs → token ids → reference →
//! impact → training → a [`Candidate`].
//!
//! The control loop, `realign score`, `realign train` and `realign eval trace` all run it. They
//! differ in their inputs (pairs, recipe, weights), in the [`Observer`] and [`Cache`] they pass,
//! and in what they do with the candidate: gate and publish it, write it to a directory, or measure
//! it. The pipeline itself decides nothing about a candidate and knows no server, no database and
//! no command line.

mod error;
mod inputs;
mod observer;
mod reference;
mod render;
mod rounds;
mod run;
mod selection;
mod situations;
#[cfg(test)]
mod tests;

pub use error::{PipelineError, RenderError};
pub use inputs::{Inputs, Sources, holdout_ratio, training_key};
pub use observer::{Cache, Known, NoCache, Observer, Phase, RawScores};
pub use render::Renderer;
pub use rounds::{Failures, Review};
pub use run::{Candidate, Learner, Run, Score, Scored};
pub use selection::{Corrections, Corrector, Selected, Selection};
pub(crate) use situations::situated;

use realign_core::TriageCounts;

/// The warning for data whose only conflicts are PUNISH pairs.
const ONLY_PUNISH: &str = "every conflict is PUNISH: nothing in the data shows what to answer \
    instead, and suppression alone drifts towards refusal; add pairs whose rejected response \
    complies, or configure [train.corrective]";

/// A one-sentence warning if training on data of these categories is likely to go wrong.
/// `corrective`: whether an endpoint is configured that writes compliant responses to PUNISH pairs.
pub fn warning(counts: TriageCounts, corrective: bool) -> Option<&'static str> {
    let only_punish = counts.invert == 0 && counts.punish > 0;
    (only_punish && !corrective).then_some(ONLY_PUNISH)
}
