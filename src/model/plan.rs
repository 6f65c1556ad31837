//! How much memory a device needs, part by part, before anything is loaded. Pure.

use std::fmt;

use super::integer::STRIPE;
use super::lora::Projection;
use super::recompute::{Recompute, head_rows};
use super::spec::ModelSpec;

/// Bytes of an f32.
const FLOAT: usize = 4;
/// Bytes of a weight, a cached value or an activation that enters a product, on a CUDA device.
const ELEMENT: usize = 2;
/// Full-size tensors of one width that a layer leaves for the backward pass, counted over candle's
/// primitives, of which our own kernels keep less: norms, residuals and projections.
const SAVED_HIDDEN: usize = 12;
/// As above, of q, k and v together: projections and rotations.
const SAVED_HEADS: usize = 7;
/// As above, of the MLP's inner width: gate, up, activation, product.
const SAVED_INNER: usize = 5;
/// As above, of the attention scores: scores, scale, cap, mask, shift, exponent, weights.
const SAVED_SCORES: usize = 7;
/// Tensors of the vocabulary's width per row of a loss, at most: logits of model and reference, their
/// roundings to 16 bits, the gradient before and after it was added to what was there.
const SAVED_LOGITS: usize = 6;
/// As above, where logits are capped: quotient, tangent, product.
const SAVED_CAPS: usize = 3;
/// What the CUDA context, cuBLAS and the modules take for themselves, measured by nobody here: a
/// guess on the safe side.
const CONTEXT: usize = 1 << 30;

/// Weights that a device keeps as a file has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of all of them.
    pub bytes: usize,
    /// Elements of the largest matrix of integers; 0 if there is none.
    pub largest: usize,
}

/// What a server is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Weights, where they are not 16 bits each.
    pub stored: Option<Stored>,
    /// Keys and values, in bytes.
    pub kv_bytes: usize,
    /// Rows of the largest step: prompt tokens of one step and running sequences.
    pub step_rows: usize,
    /// Most rows whose logits one step computes.
    pub outputs: usize,
    /// Rows of a pass that reads hidden states for probes; 0 for none.
    pub hidden_rows: usize,
    /// Generations that stay loaded.
    pub generations: usize,
    /// Training beside serving; `None` for a server that only serves.
    pub training: Option<Training>,
}

/// What a realignment holds while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    /// LoRA rank.
    pub rank: usize,
    /// Adapted layers, from the top.
    pub layers: usize,
    /// Adapted projections of each.
    pub projections: usize,
    /// Rows of one forward and backward pass.
    pub rows: usize,
    /// Most rows that see each other in them: a prompt and both its responses.
    pub longest: usize,
    /// Whether a layer's intermediate results are computed again for its gradients.
    pub recompute: bool,
}

/// Bytes by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// (what, bytes), in the order in which they are allocated.
    pub parts: Vec<(&'static str, usize)>,
}

/// A plan that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model needs {} MiB on the device, {} MiB are free: {plan}; lower engine.kv_cache_mb, \
     engine.prefill_budget_tokens or train.rank, or take a smaller model",
    .plan.total() >> 20,
    .free >> 20
)]
pub struct TooLarge {
    /// What was planned.
    pub plan: Plan,
    /// Bytes that are free.
    pub free: usize,
}

