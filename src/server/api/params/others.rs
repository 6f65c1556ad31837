//! Fields that are known and that this server does not act upon: those that change no answer are
//! accepted, the others are refused unless their value asks for nothing.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::super::request::unsupported;

/// Which values of a field are accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Passes {
    /// All: the field changes no answer.
    All,
    /// `false`, `""`, `"none"`, and empty lists and objects.
    Empty,
    /// This number, which asks for nothing.
    Number(f64),
    /// This text, which is what happens anyway.
    Text(&'static str),
    /// `true`, which is what happens anyway.
    True,
    /// `false`: an empty value asks for something.
    Never,
}

use Passes::{All, Empty, Never, Number, Text, True};

/// What is said of fields that would leave thoughts out of an answer, or among its text.
const HIDDEN: &str = " other than `true`";

/// The fields, and what to use instead of a refused one, with a leading space, or nothing.
pub(crate) const FIELDS: &[(&str, Passes, &str)] = &[
    // OpenAI
    ("client_metadata", All, ""),
    ("metadata", All, ""),
    ("prompt_cache_key", All, ""),
    ("prompt_cache_options", All, ""),
    ("prompt_cache_retention", All, ""),
    ("safety_identifier", All, ""),
    ("service_tier", All, ""),
    ("verbosity", Text("medium"), " other than `medium`"),
    ("moderation", Empty, ""),
    // vLLM
    ("cache_salt", Empty, ""),
    ("guided_decoding_backend", All, ""),
    ("include_reasoning", True, HIDDEN),
    ("priority", All, ""),
    ("request_id", All, ""),
    ("spaces_between_special_tokens", All, ""),
    ("allowed_token_ids", Empty, " (use `logit_bias`)"),
    ("bad_words_ids", Empty, " (use `bad_words`)"),
    ("chat_template", Empty, ""),
    ("documents", Empty, " (put them into a message)"),
    ("early_stopping", Empty, ""),
    ("guided_whitespace_pattern", Empty, ""),
    ("kv_transfer_params", Empty, ""),
    ("length_penalty", Number(1.0), ""),
    ("logits_processors", Empty, ""),
    ("media_io_kwargs", Empty, ""),
    ("mm_processor_kwargs", Empty, ""),
    ("repetition_detection", Empty, ""),
    ("structural_tag", Empty, ""),
    ("use_beam_search", Empty, ""),
    ("vllm_xargs", Empty, ""),
    // llama.cpp
    ("cache_prompt", All, ""),
    ("id_slot", All, ""),
    ("parse_tool_calls", All, ""),
    ("return_progress", All, ""),
    ("slot_id", All, ""),
    ("timings_per_token", All, ""),
    ("dry_allowed_length", All, ""),
    ("dry_base", All, ""),
    ("dry_multiplier", Number(0.0), ""),
    ("dry_penalty_last_n", All, ""),
    ("dry_sequence_breakers", All, ""),
    ("dynatemp_exponent", All, ""),
    ("dynatemp_range", Number(0.0), ""),
    ("grammar_lazy", Empty, ""),
    ("grammar_triggers", Empty, ""),
    // An empty list switches adapters off.
    ("lora", Never, " (`model` names a generation)"),
    ("min_keep", Number(0.0), ""),
    ("mirostat", Number(0.0), ""),
    ("mirostat_eta", All, ""),
    ("mirostat_tau", All, ""),
    ("n_discard", Number(0.0), ""),
    ("n_indent", Number(0.0), ""),
    ("n_keep", Number(0.0), ""),
    ("n_predict", Number(-1.0), " (use `max_tokens`)"),
    ("n_probs", Number(0.0), " (use `logprobs`)"),
    ("post_sampling_probs", Empty, ""),
    ("preserved_tokens", Empty, ""),
    ("repeat_penalty", Number(1.0), " (use `repetition_penalty`)"),
    ("response_fields", Empty, ""),
    // An empty list leaves out all of them, the temperature too.
    ("samplers", Never, ""),
    ("t_max_predict_ms", Number(0.0), ""),
    ("tfs_z", Number(1.0), ""),
    ("top_n_sigma", Number(-1.0), ""),
    ("typical_p", Number(1.0), ""),
    ("xtc_probability", Number(0.0), ""),
    ("xtc_threshold", All, ""),
    // Ollama: how it computes
    ("keep_alive", All, ""),
    ("main_gpu", All, ""),
    ("num_batch", All, ""),
    ("num_ctx", All, ""),
    ("num_gpu", All, ""),
    ("num_keep", All, ""),
    ("num_thread", All, ""),
    ("use_mlock", All, ""),
    ("use_mmap", All, ""),
    // SGLang, TGI, and what passes through gateways
    ("custom_logit_processor", Empty, ""),
    ("ebnf", Empty, " (use `grammar`)"),
    ("guideline", Empty, ""),
    ("lora_path", Empty, " (`model` names a generation)"),
    ("min_new_tokens", Number(0.0), " (use `min_tokens`)"),
    ("max_new_tokens", Empty, " (use `max_tokens`)"),
    ("models", Empty, ""),
    ("no_stop_trim", Empty, " (use `include_stop_str_in_output`)"),
    ("provider", All, ""),
    ("return_hidden_states", Empty, ""),
    ("rid", All, ""),
    ("separate_reasoning", True, HIDDEN),
    ("session_params", Empty, ""),
    ("stream_reasoning", True, HIDDEN),
    ("stop_regex", Empty, ""),
    ("tool_prompt", Empty, ""),
    ("transforms", Empty, ""),
    ("typical", Number(1.0), ""),
    ("usage", All, ""),
    ("watermark", Empty, ""),
];

