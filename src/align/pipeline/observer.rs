//! What a run reports to the program that started it, and what it asks of it.

use std::path::PathBuf;

use super::Scored;
use crate::train::examples::TokenPair;
use crate::train::{self, TrainExample};

/// A part of a run; a run goes through them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward passes of the base model over all pairs.
    Reference,
    /// Gradients of the gold batch, and every conflicting pair's derivative along them.
    Impact,
    /// Optimiser steps.
    Train,
}

/// Progress, cancelling and limits of a run.
///
/// [`proceed`](train::Observer::proceed) of the supertrait is asked before every pass of every
/// phase; its memory limit and its report of a step concern training.
pub trait Observer: train::Observer {
    /// A phase begins. It has at most `units` passes, or optimiser steps in [`Phase::Train`].
    fn enter(&self, _phase: Phase, _units: usize) {}

    /// Before every pass of [`Phase::Reference`] and [`Phase::Impact`]: `done` of the phase's
    /// `units` are behind it.
    fn on_pass(&self, _phase: Phase, _done: usize, _units: usize) {}

    /// The conflicts have scores and weights, whether computed or taken from the cache. Not called
    /// by runs without scores.
    fn on_scored(&self, _scored: &Scored) {}

    /// Directory of the training checkpoints; a run continues from the newest one in it.
    fn checkpoints(&self) -> Option<PathBuf> {
        None
    }

    /// Results of earlier runs.
    fn cache(&self) -> &dyn Cache {
        &NoCache
    }
}

/// Raw scores: the index of a conflicting pair among the run's pairs, and its inner product with
/// the gold gradient.
pub type RawScores = Vec<(usize, f64)>;

/// A result with the time that it took to compute.
#[derive(Clone, Debug, Default)]
pub struct Known<T> {
    /// The result.
    pub value: T,
    /// Seconds that computing it took; 0 where that is not known.
    pub seconds: f64,
}

/// Results that one run leaves for the next. The implementation decides which runs share one: it
/// must only return what the same base model, pairs and settings would give again.
pub trait Cache {
    /// Whether references are kept for other runs. They then cover the conflicting pairs too,
    /// which a run with scores gets from scoring otherwise.
    fn shares_reference(&self) -> bool {
        false
    }

    /// The run's pairs with their reference log-probabilities, at weight 1. Asked once, before the
    /// reference is computed; what will not be used again should be dropped here.
    fn reference(&self, _pairs: &[TokenPair]) -> Option<Known<Vec<TrainExample>>> {
        None
    }

    /// Keeps a reference that was computed. Called only if references are shared.
    fn keep_reference(&self, _reference: &Known<Vec<TrainExample>>) {}

    /// The run's raw scores.
    fn scores(&self, _pairs: &[TokenPair]) -> Option<Known<RawScores>> {
        None
    }

    /// Keeps raw scores that were computed.
    fn keep_scores(&self, _scores: &Known<RawScores>) {}
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl Cache for NoCache {}
