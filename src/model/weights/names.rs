//! What tensors are called: Hugging Face's names, and how files of other makers spell them.

use crate::spec::ModelSpec;

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const FINAL_NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// The norms of a layer, below `model.layers.<i>.`.
pub(super) struct LayerNorms {
    /// Before attention.
    pub attention: &'static str,
    /// Before the MLP.
    pub mlp: &'static str,
    /// After attention and after the MLP.
    pub outputs: Option<[&'static str; 2]>,
}

impl LayerNorms {
    /// `post_attention_layernorm` stands before the MLP in Llama and after attention in Gemma.
    pub(super) fn of(spec: &ModelSpec) -> Self {
        match spec.variant.output_norms {
            false => Self {
                attention: "input_layernorm",
                mlp: "post_attention_layernorm",
                outputs: None,
            },
            true => Self {
                attention: "input_layernorm",
                mlp: "pre_feedforward_layernorm",
                outputs: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
            },
        }
    }
}

/// Whether converters to GGUF permute the rows of q and k of an architecture, for GGML's rotary
/// layout of neighbouring columns.
pub(super) fn is_permuted(architecture: &str) -> bool {
    ["llama", "mistral3", "smollm3", "granite"].contains(&architecture)
}

/// How a file spells Hugging Face's names.
pub(super) enum Names {
    /// As GGUF converters do.
    Gguf {
        /// Whether layers have norms on their outputs, which changes what one name means.
        output_norms: bool,
    },
    /// As they are, but for the prefixes of a decoder inside a multimodal model.
    Safetensors {
        /// Instead of `model.`.
        model: &'static str,
        /// Instead of `lm_head.`.
        head: &'static str,
    },
}

impl Names {
    pub(crate) fn gguf(output_norms: bool) -> Self {
        Names::Gguf { output_norms }
    }

    /// Finds the prefixes by where the token embedding is.
    pub(crate) fn safetensors(contains: impl Fn(&str) -> bool) -> Self {
        const PREFIXES: [(&str, &str); 3] = [
            ("model.", "lm_head."),
            ("language_model.model.", "language_model.lm_head."),
            ("model.language_model.", "lm_head."),
        ];
        let embedding = EMBEDDING.trim_start_matches("model.");
        let found = PREFIXES
            .into_iter()
            .find(|(model, _)| contains(&format!("{model}{embedding}")));
        let (model, head) = found.unwrap_or(PREFIXES[0]);
        Names::Safetensors { model, head }
    }

    /// The name in the file.
    pub(crate) fn stored(&self, name: &str) -> String {
        match self {
            Names::Gguf { output_norms } => gguf_name(name, *output_norms),
            Names::Safetensors { model, head } => {
                for (plain, prefix) in [("model.", model), ("lm_head.", head)] {
                    if let Some(rest) = name.strip_prefix(plain) {
                        return format!("{prefix}{rest}");
                    }
                }
                name.into()
            }
        }
    }
}

/// The GGUF name of a Hugging Face tensor name.
fn gguf_name(name: &str, output_norms: bool) -> String {
    match name {
        EMBEDDING => return "token_embd.weight".into(),
        FINAL_NORM => return "output_norm.weight".into(),
        HEAD => return "output.weight".into(),
        _ => {}
    }
    let after_attention = match output_norms {
        true => "post_attention_norm",
        false => "ffn_norm",
    };
    let parts = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        // In such a file, `ffn_up` is both.
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate.", "ffn_gate_inp."),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", after_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ];
    parts
        .iter()
        .fold(name.to_string(), |name, (hf, gguf)| name.replace(hf, gguf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_names_follow_the_converter() {
        let norm = "model.layers.0.post_attention_layernorm.weight";
        for (hf, output_norms, gguf) in [
            (EMBEDDING, false, "token_embd.weight"),
            (
                "model.layers.7.self_attn.q_proj.bias",
                false,
                "blk.7.attn_q.bias",
            ),
            (
                "model.layers.7.self_attn.k_norm.weight",
                false,
                "blk.7.attn_k_norm.weight",
            ),
            (
                "model.layers.0.mlp.down_proj.weight",
                false,
                "blk.0.ffn_down.weight",
            ),
            (norm, false, "blk.0.ffn_norm.weight"),
            (norm, true, "blk.0.post_attention_norm.weight"),
            (
                "model.layers.3.pre_feedforward_layernorm.weight",
                true,
                "blk.3.ffn_norm.weight",
            ),
            (
                "model.layers.0.input_layernorm.weight",
                false,
                "blk.0.attn_norm.weight",
            ),
            (HEAD, false, "output.weight"),
            (
                "model.layers.2.mlp.gate.weight",
                false,
                "blk.2.ffn_gate_inp.weight",
            ),
            (
                "model.layers.2.mlp.experts.down_proj.weight",
                false,
                "blk.2.ffn_down_exps.weight",
            ),
        ] {
            assert_eq!(Names::gguf(output_norms).stored(hf), gguf);
        }
    }

    #[test]
    fn a_decoder_inside_a_multimodal_model_is_found() {
        for (embedding, norm, head) in [
            ("model.embed_tokens.weight", "model.norm.weight", HEAD),
            (
                "language_model.model.embed_tokens.weight",
                "language_model.model.norm.weight",
                "language_model.lm_head.weight",
            ),
            (
                "model.language_model.embed_tokens.weight",
                "model.language_model.norm.weight",
                HEAD,
            ),
            ("nothing", FINAL_NORM, HEAD),
        ] {
            let names = Names::safetensors(|name| name == embedding);
            assert_eq!(names.stored(FINAL_NORM), norm);
            assert_eq!(names.stored(HEAD), head);
        }
    }
}
