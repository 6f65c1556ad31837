//! What a run will take, counted before it begins.

use serde::Serialize;

use super::recipe::Recipe;
use super::run::ROW_BUDGET;
use realign_model::memory::Training;
use realign_model::{Backend, LoraSite, Recompute};

const FLOAT: usize = size_of::<f32>();

/// Bytes that a run adds to a process that serves already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryPlan {
    /// An f32 copy of the weights; none where they are packed, or a CUDA device's.
    pub weights: usize,
    /// What the layers of one micro-batch leave for their gradients.
    pub(crate) activations: usize,
    /// Logits of one chunk of response tokens, the reference's beside them.
    pub(crate) logits: usize,
    /// Factors, their gradients and the optimiser's moments.
    pub adapter: usize,
    /// Hidden states that are kept of every pair.
    pub(crate) states: usize,
}

impl MemoryPlan {
    /// For so many rows in all pairs together. `recompute` says whether a layer's intermediate
    /// results are computed again, where passes have the choice.
    pub(crate) fn new(
        backend: &dyn Backend,
        recipe: &Recipe,
        rows: usize,
        recompute: bool,
    ) -> Self {
        let spec = backend.spec();
        let adapted = spec.layers - recipe.lowest_layer(spec.layers);
        let rows_at_once = rows.min(ROW_BUDGET.max(recipe.max_tokens * 2));
        let bytes = backend.learning_bytes(&Training {
            rank: recipe.rank,
            layers: adapted,
            projections: recipe.targets.len(),
            rows: rows_at_once,
            longest: rows_at_once.min(recipe.max_tokens * 2),
            recompute,
        });
        let factors: usize = (spec.layers - adapted..spec.layers)
            .flat_map(|layer| {
                let projections = recipe.projections().unwrap_or_default();
                projections
                    .into_iter()
                    .map(move |projection| LoraSite { layer, projection })
            })
            .filter_map(|site| spec.site_shape(site))
            .map(|(inner, out)| recipe.rank * (inner + out))
            .sum();
        Self {
            weights: bytes.weights,
            activations: bytes.activations,
            logits: bytes.logits,
            adapter: FLOAT * factors * 5,
            states: FLOAT * rows * spec.hidden_size * 2,
        }
    }

    /// The plan that fits, and whether it computes intermediate results again: under
    /// [`Recompute::Auto`] only where keeping them does not fit. `plan` makes either.
    ///
    /// # Errors
    /// [`TooLarge`] with the numbers, if none does.
    pub(crate) fn fitting(
        choice: Recompute,
        available: Option<u64>,
        plan: impl Fn(bool) -> Self,
    ) -> Result<(Self, bool), TooLarge> {
        let recompute = match choice {
            Recompute::Auto => plan(false).check(available).is_err(),
            Recompute::On => true,
            Recompute::Off => false,
        };
        let chosen = plan(recompute);
        chosen.check(available)?;
        Ok((chosen, recompute))
    }

    /// All of it.
    pub(crate) fn total(&self) -> usize {
        self.weights + self.activations + self.logits + self.adapter + self.states
    }

    /// Holds the plan against what there is.
    ///
    /// # Errors
    /// [`TooLarge`] with the numbers, if it does not fit.
    pub(crate) fn check(&self, available: Option<u64>) -> Result<(), TooLarge> {
        match available {
            Some(available) if self.total() as u64 > available => Err(TooLarge {
                plan: *self,
                available,
            }),
            _ => Ok(()),
        }
    }
}

/// A run that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "training would take {} MB ({} MB activations, {} MB hidden states of the pairs, {} MB adapter, \
     {} MB logits, {} MB weights), {} MB are free: lower train.max_pairs, train.max_pair_tokens, \
     train.rank or train.layer_share, or raise train.memory_mb if that is what limits it",
    plan.total() >> 20, plan.activations >> 20, plan.states >> 20, plan.adapter >> 20,
    plan.logits >> 20, plan.weights >> 20, available >> 20
)]
pub struct TooLarge {
    /// What the run would take.
    pub(crate) plan: MemoryPlan,
    /// What there is, in bytes.
    pub(crate) available: u64,
}

/// The bytes that a run may take: what is configured, else what is free where it computes.
pub fn limit(configured_mb: Option<u64>, backend: &dyn Backend) -> Option<u64> {
    configured_mb
        .map(|mb| mb.saturating_mul(1 << 20))
        .or_else(|| backend.free_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_cpu::CpuBackend;
    use realign_model::ModelSource;
    use realign_reference::ReferenceBackend;

    #[test]
    fn packed_weights_need_no_copy_and_too_much_is_refused_with_numbers() {
        let (dense, packed) = backends();
        let recipe = Recipe::default();
        let on_packed = |rows, recompute| MemoryPlan::new(&packed, &recipe, rows, recompute);
        let dense = MemoryPlan::new(&dense, &recipe, 10_000, false);
        let (packed, again) = (on_packed(10_000, false), on_packed(10_000, true));
        assert!(packed.weights == 0 && dense.weights > 0);
        assert!(packed.total() < dense.total());
        assert_eq!(again, packed, "packed passes have one form");
        let twice = on_packed(20_000, false);
        assert_eq!(twice.states, 2 * packed.states);
        packed.check(None).unwrap();
        packed.check(Some(packed.total() as u64)).unwrap();
        let error = packed.check(Some(1 << 20)).unwrap_err().to_string();
        assert!(
            error.contains("1 MB are free") && error.contains("train.max_pairs"),
            "{error}"
        );
    }

    #[test]
    fn intermediate_results_are_computed_again_where_keeping_them_does_not_fit() {
        let (backend, _) = backends();
        let recipe = Recipe {
            layer_share: 1.0,
            ..Recipe::default()
        };
        let plan = |recompute| MemoryPlan::new(&backend, &recipe, 10_000, recompute);
        let (kept, again) = (plan(false).total() as u64, plan(true).total() as u64);
        assert!(again < kept, "{again} and {kept}");
        let fitting = |choice, bytes| {
            let found = MemoryPlan::fitting(choice, bytes, plan);
            found.map(|(plan, recompute)| (plan.total() as u64, recompute))
        };
        assert_eq!(fitting(Recompute::Auto, None), Ok((kept, false)));
        assert_eq!(fitting(Recompute::Auto, Some(kept)), Ok((kept, false)));
        assert_eq!(fitting(Recompute::Auto, Some(kept - 1)), Ok((again, true)));
        assert_eq!(fitting(Recompute::On, None), Ok((again, true)));
        assert!(fitting(Recompute::Off, Some(kept - 1)).is_err());
        assert!(fitting(Recompute::Auto, Some(again - 1)).is_err());
    }

    fn backends() -> (ReferenceBackend, CpuBackend) {
        let path = realign_model::test_support::path("tests/golden/families/gemma3");
        let files = ModelSource::parse(&path)
            .and_then(ModelSource::fetch)
            .unwrap();
        (
            ReferenceBackend::new(realign_reference::load(&files).unwrap()),
            CpuBackend::new(realign_cpu::load(&files).unwrap()),
        )
    }
}
