//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, with the fields of llama.cpp's server and of vLLM.

use axum::Json;
use axum::extract::{Request, State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::answers::client::{
    AddedToken, PieceText, Text, TokenList, TokenPiece, TokenizerInfo, Tokens,
};
use super::chat::{Message, chat_error, conversation};
use super::completions::TokenIds;
use super::error::ApiError;
use super::request::{self, List};
use super::sent;
use super::template::TemplateFields;
use super::tools::{NestedTool, ToolFields, Tools};
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
    #[serde(rename = "..template")]
    #[schemars(flatten)]
    template: TemplateFields,
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
        let json = body;
        let body: Body = request::read(&json)?;
        let (with_pieces, with_texts) = (body.with_pieces, body.return_token_strs);
        let ids = encoded(&state, body, &json)?;
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

fn encoded(state: &AppState, body: Body, json: &Value) -> Result<Vec<u32>, ApiError> {
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
