//! Answers of the smaller client routes and of the probes, and error bodies.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// Embeddings of texts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Embeddings {
    /// `list`.
    #[schemars(extend("const" = "list"))]
    pub(crate) object: &'static str,
    /// One per text.
    pub(crate) data: Vec<EmbeddingEntry>,
    /// `model` as it was sent.
    pub(crate) model: String,
    /// Tokens of all texts.
    pub(crate) usage: EmbeddingUsage,
}

/// The embedding of a text.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingEntry {
    /// `embedding`.
    #[schemars(extend("const" = "embedding"))]
    pub(crate) object: &'static str,
    /// The text's position in the request.
    pub(crate) index: usize,
    /// A vector of length 1.
    pub(crate) embedding: Vector,
}

/// An embedding vector.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Vector {
    /// As an array of numbers.
    Numbers(Vec<f64>),
    /// As little-endian 32-bit floats in Base64.
    Base64(String),
}

/// Token counts of all texts.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingUsage {
    /// Number of tokens.
    pub(crate) prompt_tokens: usize,
    /// The same number.
    pub(crate) total_tokens: usize,
}

/// Judgements of texts by the active policies.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Moderation {
    /// The judgement's id.
    pub(crate) id: String,
    /// `policies-` followed by the revision of the policy set.
    pub(crate) model: String,
    /// One per text.
    pub(crate) results: Vec<ModerationResult>,
}

/// The judgement of a text. Categories are `policy/rule` of every enforced rule.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ModerationResult {
    /// Whether any rule is violated.
    pub(crate) flagged: bool,
    /// Which rules are violated.
    #[schemars(with = "BTreeMap<String, bool>")]
    pub(crate) categories: Map<String, Value>,
    /// 1 for a violated rule, otherwise 0; there are no values in between.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub(crate) category_scores: Map<String, Value>,
    /// Always `text`.
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    pub(crate) category_applied_input_types: Map<String, Value>,
}

/// The tokens of a text or conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Tokens {
    /// Ids, or ids with their texts if `with_pieces` is true.
    pub(crate) tokens: TokenList,
    /// Number of tokens.
    pub(crate) count: usize,
    /// Maximum number of tokens, prompt and completion together, in a sequence.
    pub(crate) max_model_len: usize,
    /// The tokens' texts, if `return_token_strs` is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_strs: Option<Vec<String>>,
}

/// Tokens.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum TokenList {
    /// Ids.
    Ids(Vec<u32>),
    /// Ids with their texts.
    Pieces(Vec<TokenPiece>),
}

/// A token with its text.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TokenPiece {
    /// The token.
    pub(crate) id: u32,
    /// Its text.
    pub(crate) piece: PieceText,
}

/// The text of a token.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum PieceText {
    /// Text.
    Text(String),
    /// The bytes of a token that is not valid UTF-8.
    Bytes(Vec<u8>),
}

/// The model's tokenizer, as `tokenizer_config.json` files describe it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TokenizerInfo {
    /// The chat template; `null` if the model has none.
    pub(crate) chat_template: Option<String>,
    /// Begins every text, if the model has such a token.
    pub(crate) bos_token: Option<String>,
    /// The first of the tokens that end a text.
    pub(crate) eos_token: Option<String>,
    /// Maximum number of tokens, prompt and completion together, in a sequence.
    pub(crate) model_max_length: usize,
    /// Number of token ids, unused ones included.
    pub(crate) vocab_size: usize,
    /// The control tokens, by id.
    pub(crate) added_tokens_decoder: BTreeMap<u32, AddedToken>,
}

/// A control token.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct AddedToken {
    /// Its literal.
    pub(crate) content: String,
    /// Always true.
    pub(crate) special: bool,
}

/// A text, under the names that llama.cpp's server and vLLM give it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Text {
    /// The text.
    pub(crate) content: String,
    /// The same text.
    pub(crate) prompt: String,
}

/// A served name.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Model {
    /// What clients send as `model`.
    pub(crate) id: String,
    /// `model`.
    #[schemars(extend("const" = "model"))]
    pub(crate) object: &'static str,
    /// When the server started, in Unix seconds.
    pub(crate) created: u64,
    /// `realign`.
    pub(crate) owned_by: &'static str,
    /// The generation that the name currently refers to.
    pub(crate) generation: String,
    /// The policy set it was trained for; `null` for the base model.
    pub(crate) policy_revision: Option<String>,
    /// Base model and generation, as in answers.
    pub(crate) system_fingerprint: String,
    /// Maximum number of tokens, prompt and completion together, in a sequence.
    pub(crate) max_model_len: usize,
    /// Where an adapter that was loaded by name was read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<String>,
    /// The served name that such an adapter belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
}

/// The served names.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ModelList {
    /// `list`.
    #[schemars(extend("const" = "list"))]
    pub(crate) object: &'static str,
    /// The current generation, the base model, every generation in memory, and adapters loaded by name.
    pub(crate) data: Vec<Model>,
}

/// The process is alive.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// `ok`.
    #[schemars(extend("const" = "ok"))]
    pub(crate) status: &'static str,
}

/// The model is loaded and the server takes requests.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Ready {
    /// `ready`.
    #[schemars(extend("const" = "ready"))]
    pub(crate) status: &'static str,
    /// The served name.
    pub(crate) model: String,
    /// The current generation.
    pub(crate) generation: String,
}

/// An error in OpenAI's format.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Error {
    /// The error.
    pub(crate) error: ErrorBody,
}

/// An error's message, type and code.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct ErrorBody {
    /// What went wrong, for people.
    pub(crate) message: String,
    /// OpenAI's error type.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field at fault, as a path.
    pub(crate) param: Option<String>,
    /// OpenAI's error code, for programs.
    pub(crate) code: Option<&'static str>,
}
