//! Errors in a line of preference data.

use super::Role;

/// Why a line is not a preference pair.
#[derive(Debug, thiserror::Error)]
pub(in crate::preferences) enum LineError {
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not a JSON object; each line holds one preference pair")]
    NotAnObject,
    // Fields, in any format.
    #[error(
        "`{0}` is missing; expected prompt or messages, chosen, rejected (or TRL, Anthropic HH, ShareGPT, PKU-SafeRLHF fields)"
    )]
    NoResponse(String),
    #[error("`{0}` is missing")]
    Missing(String),
    #[error("`prompt` (or `instruction`) is missing")]
    NoPrompt,
    #[error("`{0}` must be text")]
    NotText(String),
    #[error("`{0}` must be text or a list of messages")]
    NotMessages(String),
    #[error("`{0}` must be text or a list of texts")]
    NotLabels(String),
    #[error("`{0}` must list texts only")]
    NotTexts(String),
    #[error("`meta.holdout` must be true or false")]
    Holdout,
    // PKU-SafeRLHF.
    #[error("neither `better_response_id` nor `safer_response_id` is given")]
    NoPreferred,
    #[error("`{0}` must be 0 or 1")]
    NotAnIndex(String),
    // Messages.
    #[error(
        "a message in `{0}` needs `role` and `content`, both text (content may be a list of text parts)"
    )]
    Message(String),
    #[error("a message in `{key}` has the role `{role}`; allowed: system, user, assistant")]
    Role { key: String, role: String },
    #[error(
        "`{0}` must hold one assistant message, alone or after the messages of the prompt (the same in both responses)"
    )]
    NotOneResponse(String),
    #[error("`{0}` must end with an assistant message, since no prompt is given")]
    NoLastResponse(String),
    #[error(
        "`{0}` is text without a prompt; give `prompt`, or begin it with `Human:` and `Assistant:` turns"
    )]
    NoTurns(String),
    #[error(
        "chosen and rejected differ before their last assistant message, so they answer different prompts"
    )]
    DifferentPrompts,
    // Scores.
    #[error("`completions` must be a list")]
    Completions,
    #[error("`{0}` must be a list beside the other of `responses` and `scores`")]
    NotAList(String),
    #[error("{responses} responses have {scores} scores")]
    Lengths { responses: usize, scores: usize },
    #[error("`scores` must list numbers only")]
    NotNumbers,
    #[error("a completion needs `response`, a text")]
    CompletionText,
    #[error("a completion needs `overall_score`, or `annotations` with ratings")]
    CompletionScore,
    #[error("a preference needs at least two scored responses")]
    OneScored,
    #[error("all scores are equal, so they state no preference")]
    EqualScores,
    #[error(
        "score_chosen {chosen} is not above score_rejected {rejected}, so the pair states no preference"
    )]
    Contradicted { chosen: f64, rejected: f64 },
    // The pair as a whole.
    #[error("the prompt has no messages")]
    EmptyPrompt,
    #[error("the last message of the prompt has the role {}; it must be user", .0.as_str())]
    LastRole(Role),
    #[error("the prompt is blank")]
    BlankPrompt,
    #[error("the {0} response is blank")]
    BlankResponse(&'static str),
    #[error("chosen and rejected are the same, so the pair states no preference")]
    Same,
}
