//! What a run will take, counted before it begins.

use candle_core::Device;
use serde::Serialize;

use super::recipe::Recipe;
use super::run::ROW_BUDGET;
use realign_model::plan::{Training, activations, layer_bytes, logits};
use realign_model::recompute::head_rows;
use realign_model::{LoraSite, Model, Recompute, device};

const FLOAT: usize = size_of::<f32>();

/// Bytes that a run adds to a process that serves already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// An f32 copy of the weights; none where they are packed, or a CUDA device's.
    pub weights: usize,
    /// What the layers of one micro-batch leave for their gradients.
    pub activations: usize,
    /// Logits of one chunk of response tokens, the reference's beside them.
    pub logits: usize,
    /// Factors, their gradients and the optimiser's moments.
    pub adapter: usize,
    /// Hidden states that are kept of every pair.
    pub states: usize,
}

impl MemoryPlan {
    /// For so many rows in all pairs together. `recompute` says whether candle's passes compute a
    /// layer's intermediate results again; those on packed weights keep what they need either way.
    pub fn new(model: &Model, recipe: &Recipe, rows: usize, recompute: bool) -> Self {
        let spec = &model.spec;
        let packed = model.is_packed();
        let adapted = spec.layers - recipe.lowest_layer(spec.layers);
        let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        // Two streams, q k v, attention's output, gate and up; twice the heads where they are
        // normalised, and two outputs where those are.
        let per_row = 2 * hidden
            + heads * (1 + usize::from(spec.variant.qk_norm))
            + spec.heads * spec.head_dim
            + 2 * inner
            + 2 * hidden * usize::from(spec.variant.output_norms);
        let rows_at_once = rows.min(ROW_BUDGET.max(recipe.max_tokens * 2));
        let training = Training {
            rank: recipe.rank,
            layers: adapted,
            projections: recipe.targets.len(),
            rows: rows_at_once,
            longest: rows_at_once.min(recipe.max_tokens * 2),
            recompute,
        };
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
        let on_cpu = model.device.is_cpu();
        let working = FLOAT * rows_at_once * 4 * (inner + hidden + heads);
        // Automatic differentiation keeps every intermediate result: on the CPU, whose own kernels
        // keep no scores, about three times as much as the packed passes.
        let layer = match on_cpu {
            true => FLOAT * rows_at_once * 3 * per_row,
            false => layer_bytes(spec, rows_at_once, training.longest),
        };
        let kept = match packed {
            true => FLOAT * rows_at_once * adapted * per_row,
            false => activations(spec, layer, &training),
        };
        let chunk = match (packed, recompute) {
            (true, _) => (8 << 20).clamp(
                8 * spec.vocab_size,
                (8 * spec.vocab_size).max(rows_at_once * spec.vocab_size),
            ),
            (false, true) => {
                2 * rows_at_once.min(head_rows(spec.vocab_size, false)) * spec.vocab_size
            }
            (false, false) => rows_at_once * spec.vocab_size * 2,
        };
        Self {
            // On a device the weights that serve are those that training reads.
            weights: if packed || !on_cpu {
                0
            } else {
                model.dense_bytes()
            },
            activations: kept + working,
            logits: match on_cpu {
                true => FLOAT * 2 * chunk,
                false => logits(spec, &training),
            },
            adapter: FLOAT * factors * 5,
            states: FLOAT * rows * hidden * 2,
        }
    }

    /// The plan that fits, and whether it computes intermediate results again: under
    /// [`Recompute::Auto`] only where keeping them does not fit. `plan` makes either.
    ///
    /// # Errors
    /// [`TooLarge`] with the numbers, if none does.
    pub fn fitting(
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
    pub fn total(&self) -> usize {
        self.weights + self.activations + self.logits + self.adapter + self.states
    }

    /// Holds the plan against what there is.
    ///
    /// # Errors
    /// [`TooLarge`] with the numbers, if it does not fit.
    pub fn check(&self, available: Option<u64>) -> Result<(), TooLarge> {
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
    pub plan: MemoryPlan,
    /// What there is, in bytes.
    pub available: u64,
}

/// The bytes that a run may take: what is configured, else what is free where it computes.
pub fn limit(configured_mb: Option<u64>, at: &Device) -> Option<u64> {
    configured_mb
        .map(|mb| mb.saturating_mul(1 << 20))
        .or_else(|| match at {
            Device::Cpu => available_bytes(),
            _ => device::free_bytes(at).map(|bytes| bytes as u64),
        })
}

/// Bytes that the system can give without swapping, where it tells (Linux).
pub fn available_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use realign_model::ModelSource;

    #[test]
    fn packed_weights_need_no_copy_and_too_much_is_refused_with_numbers() {
        let files = ModelSource::parse(&realign_model::test_support::path(
            "tests/golden/families/gemma3",
        ))
        .and_then(ModelSource::fetch);
        let model = files.and_then(|f| f.load(&Device::Cpu)).unwrap();
        let recipe = Recipe::default();
        let dense = MemoryPlan::new(&model, &recipe, 10_000, false);
        let packed = MemoryPlan::new(&model.packed().unwrap(), &recipe, 10_000, false);
        assert!(packed.weights == 0 && dense.weights > 0);
        assert!(packed.total() < dense.total());
        let again = MemoryPlan::new(&model_of("gemma3"), &recipe, 10_000, true);
        assert_eq!(again, packed, "packed passes have one form");
        let twice = MemoryPlan::new(&model_of("gemma3"), &recipe, 20_000, false);
        assert_eq!(twice.states, 2 * packed.states);
        packed.check(None).unwrap();
        packed.check(Some(packed.total() as u64)).unwrap();
        let error = packed.check(Some(1 << 20)).unwrap_err().to_string();
        assert!(
            error.contains("1 MB are free") && error.contains("train.max_pairs"),
            "{error}"
        );
        assert_eq!(
            parse("MemFree: 1 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
    }

    #[test]
    fn intermediate_results_are_computed_again_where_keeping_them_does_not_fit() {
        let files = ModelSource::parse(&realign_model::test_support::path(
            "tests/golden/families/gemma3",
        ))
        .and_then(ModelSource::fetch);
        let model = files.and_then(|f| f.load(&Device::Cpu)).unwrap();
        let recipe = Recipe {
            layer_share: 1.0,
            ..Recipe::default()
        };
        let plan = |recompute| MemoryPlan::new(&model, &recipe, 10_000, recompute);
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

    fn model_of(family: &str) -> Model {
        let path = realign_model::test_support::path(&format!("tests/golden/families/{family}"));
        let files = ModelSource::parse(&path).and_then(ModelSource::fetch);
        files
            .and_then(|f| f.load(&Device::Cpu))
            .unwrap()
            .packed()
            .unwrap()
    }
}