/// Whether a field is one of these.
pub(crate) fn is_one(field: &str) -> bool {
    FIELDS.iter().any(|(name, _, _)| *name == field)
}

/// The names in [`FIELDS`].
const NAMES: [&str; FIELDS.len()] = {
    let mut names = [""; FIELDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FIELDS[i].0;
        i += 1;
    }
    names
};

impl Passes {
    fn takes(self, value: &Value) -> bool {
        match (self, value) {
            (True, value) => *value == Value::Bool(true) || value.is_null(),
            (All, _) | (_, Value::Null | Value::Bool(false)) => true,
            (Number(neutral), Value::Number(number)) => number.as_f64() == Some(neutral),
            (Text(neutral), Value::String(text)) => text == neutral,
            (Empty, Value::Array(items)) => items.is_empty(),
            (Empty, Value::Object(fields)) => fields.is_empty(),
            (Empty, Value::String(text)) => text.is_empty() || text == "none",
            (Empty | Number(_) | Text(_) | Never, _) => false,
        }
    }
}

/// Reads the [`FIELDS`] of a request.
#[derive(Clone, Debug)]
pub(crate) struct OtherFields;

impl<'de> Deserialize<'de> for OtherFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = OtherFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<OtherFields, A::Error> {
                for (_, passes, instead) in FIELDS {
                    object.next_key::<IgnoredAny>()?;
                    object.next_value_seed(Checked(*passes, instead))?;
                }
                Ok(OtherFields)
            }
        }

        deserializer.deserialize_struct("OtherFields", &NAMES, Fields)
    }
}

/// Reads one field.
struct Checked(Passes, &'static str);

impl<'de> serde::de::DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.0 == All {
            return Option::<IgnoredAny>::deserialize(deserializer).map(|_| ());
        }
        match Option::<Value>::deserialize(deserializer)? {
            Some(value) if !self.0.takes(&value) => Err(unsupported(self.1)),
            _ => Ok(()),
        }
    }
}

/// Documents the fields that have no effect; the refused ones are no part of the interface.
impl JsonSchema for OtherFields {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "OtherFields".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let harmless = FIELDS.iter().filter(|(_, passes, _)| *passes == All);
        let property = |(name, _, _): &(&str, Passes, &str)| {
            (name.to_string(), json!({"description": "Has no effect."}))
        };
        let properties: Map<String, Value> = harmless.map(property).collect();
        json_schema!({"type": "object", "properties": properties})
    }
}
