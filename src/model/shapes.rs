//! Shapes of well-known models, for benchmarks with random weights: speed does not depend on the
//! values. From the models' published configurations.

use super::activation::Activation;
use super::spec::{Mixture, ModelSpec, RopeScaling, RopeSpec, Variant};

/// The names that [`shape`] knows.
pub const SHAPES: [&str; 5] = [
    "qwen2.5-7b",
    "gemma-2-9b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen3-30b-a3b",
];

/// The shape of a model; `None` for a name that is neither in [`SHAPES`] nor `tiny`, two layers to
/// try a command with.
pub fn shape(name: &str) -> Option<ModelSpec> {
    match name {
        "qwen2.5-7b" => Some(qwen()),
        "gemma-2-9b" => Some(gemma()),
        "llama-3.1-8b" => Some(llama()),
        "llama-3.2-1b" => Some(llama_1b()),
        "qwen3-30b-a3b" => Some(qwen_of_experts()),
        "tiny" => Some(tiny()),
        _ => None,
    }
}

fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 300,
        hidden_size: 64,
        intermediate_size: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        max_position: 1024,
        ..llama()
    }
}

fn llama_1b() -> ModelSpec {
    ModelSpec {
        hidden_size: 2048,
        intermediate_size: 8192,
        layers: 16,
        head_dim: 64,
        tied_embeddings: true,
        ..llama()
    }
}

fn rope(theta: f64) -> RopeSpec {
    RopeSpec {
        theta,
        scaling: RopeScaling::None,
    }
}

fn qwen() -> ModelSpec {
    ModelSpec {
        architecture: "qwen2".into(),
        vocab_size: 152_064,
        hidden_size: 3584,
        intermediate_size: 18_944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        rms_norm_eps: 1e-6,
        rope: rope(1_000_000.0),
        max_position: 32_768,
        qkv_bias: true,
        tied_embeddings: false,
        variant: Variant::default(),
    }
}

fn qwen_of_experts() -> ModelSpec {
    let layers = 48;
    ModelSpec {
        architecture: "qwen3moe".into(),
        vocab_size: 151_936,
        hidden_size: 2048,
        intermediate_size: 6144,
        layers,
        heads: 32,
        head_dim: 128,
        max_position: 40_960,
        qkv_bias: false,
        variant: Variant {
            qk_norm: true,
            mixture: Some(Mixture {
                experts: 128,
                used: 8,
                inner: 768,
                normalised: true,
                layers: vec![true; layers],
            }),
            ..Variant::default()
        },
        ..qwen()
    }
}

fn gemma() -> ModelSpec {
    let layers = 42;
    ModelSpec {
        architecture: "gemma2".into(),
        vocab_size: 256_000,
        hidden_size: 3584,
        intermediate_size: 14_336,
        layers,
        heads: 16,
        kv_heads: 8,
        head_dim: 256,
        rms_norm_eps: 1e-6,
        rope: rope(10_000.0),
        max_position: 8192,
        qkv_bias: false,
        tied_embeddings: true,
        variant: Variant {
            output_norms: true,
            activation: Activation::GeluTanh,
            embedding_scale: Some(3584f64.sqrt()),
            attention_scale_width: Some(256.0),
            attention_cap: Some(50.0),
            logit_cap: Some(30.0),
            windows: (0..layers)
                .map(|layer| (layer % 2 == 0).then_some(4096))
                .collect(),
            ..Variant::default()
        },
    }
}

fn llama() -> ModelSpec {
    ModelSpec {
        architecture: "llama".into(),
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        // Without the scaling of long contexts, which changes a table of 64 numbers.
        rope: rope(500_000.0),
        max_position: 131_072,
        qkv_bias: false,
        tied_embeddings: false,
        variant: Variant::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_that_their_models_are_known_for() {
        let counts = SHAPES.map(|name| shape(name).unwrap().parameters());
        let known = [
            7_615_616_512,
            9_241_705_984,
            8_030_261_248,
            1_235_814_400,
            30_532_122_624,
        ];
        assert_eq!(counts, known);
        assert_eq!(shape("gpt-2"), None);
    }
}
