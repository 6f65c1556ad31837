//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with the fields of llama.cpp's server and of vLLM.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::client::{
    AddedToken, PieceText, Text, TokenList, TokenPiece, TokenizerInfo, Tokens,
};
use super::chat::{Message, chat_error, conversation};
use super::completions::TokenIds;
use super::error::ApiError;
use super::request::{self, List, ModelName, Unknown};
use super::sent;
use super::template::TemplateFields;
use super::tools::{NestedTool, ToolFields, Tools};
use super::{AppState, blocking, body, models};
use realign_model::Tokenizer;
use realign_model::tokenizer::TokenizerError;

/// The input to tokenize: one of `messages`, `content` and `prompt`.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "TokenizeRequest", extend("anyOf" = [
    {"required": ["content"]}, {"required": ["prompt"]}, {"required": ["messages"]},
], "additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    /// All models that are served here have one tokenizer; another one is a 404.
    model: Option<ModelName>,
    #[serde(rename = "..tools")]
    #[schemars(flatten)]
    tools: ToolFields,
    #[serde(rename = "..template")]
    #[schemars(flatten)]
    template: TemplateFields,
    #[schemars(extend("minItems" = 1))]
    messages: Option<List<Message>>,
    /// A text, under the name used by llama.cpp's server.
    content: Option<String>,
    /// A text, under the name used by vLLM.
    prompt: Option<String>,
    /// Whether the text begins with the begin-of-text token. Default: false for `content`, true for
    /// `prompt`; the chat template decides for `messages`.
    add_special: Option<bool>,
    /// The same, under the name used by vLLM.
    add_special_tokens: Option<bool>,
    /// Whether control tokens that the text spells out are control tokens. Default false.
    parse_special: Option<bool>,
    /// Whether to return each token with its text.
    with_pieces: Option<bool>,
    /// Whether to return the tokens' texts as a separate list.
    return_token_strs: Option<bool>,
}

/// `POST /tokenize`. Special tokens spelled out in texts are plain text, unless `parse_special` is set.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    blocking(move || {
        let json = body;
        let (body, mut unknown): (Body, Unknown) = request::read_all(&json)?;
        unknown.without(|field| sent::is_shown(field, &state.chat, "].function"));
        unknown.check(state.unknown_fields)?;
        check_model(&state, body.model.as_ref())?;
        let (with_pieces, with_texts) = (body.with_pieces, body.return_token_strs);
        let ids = encoded(&state, body, &json)?;
        let tokenizer = &state.tokenizer;
        let text = |id: &u32| tokenizer.token_text(*id).to_string();
        let answer = Json(Tokens {
            count: ids.len(),
            max_model_len: state.engine.max_model_len(),
            token_strs: with_texts
                .unwrap_or(false)
                .then(|| ids.iter().map(text).collect()),
            tokens: if with_pieces.unwrap_or(false) {
                TokenList::Pieces(ids.iter().map(|id| piece(tokenizer, *id)).collect())
            } else {
                TokenList::Ids(ids)
            },
        });
        Ok(unknown.named_in(answer.into_response()))
    })
    .await
}

/// Refuses the name of a model that is not served.
fn check_model(state: &AppState, model: Option<&ModelName>) -> Result<(), ApiError> {
    model.map_or(Ok(()), |ModelName(name)| {
        models::resolve(state, name).map(drop)
    })
}

/// Fields that are for conversations only.
const OF_MESSAGES: [&str; 8] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "enable_thinking",
    "reasoning_effort",
];

/// Refuses a second input, and fields that are for another one.
fn check_input(body: &Body, json: &Value) -> Result<(), ApiError> {
    let inputs = [
        ("messages", body.messages.is_some()),
        ("content", body.content.is_some()),
        ("prompt", body.prompt.is_some()),
    ];
    let mut given = inputs.iter().filter(|(_, given)| *given);
    let first = given.next().map(|(name, _)| *name);
    if let (Some(first), Some((second, _))) = (first, given.next()) {
        let message = format!("`{second}` and `{first}` are both given; send one of them");
        return Err(ApiError::field(*second, message));
    }
    if first != Some("messages") {
        let asks = |name: &&&str| {
            json.get(**name)
                .is_some_and(|v| !v.is_null() && *v != json!([]))
        };
        return match OF_MESSAGES.iter().find(asks) {
            Some(name) => Err(ApiError::field(
                *name,
                format!("`{name}` is for `messages`; texts are taken as they are"),
            )),
            None => Ok(()),
        };
    }
    for (name, value) in [
        ("add_special", body.add_special),
        ("add_special_tokens", body.add_special_tokens),
        ("parse_special", body.parse_special),
    ] {
        if value == Some(true) {
            let detail = " of `messages` (the chat template writes the control tokens)".into();
            let param = name.into();
            return Err(ApiError::Unsupported { param, detail });
        }
    }
    Ok(())
}