impl Plan {
    /// Adds the parts up for a model. Sizes beyond any machine come out as the largest number, not
    /// as a small one.
    pub fn new(spec: &ModelSpec, budget: &Budget) -> Self {
        let rank = budget.training.map_or(16, |t| t.rank);
        let adapter = adapter_parameters(spec, rank, spec.layers, Projection::ALL.len());
        let mut parts = vec![
            ("CUDA itself", CONTEXT),
            (
                "weights",
                budget
                    .stored
                    .map_or(spec.parameters().saturating_mul(ELEMENT), |s| s.bytes),
            ),
            ("keys and values", budget.kv_bytes),
            ("a step's activations", step(spec, budget.step_rows)),
            (
                "a step's logits",
                product(&[budget.outputs, spec.vocab_size, FLOAT]),
            ),
            ("hidden states for probes", hidden(spec, budget.hidden_rows)),
            (
                "loaded generations",
                product(&[budget.generations, adapter, FLOAT + ELEMENT]),
            ),
        ];
        if let Some(training) = &budget.training {
            parts.extend(training_parts(spec, training));
        }
        if let Some(stored) = budget.stored.filter(|s| s.largest > 0) {
            // A stripe for large products, and for training a matrix as long as a product takes.
            let whole = budget.training.map_or(0, |_| stored.largest);
            let elements = stored.largest.min(STRIPE).saturating_add(whole);
            parts.push(("unpacked integers", product(&[elements, ELEMENT])));
        }
        Self { parts }
    }

    /// The plan that fits, and whether it computes intermediate results again: under
    /// [`Recompute::Auto`] only where keeping them does not fit.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn fitting(
        spec: &ModelSpec,
        budget: &Budget,
        choice: Recompute,
        free: usize,
    ) -> Result<(Self, bool), TooLarge> {
        let with = |recompute: bool| {
            let training = budget.training.map(|t| Training { recompute, ..t });
            Plan::new(
                spec,
                &Budget {
                    training,
                    ..*budget
                },
            )
        };
        let recompute = match choice {
            Recompute::Auto => with(false).total() > free,
            Recompute::On => true,
            Recompute::Off => false,
        };
        Ok((with(recompute).check(free)?, recompute))
    }

    /// All parts.
    pub fn total(&self) -> usize {
        self.parts
            .iter()
            .fold(0, |sum: usize, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Checks the plan against what a device has left.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn check(self, free: usize) -> Result<Self, TooLarge> {
        match self.total() <= free {
            true => Ok(self),
            false => Err(TooLarge { plan: self, free }),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, bytes)) in self.parts.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{what} {} MiB", bytes >> 20)?;
        }
        Ok(())
    }
}

fn product(factors: &[usize]) -> usize {
    factors
        .iter()
        .fold(1, |all: usize, n| all.saturating_mul(*n))
}

/// Scalars of an adapter on the first `projections` projections of `layers` layers.
fn adapter_parameters(spec: &ModelSpec, rank: usize, layers: usize, projections: usize) -> usize {
    let widths = Projection::ALL.iter().take(projections).map(|p| {
        let (inner, out) = spec.projection_shape(*p);
        inner + out
    });
    product(&[rank, layers, widths.sum()])
}

/// The executor's registers.
fn step(spec: &ModelSpec, rows: usize) -> usize {
    let queries = spec.heads * spec.head_dim;
    let heads = queries + 2 * spec.kv_heads * spec.head_dim;
    let floats = 2 * spec.hidden_size + heads.max(2 * spec.intermediate_size) + queries;
    let elements = spec.hidden_size + queries.max(spec.intermediate_size);
    product(&[rows, floats * FLOAT + elements * ELEMENT])
}

/// Registers and cache of the executor that reads hidden states: a block of 16 tokens for every eight
/// rows beside the rows themselves, for what short sequences leave of their blocks.
fn hidden(spec: &ModelSpec, rows: usize) -> usize {
    let token = 2 * spec.layers * spec.kv_heads * spec.head_dim * ELEMENT;
    step(spec, rows).saturating_add(product(&[3, rows, token]))
}

fn training_parts(spec: &ModelSpec, t: &Training) -> Vec<(&'static str, usize)> {
    let parameters = adapter_parameters(spec, t.rank, t.layers, t.projections);
    let layer = layer_bytes(spec, t.rows, t.longest);
    vec![
        (
            "trained adapter, gradients and optimiser",
            product(&[parameters, 5, FLOAT]),
        ),
        ("training's activations", activations(spec, layer, t)),
        ("training's logits", logits(spec, t)),
    ]
}

