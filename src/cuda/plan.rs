//! How much memory a device needs, part by part, before anything is loaded. Pure.

use candle_core::quantized::gguf_file;
use realign_model::memory::{Budget, Plan, Stored, Training};
use realign_model::{ModelSpec, Projection};
use realign_reference::memory::{activations, layer_bytes, logits};

use crate::integer::{STRIPE, device_bytes};

/// Bytes of an f32.
const FLOAT: usize = 4;
/// Bytes of a weight, a cached value or an activation that enters a product, on a CUDA device.
const ELEMENT: usize = 2;
/// What the CUDA context, cuBLAS and the modules take for themselves, not measured here: a
/// guess on the safe side.
const CONTEXT: usize = 1 << 30;

/// Adds the parts up for a model. Sizes beyond any machine come out as the largest number, not
/// as a small one.
pub fn plan(spec: &ModelSpec, budget: &Budget) -> Plan {
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
    Plan { parts }
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

/// What a device keeps of a GGUF file's weights, by its header.
pub fn stored(content: &gguf_file::Content) -> Stored {
    let mut all = Stored {
        bytes: 0,
        largest: 0,
    };
    for info in content.tensor_infos.values() {
        let elements = info.shape.elem_count();
        let (bytes, integers) = match info.shape.dims() {
            [out, columns] => device_bytes(info.ggml_dtype, (*out, *columns)),
            // Norms and biases stay f32.
            _ => (elements.saturating_mul(size_of::<f32>()), false),
        };
        all.bytes = all.bytes.saturating_add(bytes);
        if integers {
            all.largest = all.largest.max(elements);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use realign_model::Recompute;
    use realign_model::shapes::shape;

    /// The columns of the table in docs/cuda.md: models that fill a card.
    const SHAPES: [&str; 3] = ["qwen2.5-7b", "gemma-2-9b", "llama-3.1-8b"];

    use super::*;

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

    fn fitting(
        spec: &ModelSpec,
        choice: Recompute,
        free: usize,
    ) -> Result<(Plan, bool), realign_model::memory::TooLarge> {
        Plan::fitting(choice, free, |recompute| {
            plan(spec, &budget(spec).recomputing(recompute))
        })
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
                let plan = fitting(&spec, choice, 79 * GIB);
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
            let kept = plan(&spec, &budget(&spec)).total();
            let fitting = |choice, free| fitting(&spec, choice, free);
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
                plan(spec, &Budget { training, ..budget })
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
        let page = realign_model::test_support::root().join("docs/cuda.md");
        let page = std::fs::read_to_string(page).unwrap();
        let missing: Vec<&String> = lines.iter().filter(|l| !page.contains(*l)).collect();
        assert!(missing.is_empty(), "docs/cuda.md lacks {missing:#?}");
    }

    #[test]
    fn the_parts_are_what_their_shapes_say() {
        let spec = shape("qwen2.5-7b").unwrap();
        let plan = plan(&spec, &budget(&spec));
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
        let serving = plan(&spec, &serving);
        assert_eq!(bytes(&serving, "weights"), 5 * GIB);
        assert_eq!(bytes(&serving, "unpacked integers"), 2 * STRIPE);
        let training = plan(&spec, &Budget { stored, ..floats });
        let whole = 128_256 * 4096 + STRIPE;
        assert_eq!(bytes(&training, "unpacked integers"), 2 * whole);
        assert!(
            plan(&spec, &floats)
                .parts
                .iter()
                .all(|p| p.0 != "unpacked integers")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_parts_and_what_to_change() {
        let spec = shape("llama-3.1-8b").unwrap();
        let error = plan(&spec, &budget(&spec)).check(8 * GIB).unwrap_err();
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
        assert_eq!(plan(&spec, &endless).total(), usize::MAX);
    }

    #[test]
    fn a_devices_bytes_of_a_file_are_those_of_its_integers() {
        let content = realign_model::test_support::test_model();
        let spec = ModelSpec::from_gguf(std::path::Path::new("model.gguf"), &content).unwrap();
        let kept = stored(&content);
        let each = kept.bytes as f64 / spec.parameters() as f64;
        let of_file: usize = content
            .tensor_infos
            .values()
            .map(|info| {
                let kind = info.ggml_dtype;
                info.shape.elem_count() / kind.block_size() * kind.type_size()
            })
            .sum();
        // 4-bit blocks with minima, 8-bit ones without: their own bytes, a factor and the padding.
        assert!(
            kept.bytes >= of_file && kept.bytes < of_file / 25 * 27,
            "{each} a weight"
        );
        assert_eq!(kept.largest, spec.vocab_size * spec.hidden_size);
    }
}
