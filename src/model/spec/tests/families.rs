//! What newer families' files say, and what is left out of them.

use serde_json::json;

use super::*;

#[test]
fn mistral_has_windows_everywhere_or_nowhere() {
    let windows = |more| read(&config("mistral", more)).unwrap().variant.windows;
    assert_eq!(windows(json!({ "sliding_window": 8 })), [Some(8); 4]);
    assert_eq!(windows(json!({})), [Some(4096); 4]);
    assert_eq!(windows(json!({ "sliding_window": null })), []);
    let kinds = ["full_attention", "sliding_attention"].repeat(2);
    let listed = read(&config(
        "ministral",
        json!({ "sliding_window": 8, "layer_types": kinds }),
    ));
    let expect = [None, Some(8), None, Some(8)];
    assert_eq!(listed.unwrap().variant.windows, expect);
    // Llama's library has no windows, whatever its file says.
    let llama = read(&config("llama", json!({ "sliding_window": 8 })));
    assert_eq!(llama.unwrap().variant.windows, []);
}

#[test]
fn the_text_part_of_a_multimodal_model_says_what_it_is() {
    let text = config(
        "ministral3",
        json!({ "head_dim": 8, "sliding_window": null }),
    );
    let multimodal = json!({ "model_type": "mistral3", "text_config": text });
    assert_eq!(read(&multimodal).unwrap().architecture, "mistral3");
}

#[test]
fn every_fourth_layer_of_smollm3_is_not_rotated_unless_listed() {
    let still = |more| {
        let spec = read(&config("smollm3", more)).unwrap();
        let layers = 0..4;
        let still = layers.filter(|layer| {
            let shape = spec.attention(*layer);
            spec.rope_of(&shape).frequencies(8) == [0.0; 4]
        });
        still.collect::<Vec<usize>>()
    };
    assert_eq!(still(json!({})), [3]);
    assert_eq!(still(json!({ "no_rope_layer_interval": 2 })), [1, 3]);
    assert_eq!(still(json!({ "no_rope_layers": [0, 1, 1, 1, 0] })), [0]);
    let short = read(&config("smollm3", json!({ "no_rope_layers": [0, 1] })));
    let error = short.unwrap_err().to_string();
    assert!(
        error.contains("no_rope_layers") && error.contains("4 entries"),
        "{error}"
    );
    assert!(read(&config("smollm3", json!({}))).unwrap().tied_embeddings);
}

#[test]
fn granites_multipliers_become_scales() {
    let spec = read(&config(
        "granite",
        json!({
            "embedding_multiplier": 12.0, "residual_multiplier": 0.5,
            "attention_multiplier": 0.0625, "logits_scaling": 8.0,
        }),
    ));
    let spec = spec.unwrap();
    assert_eq!(spec.variant.embedding_scale, Some(24.0));
    assert_eq!(spec.rms_norm_eps, 4e-6);
    assert_eq!(spec.attention(0).scale, 0.0625);
    assert_eq!(spec.variant.logit_divisor, Some(8.0));
    let zero = read(&config("granite", json!({ "residual_multiplier": 0.0 })));
    let error = zero.unwrap_err().to_string();
    assert!(
        error.contains("residual_multiplier") && error.contains("positive"),
        "{error}"
    );
}

