//! The learning half of a realignment, as one pipeline: triaged pairs → token ids → reference →
//! impact → training → a [`Candidate`].
//!
//! The control loop, `realign score`, `realign train` and `realign eval trace` all run it. They
//! differ in what they give it (pairs, recipe, weights), in what they let it know while it runs
//! ([`Observer`], [`Cache`]) and in what they do with the candidate: gate and publish it, write it
//! to a directory, or measure it. The pipeline itself decides nothing about a candidate and knows
//! no server, no database and no command line.

mod error;
mod inputs;
mod observer;
mod render;
mod run;
mod selection;
#[cfg(test)]
mod tests;

pub use error::{PipelineError, RenderError};
pub use inputs::{Inputs, Sources, holdout_ratio};
pub use observer::{Cache, Known, NoCache, Observer, Phase, RawScores};
pub use render::Renderer;
pub use run::{Candidate, Learner, Run, Score, Scored};
pub use selection::{Corrections, Corrector, Selected, Selection};

use realign_core::TriageCounts;

/// Without a wanted answer in the data, suppression alone drifts towards refusal.
const ONLY_PUNISH: &str = "every conflict is PUNISH: nothing in the data shows what to answer \
    instead, and suppression alone drifts towards refusal; add pairs whose rejected response \
    complies, or configure [train.corrective]";

/// What is likely to go wrong with data of these categories, in a sentence. `corrective` says
/// whether an endpoint is configured that writes compliant responses to PUNISH pairs.
pub fn warning(counts: TriageCounts, corrective: bool) -> Option<&'static str> {
    let only_punish = counts.invert == 0 && counts.punish > 0;
    (only_punish && !corrective).then_some(ONLY_PUNISH)
}
