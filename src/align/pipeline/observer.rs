//! Callbacks of a run: progress, cancellation, and results of earlier runs.

use std::path::PathBuf;

use super::Scored;
use crate::train::examples::TokenPair;
use crate::train::{self, TrainExample};

/// A phase of a run, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward passes of the base model over all pairs.
    Reference,
    /// Gradients of the gold batch, and every conflicting pair's derivative along them.
    Impact,
    /// Optimiser steps.
    Train,
    /// Optimiser steps of a further round.
    Again,
}

/// Receives a run's progress, and can cancel it.
///
/// [`proceed`](train::Observer::proceed) of the supertrait is called before every pass of every
/// phase; its memory limit and step reports apply to training.
pub trait Observer: train::Observer {
    /// A phase begins. It has at most `units` passes, or optimiser steps in [`Phase::Train`].
    fn enter(&self, _phase: Phase, _units: usize) {}

    /// Called before every pass of [`Phase::Reference`] and [`Phase::Impact`]: `done` of the
    /// phase's `units` are complete.
    fn on_pass(&self, _phase: Phase, _done: usize, _units: usize) {}

    /// The conflicts have scores and weights, whether computed or taken from the cache. Not called
    /// by runs without scores.
    fn on_scored(&self, _scored: &Scored) {}

    /// Whether there is time for another round of training.
    fn has_time(&self) -> bool {
        true
    }

    /// Directory of the training checkpoints; a run continues from the newest one in it.
    fn checkpoints(&self) -> Option<PathBuf> {
        None
    }

    /// Cache of results of earlier runs.
    fn cache(&self) -> &dyn Cache {
        &NoCache
    }
}

/// Raw scores: the index of a conflicting pair among the run's pairs, and its inner product with
/// the gold gradient.
pub type RawScores = Vec<(usize, f64)>;

/// A result with the time it took to compute.
#[derive(Clone, Debug, Default)]
pub struct Known<T> {
    /// The result.
    pub value: T,
    /// Seconds that computing it took; 0 if unknown.
    pub seconds: f64,
}

/// Results that later runs can reuse. The implementation decides which runs share a result: it must
/// only return what the same base model, pairs and settings would give again.
pub trait Cache {
    /// Whether references are stored for other runs. They then include the conflicting pairs, whose
    /// reference would otherwise come from scoring.
    fn shares_reference(&self) -> bool {
        false
    }

    /// The run's pairs with their reference log-probabilities, at weight 1. Called once, before
    /// the reference is computed; entries that will not be used again should be dropped here.
    fn reference(&self, _pairs: &[TokenPair]) -> Option<Known<Vec<TrainExample>>> {
        None
    }

    /// Stores a computed reference. Called only if references are shared.
    fn keep_reference(&self, _reference: &Known<Vec<TrainExample>>) {}

    /// The run's raw scores, if they are stored.
    fn scores(&self, _pairs: &[TokenPair]) -> Option<Known<RawScores>> {
        None
    }

    /// Stores computed raw scores.
    fn keep_scores(&self, _scores: &Known<RawScores>) {}
}

/// A cache that stores nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl Cache for NoCache {}
