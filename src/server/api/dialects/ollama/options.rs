//! `options` of Ollama's requests.

use serde_json::{Map, Value};

use super::super::super::error::ApiError;
use super::{other_than, unsupported};

/// Options that say how Ollama computes, and change nothing of what is asked.
const MACHINE: [&str; 13] = [
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "num_thread",
    "num_keep",
    "numa",
    "f16_kv",
    "logits_all",
    "num_gqa",
];

/// Options that chat completions have under other names: `(theirs, ours)`.
const OPTIONS: [(&str, &str); 10] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("repeat_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("num_predict", "max_completion_tokens"),
];

/// The fields of chat completions, and where they came from: `(ours, theirs)`.
pub(super) const NAMES: [(&str, &str); 14] = [
    ("temperature", "options.temperature"),
    ("top_p", "options.top_p"),
    ("top_k", "options.top_k"),
    ("min_p", "options.min_p"),
    ("seed", "options.seed"),
    ("stop", "options.stop"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("presence_penalty", "options.presence_penalty"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("max_completion_tokens", "options.num_predict"),
    ("response_format", "format"),
    ("reasoning_effort", "think"),
    ("enable_thinking", "think"),
    ("chat_template_kwargs", "think"),
];

/// Options that are not done, with the values at which they ask for nothing; those that only adjust
/// such an option have none.
const OTHERS: [(&str, Option<f64>); 7] = [
    ("mirostat", Some(0.0)),
    ("mirostat_tau", None),
    ("mirostat_eta", None),
    ("tfs_z", Some(1.0)),
    ("typical_p", Some(1.0)),
    ("vocab_only", Some(0.0)),
    ("embedding_only", Some(0.0)),
];

/// Penalties of repeated tokens, and the values at which they are off.
const PENALTIES: [(&str, f64); 3] = [
    ("repeat_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
];

/// The options as fields of a chat completion.
///
/// # Errors
/// For an option that asks for something else than what is done.
pub(super) fn translated(mut options: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    options.retain(|_, value| !value.is_null());
    penalties(&mut options)?;
    let mut chat = Map::new();
    for (name, value) in options {
        if MACHINE.contains(&name.as_str()) || is_off(&name, &value) {
            continue;
        }
        let Some((_, ours)) = OPTIONS.iter().find(|(theirs, _)| *theirs == name) else {
            return Err(unsupported(&format!("options.{name}")));
        };
        chat.insert((*ours).into(), value);
    }
    Ok(chat)
}

/// Whether an option asks for nothing.
fn is_off(name: &str, value: &Value) -> bool {
    let number = match value {
        Value::Bool(given) => Some(f64::from(u8::from(*given))),
        other => other.as_f64(),
    };
    match name {
        // As many as there is room for.
        "num_predict" => matches!(value.as_i64(), Some(-1 | -2)),
        // Another one each time.
        "seed" => value.as_i64() == Some(-1),
        _ => OTHERS
            .iter()
            .find(|(other, _)| *other == name)
            .is_some_and(|(_, off)| off.is_none_or(|off| number == Some(off))),
    }
}

/// Takes out what says which tokens the penalties are for: here, all of prompt and answer.
fn penalties(options: &mut Map<String, Value>) -> Result<(), ApiError> {
    let last = options.remove("repeat_last_n");
    let newlines = options.remove("penalize_newline");
    if last.as_ref().and_then(Value::as_i64) == Some(0) {
        // For none.
        PENALTIES
            .iter()
            .for_each(|(name, _)| drop(options.remove(*name)));
    }
    let penalised = PENALTIES.iter().any(|(name, off)| {
        let given = options.get(*name);
        given.is_some_and(|value| value.as_f64() != Some(*off))
    });
    let all = |last: &Value| matches!(last.as_i64(), Some(-1 | 0));
    if last.is_some_and(|last| !(all(&last) || !penalised && last.is_i64())) {
        let all = "-1, which is all of prompt and answer, and 0, which is none,";
        return Err(other_than("options.repeat_last_n", all));
    }
    let every = |given: &Value| *given == true || !penalised && given.is_boolean();
    if newlines.is_some_and(|given| !every(&given)) {
        return Err(other_than("options.penalize_newline", "`true`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn translated_from(options: Value) -> Result<Value, String> {
        let Value::Object(options) = options else {
            unreachable!("options are an object");
        };
        translated(options)
            .map(Value::Object)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn options_are_done_or_ask_for_nothing() {
        for (options, expect) in [
            (
                json!({"repeat_penalty": 1.1, "num_predict": 5}),
                json!({"repetition_penalty": 1.1, "max_completion_tokens": 5}),
            ),
            (
                json!({"num_predict": -1, "seed": -1, "num_ctx": 512, "stop": null}),
                json!({}),
            ),
            (
                json!({"num_predict": -2, "mirostat": 0, "mirostat_tau": 5.0}),
                json!({}),
            ),
            (
                json!({"tfs_z": 1, "typical_p": 1.0, "embedding_only": false}),
                json!({}),
            ),
            (
                json!({"repeat_last_n": 0, "repeat_penalty": 1.1, "presence_penalty": 1}),
                json!({}),
            ),
            (
                json!({"repeat_last_n": -1, "repeat_penalty": 1.1}),
                json!({"repetition_penalty": 1.1}),
            ),
            (
                json!({"repeat_last_n": 64, "penalize_newline": false}),
                json!({}),
            ),
            (
                json!({"repeat_last_n": 64, "repeat_penalty": 1.0}),
                json!({"repetition_penalty": 1.0}),
            ),
            (
                json!({"penalize_newline": true, "repeat_penalty": 1.1}),
                json!({"repetition_penalty": 1.1}),
            ),
            // A wrong value is left to the chat completion, which says what is allowed.
            (
                json!({"num_predict": "many"}),
                json!({"max_completion_tokens": "many"}),
            ),
        ] {
            assert_eq!(translated_from(options.clone()), Ok(expect), "{options}");
        }
    }

    #[test]
    fn what_asks_for_something_else_is_refused_by_name() {
        for (options, name) in [
            (json!({"mirostat": 1}), "mirostat"),
            (json!({"typical_p": 0.9}), "typical_p"),
            (json!({"vocab_only": true}), "vocab_only"),
            (
                json!({"repeat_last_n": 64, "repeat_penalty": 1.1}),
                "repeat_last_n",
            ),
            (
                json!({"repeat_last_n": 64, "presence_penalty": 0.5}),
                "repeat_last_n",
            ),
            (json!({"repeat_last_n": "all"}), "repeat_last_n"),
            (
                json!({"penalize_newline": false, "repeat_penalty": 1.1}),
                "penalize_newline",
            ),
            (json!({"no_such": 1}), "no_such"),
        ] {
            let error = translated_from(options.clone()).unwrap_err();
            assert!(
                error.contains(&format!("`options.{name}`")),
                "{options}: {error}"
            );
        }
    }
}