/// A token with its text, or with its bytes if those are not valid UTF-8, as in llama.cpp.
fn piece(tokenizer: &Tokenizer, id: u32) -> TokenPiece {
    let bytes = tokenizer.token_bytes(id);
    let piece = match std::str::from_utf8(bytes) {
        Ok(_) => PieceText::Text(tokenizer.token_text(id).to_string()),
        Err(_) => PieceText::Bytes(bytes.to_vec()),
    };
    TokenPiece { id, piece }
}

fn encoded(state: &AppState, body: Body, json: &Value) -> Result<Vec<u32>, ApiError> {
    check_input(&body, json)?;
    let tokenizer = &state.tokenizer;
    if let Some(messages) = body.messages {
        let mut tools = Tools::check(body.tools)?;
        sent::functions::<NestedTool>(&mut tools, json.get("tools"));
        let messages = conversation(messages, json.get("messages"))?;
        let definitions = tools.definitions();
        let turn = body.template.turn(&state.chat)?;
        return state
            .chat
            .encode_chat_with(tokenizer, &messages, &definitions, &turn)
            .map_err(|e| chat_error(&e, "messages"));
    }
    let begin = request::same([
        ("add_special", body.add_special),
        ("add_special_tokens", body.add_special_tokens),
    ])?;
    let (name, text, begins) = match (body.content, body.prompt) {
        (Some(content), _) => ("content", content, begin.unwrap_or(false)),
        (None, Some(prompt)) => ("prompt", prompt, begin.unwrap_or(true)),
        (None, None) => {
            return Err(ApiError::field("prompt", "the field `prompt` is required"));
        }
    };
    let tokens = match (body.parse_special.unwrap_or(false), begins) {
        (true, begins) => tokenizer.encode_templated(&text, begins),
        (false, true) => tokenizer.encode_prompt(&text),
        (false, false) => tokenizer.encode(&text, false),
    };
    tokens.map_err(|e| ApiError::field(name, e.to_string()))
}

/// `GET /tokenizer_info`, as vLLM has it: off unless the operator allows it, because a template may be
/// secret.
pub(crate) async fn info(State(state): State<AppState>) -> Result<Json<TokenizerInfo>, ApiError> {
    if !state.tokenizer_info {
        return Err(ApiError::NotFound(
            "the operator of this server does not show its tokenizer (server.tokenizer_info)"
                .into(),
        ));
    }
    let tokenizer = &state.tokenizer;
    let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id));
    let added = |(id, literal): (u32, &str)| {
        let content = literal.to_owned();
        let special = true;
        (id, AddedToken { content, special })
    };
    Ok(Json(TokenizerInfo {
        chat_template: state.chat.source().map(str::to_owned),
        bos_token: text(tokenizer.bos_id()),
        eos_token: text(tokenizer.eos_id()),
        model_max_length: state.engine.max_model_len(),
        vocab_size: tokenizer.vocab_size(),
        added_tokens_decoder: tokenizer.control_tokens().map(added).collect(),
    }))
}

/// The tokens to convert to text.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "DetokenizeRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct DetokenizeBody {
    /// As in `TokenizeRequest`.
    model: Option<ModelName>,
    tokens: TokenIds,
}

/// The text of these tokens. Control tokens are written as they are spelled: what a chat template wrote is
/// read again.
fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, TokenizerError> {
    let mut bytes = Vec::with_capacity(ids.len() * 4);
    for &id in ids {
        tokenizer.check_id(id)?;
        match tokenizer.is_control(id) {
            true => bytes.extend_from_slice(tokenizer.token_text(id).as_bytes()),
            false => bytes.extend_from_slice(tokenizer.token_bytes(id)),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `POST /detokenize`: the text of `tokens`, under the field names of both servers.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    blocking(move || {
        let (body, unknown): (DetokenizeBody, Unknown) = request::read_all(&body)?;
        unknown.check(state.unknown_fields)?;
        check_model(&state, body.model.as_ref())?;
        let TokenIds(tokens) = body.tokens;
        let decoded = spelled(&state.tokenizer, &tokens);
        let text = decoded.map_err(|e| ApiError::field("tokens", e.to_string()))?;
        let answer = Json(Text {
            content: text.clone(),
            prompt: text,
        });
        Ok(unknown.named_in(answer.into_response()))
    })
    .await
}
