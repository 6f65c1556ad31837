//! How much each conflict matters: impact scores and weights (arXiv 2511.02623, Algorithm 2).
//!
//! The score of a pair is ⟨g_J, g_k⟩, the gold batch's gradient against the pair's own. That is a
//! directional derivative, so one backward pass over the gold batch and forward passes over the
//! pairs are enough; [`score::per_pair`] is the slow reference that computes every gradient.

pub mod gold;
pub mod score;
pub mod weights;

pub use gold::{GoldBatch, GoldPair, gold_batch};
pub use score::{Scored, directional, per_pair};
pub use weights::{ImpactError, Weights, weigh};
