//! Errors in a PEFT adapter's two files.

use safetensors::SafeTensorError;
use safetensors::tensor::Dtype;

use super::config::RANKS;
use super::{CONFIG_FILE, PREFIX};
use realign_core::ranges::ALPHA;
use realign_model::lora::Projection;

/// Why a file of an adapter cannot be used; names the field or the tensor.
#[derive(Debug, thiserror::Error)]
pub(in crate::adapter) enum PeftError {
    // adapter_config.json.
    #[error("not a JSON object: {source}, near `{near}`")]
    NotJson {
        near: String,
        source: serde_json::Error,
    },
    #[error("peft_type is {0:?}; only \"LORA\" is supported")]
    Type(String),
    #[error("`{field}` is {value}: {remedy}")]
    Field {
        field: String,
        value: String,
        remedy: &'static str,
    },
    #[error("{field} is {value}; it must be {RANKS}")]
    Rank { field: String, value: String },
    #[error("{field} is {value}; it must be a number {ALPHA}")]
    Alpha { field: String, value: String },
    #[error("{0} must be an object of module pattern to number")]
    Patterns(&'static str),
    #[error("{field} is {value}; it must be a list, or null")]
    Selector { field: &'static str, value: String },
    #[error(
        "{field}: {pattern:?} is no regular expression that can be read here ({source}); name the \
         modules without it"
    )]
    Pattern {
        field: &'static str,
        pattern: String,
        source: regex::Error,
    },
    // adapter_model.safetensors.
    #[error(
        "{path} has tensors, but `{field}` of {CONFIG_FILE} leaves it out, so PEFT would not apply them: \
         the two files do not belong together; copy both again from where the adapter was trained"
    )]
    LeftOut { path: String, field: &'static str },
    #[error(
        "`{field}` of {CONFIG_FILE} names {name}, and no tensor is for it: a part of the adapter is \
         missing; copy both files again from where it was trained, or remove the name"
    )]
    WithoutTensors { field: &'static str, name: String },
    #[error("not a safetensors file ({0}); copy it again from where it was trained")]
    NotSafetensors(#[from] SafeTensorError),
    #[error(
        "not a safetensors file: it has less than eight bytes; copy it again from where it was trained"
    )]
    Empty,
    #[error(
        "not a safetensors file: its header should have {length} bytes, and the file has {size}; copy it \
         again from where it was trained"
    )]
    Header { length: u64, size: u64 },
    #[error(
        "not a safetensors file: its header is damaged ({0}); copy it again from where it was trained"
    )]
    Metadata(serde_json::Error),
    #[error(
        "its header says that the file has {whole} bytes, and it has {size}; copy it again from where it was \
         trained"
    )]
    Size { whole: usize, size: u64 },
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
        "tensor {name:?} has rank {got}, but {CONFIG_FILE} says {rank} (`r` or `rank_pattern`)"
    )]
    Ranks {
        name: String,
        got: usize,
        rank: usize,
    },
    #[error(
        "tensor {name:?} is no LoRA factor of a module that can be adapted here, and leaving it out \
         would change the adapter; expected \
         {PREFIX}<layer>.<self_attn|mlp>.<module>.lora_<A|B>.weight with module one of {modules}",
        modules = Projection::ALL.map(Projection::name).join(", ")
    )]
    Module { name: String },
    #[error("tensor {name:?} is {dtype:?}; supported are F32, F16 and BF16")]
    Dtype { name: String, dtype: Dtype },
    #[error("tensor {name:?} has shape {shape:?}; expected two dimensions")]
    Shape { name: String, shape: Vec<usize> },
    #[error("tensor {name:?} holds {value}; its training diverged, train it again")]
    NotFinite { name: String, value: f32 },
    #[error("tensor {name:?}: {source}")]
    Tensor {
        name: String,
        source: candle_core::Error,
    },
}
