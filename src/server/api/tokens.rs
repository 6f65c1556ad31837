//! `POST /tokenize` and `POST /detokenize`, with the fields of llama.cpp's server and of vLLM.

use axum::Json;
use axum::extract::{Request, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::answers::client::{PieceText, Text, TokenList, TokenPiece, Tokens};
use super::chat::{Message, chat_error, conversation};
use super::completions::TokenIds;
use super::error::ApiError;
use super::request::{self, List};
use super::tools::{ToolFields, Tools};
use super::{AppState, blocking, body};
use realign_model::Tokenizer;

/// The input to tokenize: `messages`, otherwise `content`, otherwise `prompt`.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "TokenizeRequest", extend("anyOf" = [
    {"required": ["content"]}, {"required": ["prompt"]}, {"required": ["messages"]},
]))]
pub(crate) struct Body {
    #[serde(rename = "..tools")]
    #[schemars(flatten)]
    tools: ToolFields,
    /// Whether to open the assistant's turn after `messages`. Default true.
    add_generation_prompt: Option<bool>,
    #[schemars(extend("minItems" = 1))]
    messages: Option<List<Message>>,
    /// A text, under the name used by llama.cpp's server.
    content: Option<String>,
    /// Whether `content` begins with the begin-of-text token. Default false.
    add_special: Option<bool>,
    /// A text, under the name used by vLLM.
    prompt: Option<String>,
    /// Whether `prompt` begins with the begin-of-text token. Default true.
    add_special_tokens: Option<bool>,
    /// Whether to return each token with its text.
    with_pieces: Option<bool>,
    /// Whether to return the tokens' texts as a separate list.
    return_token_strs: Option<bool>,
}

/// `POST /tokenize`. Special tokens spelled out in texts are treated as plain text.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Tokens>, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    blocking(move || {
        let body: Body = request::read(&body)?;
        let (with_pieces, with_texts) = (body.with_pieces, body.return_token_strs);
        let ids = encoded(&state, body)?;
        let tokenizer = &state.tokenizer;
        let text = |id: &u32| tokenizer.token_text(*id).to_string();
        Ok(Json(Tokens {
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
        }))
    })
    .await
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

fn encoded(state: &AppState, body: Body) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &state.tokenizer;
    if let Some(messages) = body.messages {
        let tools = Tools::check(body.tools)?;
        let messages = conversation(messages)?;
        let definitions = tools.definitions();
        let generate = body.add_generation_prompt.unwrap_or(true);
        return state
            .chat
            .encode_chat_with(tokenizer, &messages, &definitions, generate)
            .map_err(|e| chat_error(&e, "messages"));
    }
    let (name, text, special) = match (body.content, body.prompt) {
        (Some(content), _) => ("content", content, body.add_special.unwrap_or(false)),
        (None, Some(prompt)) => ("prompt", prompt, body.add_special_tokens.unwrap_or(true)),
        (None, None) => {
            return Err(ApiError::field("prompt", "the field `prompt` is required"));
        }
    };
    let tokens = if special {
        tokenizer.encode_prompt(&text)
    } else {
        tokenizer.encode(&text, false)
    };
    tokens.map_err(|e| ApiError::field(name, e.to_string()))
}

/// The tokens to convert to text.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "DetokenizeRequest")]
pub(crate) struct DetokenizeBody {
    tokens: TokenIds,
}

/// `POST /detokenize`: the text of `tokens`, under the field names of both servers.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Text>, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let DetokenizeBody {
        tokens: TokenIds(tokens),
    } = request::read(&body)?;
    let text = state
        .tokenizer
        .decode(&tokens)
        .map_err(|e| ApiError::field("tokens", e.to_string()))?;
    Ok(Json(Text {
        content: text.clone(),
        prompt: text,
    }))
}
