//! What the stages of a realignment will take, counted before they begin.

use serde::Serialize;

use super::recipe::Recipe;
use super::run::ROW_BUDGET;
use crate::exam::scorer;
use realign_model::host_memory::Headroom;
use realign_model::memory::Training;
use realign_model::{Backend, KvType, LoraSite, Recompute};

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
            // Examples that begin alike are one segment.
            longest: rows_at_once,
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
        available: Option<Headroom>,
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

    /// For measuring a candidate: forward passes of so many rows, without gradients, by the model
    /// with and without the adapter.
    fn measuring(backend: &dyn Backend, recipe: &Recipe, rows: usize) -> Self {
        let bytes = backend.learning_bytes(&Training {
            rank: recipe.rank,
            layers: 0,
            projections: 0,
            rows,
            longest: rows,
            recompute: true,
        });
        Self {
            weights: bytes.weights,
            activations: bytes.activations,
            // The base's and the candidate's.
            logits: 2 * bytes.logits,
            adapter: 0,
            states: FLOAT * rows * backend.spec().hidden_size * 2,
        }
    }

    /// For an exam: the likelihoods of answers, by an executor with a cache of its own. The answers
    /// themselves take what the serving engine has already.
    fn sitting(backend: &dyn Backend, recipe: &Recipe) -> Self {
        let (rows, blocks, logits) = scorer::sizes(backend.spec().vocab_size);
        let measuring = Self::measuring(backend, recipe, rows);
        Self {
            weights: 0,
            activations: measuring.activations,
            logits,
            adapter: 0,
            states: blocks * backend.bytes_per_block(KvType::F32),
        }
    }

    /// Holds the plan against what there is.
    ///
    /// # Errors
    /// [`TooLarge`] with the numbers, if it does not fit.
    pub(crate) fn check(&self, available: Option<Headroom>) -> Result<(), TooLarge> {
        match available {
            Some(available) if self.total() as u64 > available.free => Err(TooLarge {
                what: "training",
                plan: *self,
                available,
            }),
            _ => Ok(()),
        }
    }
}

/// Holds an exam against what there is.
///
/// # Errors
/// [`TooLarge`] with the numbers, if it does not fit.
pub fn check_exam(
    backend: &dyn Backend,
    recipe: &Recipe,
    available: Option<Headroom>,
) -> Result<(), TooLarge> {
    let plan = MemoryPlan::sitting(backend, recipe);
    plan.check(available).map_err(|error| error.of("the exam"))
}

/// Holds what the gate measures of a candidate against what there is.
///
/// # Errors
/// [`TooLarge`] with the numbers, if it does not fit.
pub fn check_gate(
    backend: &dyn Backend,
    recipe: &Recipe,
    available: Option<Headroom>,
) -> Result<(), TooLarge> {
    let plan = MemoryPlan::measuring(backend, recipe, crate::gate::ROW_BUDGET);
    plan.check(available).map_err(|error| error.of("the gate"))
}

/// Work that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} needs {} MiB ({} MiB activations, {} MiB hidden states and keys, {} MiB adapter, \
     {} MiB logits, {} MiB weights), {available}: lower train.max_pairs, train.max_pair_tokens, \
     train.rank, train.layer_share or engine.kv_cache_mb, or {}",
    mib(plan.total()), mib(plan.activations), mib(plan.states), mib(plan.adapter),
    mib(plan.logits), mib(plan.weights), available.remedy()
)]
pub struct TooLarge {
    /// What does not fit.
    pub(crate) what: &'static str,
    /// What it would take.
    pub(crate) plan: MemoryPlan,
    /// What there is.
    pub(crate) available: Headroom,
}

impl TooLarge {
    /// The same of other work.
    pub(crate) fn of(self, what: &'static str) -> Self {
        Self { what, ..self }
    }
}

/// Rounded up: what is needed is never shown as less than it is.
fn mib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 20)
}

/// What a run may take: what is free where it computes, or what is configured if that is less.
pub fn limit(configured_mb: Option<u64>, backend: &dyn Backend) -> Option<Headroom> {
    let configured =
        configured_mb.map(|mb| Headroom::of_setting("train.memory_mb", mb.saturating_mul(1 << 20)));
    [configured, backend.headroom()]
        .into_iter()
        .flatten()
        .reduce(Headroom::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_cpu::CpuBackend;
    use realign_model::ModelSource;
    use realign_reference::ReferenceBackend;

    fn bytes(free: u64) -> Option<Headroom> {
        Some(Headroom::of_device(free))
    }

    #[test]
    fn exam_and_gate_are_held_against_what_is_free() {
        let (_, backend) = backends();
        let recipe = Recipe::default();
        for check in [check_exam, check_gate] {
            check(&backend, &recipe, None).unwrap();
            check(&backend, &recipe, bytes(1 << 30)).unwrap();
            let error = check(&backend, &recipe, bytes(1 << 16)).unwrap_err();
            assert!(
                error.to_string().contains("0 MiB are free on the device"),
                "{error}"
            );
        }
        let container = Headroom {
            free: 250 << 20,
            limit: 300 << 20,
            bound: realign_model::host_memory::Bound::Container,
        };
        let plan = MemoryPlan {
            activations: 420 << 20,
            ..MemoryPlan::default()
        };
        let error = plan.check(Some(container)).unwrap_err().to_string();
        assert!(error.starts_with("training needs 420 MiB"), "{error}");
        assert!(
            error.contains("250 MiB of the container's 300 MiB are free: lower train.max_pairs")
                && error.ends_with("or raise the container's memory limit"),
            "{error}"
        );
    }

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
        packed.check(bytes(packed.total() as u64)).unwrap();
        let error = packed.check(bytes(1 << 20)).unwrap_err().to_string();
        assert!(
            error.contains("1 MiB are free") && error.contains("train.max_pairs"),
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
        let fitting = |choice, free: Option<u64>| {
            let found = MemoryPlan::fitting(choice, free.and_then(bytes), plan);
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
