//! What the reference, the model without an adapter, makes of a run's pairs.

use std::collections::HashMap;
use std::time::Instant;

use super::PipelineError;
use super::observer::{Known, Observer, Phase};
use super::run::{Learner, Run, passes};
use crate::train::TrainExample;
use crate::train::examples::{Reference, TokenPair, with_reference};
use crate::train::run::ROW_BUDGET;

/// Pairs with what the reference makes of them, which no training changes.
pub(super) struct MeasuredPairs<'a>(HashMap<&'a TokenPair, TrainExample>);

impl<'a> MeasuredPairs<'a> {
    pub(super) fn new(pairs: &'a [TokenPair], examples: Vec<TrainExample>) -> Self {
        Self(pairs.iter().zip(examples).collect())
    }

    /// A pair at weight 1.
    fn get(&self, pair: &TokenPair) -> Option<TrainExample> {
        let example = self.0.get(pair)?.clone();
        Some(TrainExample {
            weight: 1.0,
            ..example
        })
    }
}

impl Learner {
    /// All pairs at weight 1 with their reference log-probabilities; without `conflicts`, those of
    /// RETAIN pairs only.
    pub(super) fn reference(
        &self,
        run: &Run<'_>,
        conflicts: bool,
        observer: &dyn Observer,
    ) -> Result<Known<Vec<TrainExample>>, PipelineError> {
        let cache = observer.cache();
        if let Some(known) = cache.reference(run.pairs) {
            return Ok(known);
        }
        let reference = self.measure(run, conflicts, observer)?;
        if cache.shares_reference() {
            cache.keep_reference(&reference);
        }
        Ok(reference)
    }

    /// As [`Learner::reference`], of the pairs that have not been measured; the others are taken over.
    pub(super) fn remaining(
        &self,
        run: &Run<'_>,
        measured: &MeasuredPairs<'_>,
        observer: &dyn Observer,
    ) -> Result<Known<Vec<TrainExample>>, PipelineError> {
        let known: Vec<Option<TrainExample>> =
            run.pairs.iter().map(|pair| measured.get(pair)).collect();
        let open = run.pairs.iter().zip(&known);
        let open: Vec<TokenPair> = open
            .filter(|(_, known)| known.is_none())
            .map(|(pair, _)| pair.clone())
            .collect();
        let fresh = self.measure(
            &Run {
                pairs: &open,
                ..*run
            },
            true,
            observer,
        )?;
        let mut found = fresh.value.into_iter();
        Ok(Known {
            value: known
                .into_iter()
                .filter_map(|known| known.or_else(|| found.next()))
                .collect(),
            seconds: fresh.seconds,
        })
    }

    fn measure(
        &self,
        run: &Run<'_>,
        conflicts: bool,
        observer: &dyn Observer,
    ) -> Result<Known<Vec<TrainExample>>, PipelineError> {
        let began = Instant::now();
        let mut proceed = passes(observer, Phase::Reference, run.passes());
        let at = Reference {
            backend: self.backend(),
            lowest_layer: run.recipe.lowest_layer(self.backend().spec().layers),
            precision: run.recipe.precision.into(),
            conflicts,
        };
        let examples = with_reference(at, run.pairs, ROW_BUDGET, |_| proceed())?;
        Ok(Known {
            value: examples.ok_or(PipelineError::Cancelled)?,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}
