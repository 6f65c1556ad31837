//! Which fields of `adapter_config.json` are known, and which of their values leave an adapter a plain
//! LoRA on an unchanged base model.
//!
//! The fields are those of `LoraConfig` in PEFT 0.3 to 0.21. A field that is missing here may mean
//! anything, so it is accepted only where it says nothing.

use serde_json::{Map, Value};

use super::error::PeftError;

/// What a known field may say.
#[derive(Clone, Copy)]
enum Allowed {
    /// Read elsewhere, or without effect on what the adapter computes.
    Anything,
    /// `true`, `false` or nothing.
    Flag,
    /// A probability, which acts in training only.
    Probability,
    /// One of these, or nothing.
    Texts(&'static [&'static str]),
    /// `true`, `false`, nothing, or the name of an initialisation that leaves the base as it is.
    Initialisation,
    /// Nothing: it asks for more than plain LoRA.
    Unset,
    /// Nothing: it says that the base's own weights were changed.
    UnchangedBase,
}

use Allowed::*;

const KNOWN: [(&str, Allowed); 43] = [
    // Read by `PeftConfig`.
    ("alpha_pattern", Anything),
    ("base_model_name_or_path", Anything),
    ("exclude_modules", Anything),
    ("layers_to_transform", Anything),
    ("lora_alpha", Anything),
    ("peft_type", Anything),
    ("r", Anything),
    ("rank_pattern", Anything),
    ("target_modules", Anything),
    ("use_rslora", Flag),
    // Where it comes from and how it was trained.
    ("auto_mapping", Anything),
    ("eva_config", Anything),
    ("inference_mode", Anything),
    ("lora_dropout", Probability),
    ("megatron_core", Anything),
    ("peft_version", Anything),
    ("qalora_group_size", Anything),
    ("revision", Anything),
    ("runtime_config", Anything),
    // Plain LoRA on a causal language model.
    ("bias", Texts(&["none"])),
    ("init_lora_weights", Initialisation),
    ("layers_pattern", Texts(&["layers"])),
    ("task_type", Texts(&["CAUSAL_LM"])),
    // More than plain LoRA.
    ("alora_invocation_tokens", Unset),
    ("arrow_config", Unset),
    ("enable_lora", Unset),
    ("ensure_weight_tying", Unset),
    ("fan_in_fan_out", Unset),
    ("layer_replication", Unset),
    ("lora_bias", Unset),
    ("megatron_config", Unset),
    ("modules_to_save", Unset),
    ("monteclora_config", Unset),
    ("target_parameters", Unset),
    ("trainable_token_indices", Unset),
    ("use_bdlora", Unset),
    ("use_dora", Unset),
    ("use_qalora", Unset),
    ("velora_config", Unset),
    // Training began by changing the base.
    ("corda_config", UnchangedBase),
    ("kasa_config", UnchangedBase),
    ("loftq_config", UnchangedBase),
    ("lora_ga_config", UnchangedBase),
];

/// Initialisations of the factors alone. `pissa`, `olora`, `corda`, `loftq` and `lora_ga` subtract
/// from the base's weights what they put into the factors.
const INITIALISATIONS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// Checks every field of a configuration.
///
/// # Errors
/// [`PeftError`], naming the first field that may change the result, its value, and what to do.
pub(super) fn check(fields: &Map<String, Value>) -> Result<(), PeftError> {
    for (name, value) in fields {
        let known = KNOWN.iter().find(|(known, _)| known == name);
        let remedy = match known {
            _ if is_unset(value) => continue,
            Some((_, allowed)) if allowed.accepts(value) => continue,
            Some((_, allowed)) => allowed.remedy(),
            None => {
                "this version does not know the field, so it may change what the adapter computes; \
                 remove it if it does not, or train the adapter without it"
            }
        };
        return Err(PeftError::Field {
            field: name.clone(),
            value: excerpt(value),
            remedy,
        });
    }
    Ok(())
}

impl Allowed {
    fn accepts(self, value: &Value) -> bool {
        let among =
            |names: &[&str], value: &Value| value.as_str().is_some_and(|v| names.contains(&v));
        match self {
            Anything => true,
            Flag => value.is_boolean(),
            Probability => value.as_f64().is_some_and(|p| (0.0..=1.0).contains(&p)),
            Texts(names) => match value {
                Value::Array(items) => items.iter().all(|item| among(names, item)),
                one => among(names, one),
            },
            Initialisation => value.is_boolean() || among(&INITIALISATIONS, value),
            Unset | UnchangedBase => false,
        }
    }

    /// What to do about a value that is not accepted.
    fn remedy(self) -> &'static str {
        match self {
            Anything | Flag => "allowed are true and false",
            Probability => "it must be a number from 0 to 1",
            Texts(_) | Unset => {
                "only plain LoRA of a causal language model is supported, so train the adapter without it"
            }
            Initialisation | UnchangedBase => {
                "training so begins by changing the base's own weights, and on the unchanged base the \
                 adapter computes something else; convert it with PEFT's \
                 save_pretrained(..., path_initial_model_for_weight_conversion=...), which sets \
                 init_lora_weights to true, and remove the method's own configuration"
            }
        }
    }
}

/// Whether a value says nothing: null, false, or empty.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value as JSON, cut to what fits a message.
pub(super) fn excerpt(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
