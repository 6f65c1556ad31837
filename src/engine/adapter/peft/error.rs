//! Errors in a PEFT adapter's two files.

use safetensors::SafeTensorError;
use safetensors::tensor::Dtype;

use super::{CONFIG_FILE, PREFIX};
use realign_model::lora::Projection;

/// Why a file of an adapter cannot be used; names the field or the tensor.
#[derive(Debug, thiserror::Error)]
pub(in crate::adapter) enum PeftError {
    // adapter_config.json.
    #[error("not a JSON object: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("peft_type is {0:?}; only \"LORA\" is supported")]
    Type(String),
    #[error("{0} is set; only plain LoRA is supported, so train the adapter without it")]
    NotPlain(&'static str),
    #[error("bias is {0:?}; only \"none\" is supported")]
    Bias(String),
    #[error("r (the rank) must be a whole number from 1 to 1024")]
    Rank,
    #[error("lora_alpha must be a positive number")]
    Alpha,
    #[error("{0} must be an object of module pattern to number")]
    Patterns(&'static str),
    #[error("{field}[{pattern:?}] must be a positive number")]
    PatternNumber {
        field: &'static str,
        pattern: String,
    },
    #[error("{field}[{pattern:?}] is no regular expression: {source}")]
    Pattern {
        field: &'static str,
        pattern: String,
        source: regex::Error,
    },
    // adapter_model.safetensors.
    #[error("not a safetensors file ({0}); copy it again from where it was trained")]
    NotSafetensors(#[from] SafeTensorError),
    #[error("no LoRA tensors in it")]
    NoTensors,
    #[error("tensor {0:?} stands for a factor that another tensor gave")]
    Twice(String),
    #[error("tensor {path}.{missing}.weight is missing beside its {present}")]
    Half {
        path: String,
        missing: &'static str,
        present: &'static str,
    },
    #[error(
        "{path}: lora_A has rank {a} and lora_B rank {b}, but {CONFIG_FILE} says {rank} \
         (`r` or `rank_pattern`)"
    )]
    Ranks {
        path: String,
        a: usize,
        b: usize,
        rank: usize,
    },
    #[error(
        "tensor {name:?} is for a module this model cannot adapt; expected \
         {PREFIX}<layer>.<self_attn|mlp>.<module>.lora_<A|B>.weight with module one of {modules}",
        modules = Projection::ALL.map(Projection::name).join(", ")
    )]
    Module { name: String },
    #[error("tensor {name:?} is {dtype:?}; supported are F32, F16 and BF16")]
    Dtype { name: String, dtype: Dtype },
    #[error("tensor {name:?} has shape {shape:?}; expected two dimensions")]
    Shape { name: String, shape: Vec<usize> },
    #[error("tensor {0:?} holds NaN or infinite values; its training diverged, train it again")]
    NotFinite(String),
    #[error("tensor {name:?}: {source}")]
    Tensor {
        name: String,
        source: candle_core::Error,
    },
}
