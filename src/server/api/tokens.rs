//! `POST /tokenize` and `POST /detokenize`, with the fields of llama.cpp's server and of vLLM.

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::chat::{chat_error, encode, messages};
use super::completions::ids;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::tools::{Layout, Tools};
use super::{AppState, blocking, body};
use realign_model::Tokenizer;

/// Tokens of `content` (llama.cpp; no begin-of-text unless `add_special`), `prompt` (vLLM; with it
/// unless `add_special_tokens` is false) or `messages`. Control literals in texts are text.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    blocking(move || {
        let fields = Fields::root(&body)?;
        let tokens = encoded(&state, &fields)?;
        let tokenizer = &state.tokenizer;
        let texts = || tokens.iter().map(|id| tokenizer.token_text(*id));
        let mut answer = json!({
            "tokens": tokens,
            "count": tokens.len(),
            "max_model_len": state.engine.max_model_len(),
        });
        if fields.boolean("with_pieces")?.unwrap_or(false) {
            let pieces = tokens.iter().map(|id| piece(tokenizer, *id));
            answer["tokens"] = pieces.collect();
        }
        if fields.boolean("return_token_strs")?.unwrap_or(false) {
            answer["token_strs"] = texts().collect();
        }
        Ok(Json(answer))
    })
    .await
}

/// A token that is no text by itself is shown as its bytes, as llama.cpp does.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = tokenizer.token_bytes(id);
    let piece = match std::str::from_utf8(bytes) {
        Ok(_) => json!(tokenizer.token_text(id)),
        Err(_) => json!(bytes),
    };
    json!({"id": id, "piece": piece})
}

fn encoded(state: &AppState, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &state.tokenizer;
    if fields.get("messages").is_some() {
        let tools = Tools::read(fields, Layout::Nested)?;
        let generate = fields.boolean("add_generation_prompt")?.unwrap_or(true);
        let messages = messages(fields)?;
        let definitions = tools.definitions();
        let tokens = match generate {
            true => encode(state, &messages, &definitions),
            false => state
                .chat
                .encode_chat_with(tokenizer, &messages, &definitions, false),
        };
        return tokens.map_err(|e| chat_error(&e, "messages"));
    }
    let (name, special, default) = match fields.get("content") {
        Some(_) => ("content", "add_special", false),
        None => ("prompt", "add_special_tokens", true),
    };
    let text = fields.string(name)?;
    let tokens = match fields.boolean(special)?.unwrap_or(default) {
        true => tokenizer.encode_prompt(text),
        false => tokenizer.encode(text, false),
    };
    tokens.map_err(|e| ApiError::field(name, e.to_string()))
}

/// The text of `tokens`, under both servers' names.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let fields = Fields::root(&body)?;
    let value = fields.required("tokens")?;
    let items = value
        .as_array()
        .ok_or_else(|| wrong_type("tokens", "an array of token ids", value))?;
    let tokens = ids(items, "tokens")?;
    let text = state.tokenizer.decode(&tokens);
    let text = text.map_err(|e| ApiError::field("tokens", e.to_string()))?;
    Ok(Json(json!({"content": text, "prompt": text})))
}