/// Phi-4-mini's file, in small: the stretch is beside the block, and the share of a head too.
#[test]
fn phi_rotates_a_part_of_a_head_and_serves_its_original_context() {
    let phi = json!({
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [4.0, 5.0, 6.0],
        },
    });
    let spec = read(&config("phi3", phi.clone())).unwrap();
    assert_eq!((spec.rotary_width(), spec.max_position), (6, 64));
    let plain = RopeSpec::plain(1e4).frequencies(6);
    let stretched = spec.rope.frequencies(6);
    assert_eq!(stretched[0], plain[0]);
    assert!((stretched[2] * 2.0 - plain[2]).abs() < 1e-9);
    let amplitude = (1.0 + 2f64.ln() / 64f64.ln()).sqrt();
    assert!((spec.rope.amplitude() - amplitude).abs() < 1e-12);
    for (field, value, says) in [
        ("partial_rotary_factor", json!(0.5), "divisors"),
        ("partial_rotary_factor", json!(1.5), "an even number"),
        ("partial_rotary_factor", json!(-1), "an even number"),
        (
            "rope_scaling",
            json!({ "type": "longrope" }),
            "short_factor",
        ),
    ] {
        let mut wrong = phi.clone();
        wrong[field] = value;
        let error = read(&config("phi3", wrong)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
    let yarn = |more: Value| {
        let mut block =
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
        for (key, value) in more.as_object().unwrap() {
            block[key] = value.clone();
        }
        let rope = json!({ "rope_scaling": block, "rope_theta": 100.0, "head_dim": 16 });
        read(&config("qwen2", rope)).map(|spec| spec.rope)
    };
    let plain = RopeSpec::plain(100.0).frequencies(16);
    let wide = yarn(json!({ "beta_fast": 2.0, "beta_slow": 0.5 })).unwrap();
    let stretched = wide.frequencies(16);
    assert_eq!(stretched[0], plain[0]);
    assert!((stretched[7] * 4.0 - plain[7]).abs() < 1e-9);
    assert!((wide.amplitude() - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12);
    let given = yarn(json!({ "attention_factor": 0.5 })).unwrap();
    assert_eq!(given.amplitude(), 0.5);
    let equal = yarn(json!({ "mscale": 1.0, "mscale_all_dim": 1.0 })).unwrap();
    assert_eq!(equal.amplitude(), 1.0);
    let error = yarn(json!({ "factor": -1.0 })).unwrap_err().to_string();
    assert!(
        error.contains("factor") && error.contains("positive"),
        "{error}"
    );
}

#[test]
fn well_known_families_that_cannot_be_read_are_refused_by_what_they_need() {
    for (name, needs) in [
        ("qwen2_moe", "mixture-of-experts"),
        ("qwen3_5", "linear attention"),
        ("gemma4", "per-layer embeddings"),
        ("mixtral", "mixture-of-experts"),
    ] {
        let error = read(&config(name, json!({}))).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{name}`"))
                && error.contains(needs)
                && error.contains("granite"),
            "{error}"
        );
    }
}

#[test]
fn experts_are_read_with_the_layers_that_have_some() {
    let moe = |more: Value| {
        let mut fields = json!({
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16,
            "norm_topk_prob": true, "sliding_window": 4,
        });
        for (field, value) in more.as_object().unwrap() {
            fields[field] = value.clone();
        }
        read(&config("qwen3_moe", fields))
    };
    let spec = moe(json!({})).unwrap();
    let mixture = spec.mixture(3).unwrap();
    assert_eq!((mixture.experts, mixture.used, mixture.inner), (8, 2, 16));
    assert!(mixture.normalised && spec.variant.qk_norm && spec.variant.windows.is_empty());
    assert_eq!(
        (spec.architecture.as_str(), spec.inner_width()),
        ("qwen3moe", 32)
    );
    let dense = read(&config("qwen3", json!({ "head_dim": 16 }))).unwrap();
    let (mlp, experts) = (3 * 32 * 48, 8 * (3 * 32 * 16 + 32));
    assert_eq!(
        spec.parameters() - 4 * experts,
        dense.parameters() - 4 * mlp
    );
    let site = |projection| LoraSite {
        layer: 0,
        projection,
    };
    assert_eq!(spec.site_shape(site(Projection::Gate)), None);
    assert!(spec.site_shape(site(Projection::O)).is_some());
    let layers = |more: Value| moe(more).unwrap().variant.mixture.unwrap().layers;
    assert_eq!(
        layers(json!({ "decoder_sparse_step": 2 })),
        [false, true, false, true]
    );
    let listed = layers(json!({ "mlp_only_layers": [0, 2, 9] }));
    assert_eq!(listed, [false, true, false, true]);
    let renamed = moe(json!({ "num_experts": null, "num_local_experts": 8 }));
    assert_eq!(renamed.unwrap(), spec);
    for (more, field) in [
        (json!({ "num_experts": null }), "num_experts"),
        (json!({ "num_experts": 1 << 20 }), "num_experts"),
        (json!({ "num_experts_per_tok": 9 }), "num_experts_per_tok"),
        (json!({ "num_experts_per_tok": 0 }), "num_experts_per_tok"),
        (
            json!({ "moe_intermediate_size": 0 }),
            "moe_intermediate_size",
        ),
        (json!({ "decoder_sparse_step": 0 }), "decoder_sparse_step"),
        (json!({ "mlp_only_layers": 3 }), "mlp_only_layers"),
        (json!({ "n_shared_experts": 1 }), "n_shared_experts"),
        (json!({ "scoring_func": "sigmoid" }), "scoring_func"),
        (
            json!({ "routed_scaling_factor": 2.5 }),
            "routed_scaling_factor",
        ),
    ] {
        let error = moe(more).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
}