/// What one layer leaves for its gradients, where candle differentiates it.
pub fn layer_bytes(spec: &ModelSpec, rows: usize, longest: usize) -> usize {
    let queries = spec.heads * spec.head_dim;
    let heads = queries + 2 * spec.kv_heads * spec.head_dim;
    let saved = SAVED_HIDDEN * spec.hidden_size
        + SAVED_HEADS * heads
        + SAVED_INNER * spec.intermediate_size;
    let scores = product(&[SAVED_SCORES, spec.heads, rows, longest, FLOAT]);
    product(&[rows, saved, FLOAT]).saturating_add(scores)
}

/// What all adapted layers hold at once, if one leaves `layer` bytes.
pub fn activations(spec: &ModelSpec, layer: usize, t: &Training) -> usize {
    match t.recompute {
        // One layer's, and their gradients. What enters each layer, what leaves the last, and the
        // gradient in it.
        true => {
            let states = product(&[t.layers + 2, t.rows, spec.hidden_size, FLOAT]);
            product(&[layer, 2]).saturating_add(states)
        }
        // Every layer's until the backward pass, and one layer's gradients.
        false => product(&[layer, t.layers + 1]),
    }
}

/// What the losses of response tokens hold at once, on a device.
pub fn logits(spec: &ModelSpec, t: &Training) -> usize {
    let rows = match t.recompute {
        true => t.rows.min(head_rows(spec.vocab_size, true)),
        false => t.rows,
    };
    let caps = spec.variant.logit_cap.map_or(0, |_| SAVED_CAPS);
    product(&[SAVED_LOGITS + caps, rows, spec.vocab_size, FLOAT])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::{SHAPES, shape};

    const GIB: usize = 1 << 30;

    fn budget(spec: &ModelSpec) -> Budget {
        Budget {
            stored: None,
            kv_bytes: 16 * GIB,
            step_rows: 256 + 64,
            outputs: 64,
            hidden_rows: 1024,
            generations: 4,
            training: Some(Training {
                rank: 16,
                layers: spec.layers,
                projections: 7,
                rows: 512,
                longest: 512,
                recompute: false,
            }),
        }
    }

    fn bytes(plan: &Plan, what: &str) -> usize {
        let part = plan.parts.iter().find(|p| p.0 == what);
        part.unwrap_or_else(|| panic!("no {what} in {plan}")).1
    }

    #[test]
    fn every_benchmark_shape_trains_beside_serving_on_one_80_gb_card() {
        // 80 GB as the driver reports them, less what other processes hold.
        for name in SHAPES {
            let spec = shape(name).unwrap();
            for choice in [Recompute::Auto, Recompute::On, Recompute::Off] {
                let plan = Plan::fitting(&spec, &budget(&spec), choice, 79 * GIB);
                assert!(plan.is_ok(), "{name}: {plan:?}");
                let (_, recompute) = plan.unwrap();
                assert_eq!(recompute, choice == Recompute::On, "{name}");
            }
        }
    }

    #[test]
    fn auto_computes_again_where_keeping_does_not_fit() {
        for name in SHAPES {
            let spec = shape(name).unwrap();
            let kept = Plan::new(&spec, &budget(&spec)).total();
            let fitting = |choice, free| Plan::fitting(&spec, &budget(&spec), choice, free);
            let (plan, recompute) = fitting(Recompute::Auto, kept).unwrap();
            assert!(!recompute && plan.total() == kept);
            // Passes of 512 rows fit a 48 GB card then, which they do not otherwise.
            let (plan, recompute) = fitting(Recompute::Auto, 46 * GIB).unwrap();
            assert!(recompute && plan.total() < kept, "{name}: {plan}");
            assert!(fitting(Recompute::Off, 46 * GIB).is_err(), "{name}");
            assert!(fitting(Recompute::Auto, 16 * GIB).is_err(), "{name}");
        }
    }

    /// The table in docs/cuda.md, line by line.
    #[test]
    fn the_documented_table_is_what_is_computed() {
        let specs = SHAPES.map(|name| shape(name).unwrap());
        let plans = |recompute: bool| {
            let plan = |spec: &ModelSpec| {
                let budget = budget(spec);
                let training = budget.training.map(|t| Training { recompute, ..t });
                Plan::new(spec, &Budget { training, ..budget })
            };
            specs.each_ref().map(plan)
        };
        let line = |what: &str, bytes: [usize; 3]| {
            let cells = bytes.map(|b| ((b as f64) / f64::from(1 << 20)).round().to_string());
            format!("| {what} | {} |", cells.join(" | "))
        };
        let [kept, again] = [plans(false), plans(true)];
        let part = |plans: &[Plan; 3], what: &str| plans.each_ref().map(|p| bytes(p, what));
        let mut lines = Vec::new();
        let of_training = ["training's activations", "training's logits"];
        for (what, _) in &kept[0].parts {
            if !of_training.contains(what) {
                lines.push(line(what, part(&kept, what)));
            }
        }
        for (form, plans) in [("kept", &kept), ("computed again", &again)] {
            for what in of_training {
                lines.push(line(&format!("{what}, {form}"), part(plans, what)));
            }
            let totals = plans.each_ref().map(Plan::total);
            lines.push(line(&format!("all, {form}"), totals));
        }
        let page = crate::test_support::root().join("docs/cuda.md");
        let page = std::fs::read_to_string(page).unwrap();
        let missing: Vec<&String> = lines.iter().filter(|l| !page.contains(*l)).collect();
        assert!(missing.is_empty(), "docs/cuda.md lacks {missing:#?}");
    }

    #[test]
    fn the_parts_are_what_their_shapes_say() {
        let spec = shape("qwen2.5-7b").unwrap();
        let plan = Plan::new(&spec, &budget(&spec));
        assert_eq!(bytes(&plan, "weights"), 7_615_616_512 * 2);
        assert_eq!(bytes(&plan, "a step's logits"), 64 * 152_064 * 4);
        // LoRA on all seven maps of 28 layers, rank 16: 40,370,176 scalars.
        assert_eq!(
            bytes(&plan, "trained adapter, gradients and optimiser"),
            40_370_176 * 20
        );
        let saved = 12 * 3584 + 7 * 4608 + 5 * 18_944;
        let layer = 512 * saved * 4 + 7 * 28 * 512 * 512 * 4;
        assert_eq!(bytes(&plan, "training's activations"), 29 * layer);
    }

    #[test]
    fn integers_take_their_bytes_and_room_to_unpack_them() {
        let spec = shape("llama-3.1-8b").unwrap();
        let floats = budget(&spec);
        let stored = Some(Stored {
            bytes: 5 * GIB,
            largest: 128_256 * 4096,
        });
        let serving = Budget {
            stored,
            training: None,
            ..floats
        };
        let plan = Plan::new(&spec, &serving);
        assert_eq!(bytes(&plan, "weights"), 5 * GIB);
        assert_eq!(bytes(&plan, "unpacked integers"), 2 * STRIPE);
        let plan = Plan::new(&spec, &Budget { stored, ..floats });
        let whole = 128_256 * 4096 + STRIPE;
        assert_eq!(bytes(&plan, "unpacked integers"), 2 * whole);
        assert!(
            Plan::new(&spec, &floats)
                .parts
                .iter()
                .all(|p| p.0 != "unpacked integers")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_parts_and_what_to_change() {
        let spec = shape("llama-3.1-8b").unwrap();
        let error = Plan::new(&spec, &budget(&spec)).check(8 * GIB).unwrap_err();
        let said = error.to_string();
        for part in [
            "weights 15316 MiB",
            "8192 MiB are free",
            "engine.kv_cache_mb",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let endless = Budget {
            kv_bytes: usize::MAX,
            ..budget(&spec)
        };
        assert_eq!(Plan::new(&spec, &endless).total(), usize::MAX);
    }
}
