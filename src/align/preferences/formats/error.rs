//! Errors in a line of preference data.

use super::Role;
use realign_core::json::JsonError;

/// Why a line is not a preference pair.
#[derive(Debug, thiserror::Error)]
pub(in crate::preferences) enum LineError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("not a JSON object; each line holds one preference pair")]
    NotAnObject,
    // Fields, in any format.
    #[error(
        "`{missing}` is missing; expected prompt or messages, chosen, rejected (or the columns of TRL, OpenAI, Anthropic HH, ShareGPT, UltraFeedback or PKU-SafeRLHF); the row has {}",
        listed(columns)
    )]
    NoResponse {
        missing: &'static str,
        columns: Vec<String>,
    },
    #[error(
        "one response with a label (KTO, unpaired): a preference pair needs `chosen` and `rejected`, two responses to one prompt"
    )]
    Unpaired,
    #[error(
        "one response (supervised fine-tuning): a preference pair needs `chosen` and `rejected`, two responses to one prompt"
    )]
    Supervised,
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
    #[error("`{0}` must be true or false")]
    Holdout(&'static str),
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
    #[error(
        "a message in `{0}` has calls that are not `{{name, arguments}}`, or both `tool_calls` and `function_call`"
    )]
    Calls(String),
    #[error("a message in `{key}` has a part of type `{kind}`; only text is read")]
    Part { key: String, kind: String },
    #[error(
        "a message in `{key}` has `{field}`, which changes what it means and is not read; put it into the content, or remove it if the pair is right without it"
    )]
    Field { key: String, field: &'static str },
    #[error(
        "`{0}` is a text that shows a list of messages; give the list itself, as JSON (`json.loads`, or `ast.literal_eval` of what Python shows)"
    )]
    Shown(String),
    #[error(
        "`split` is `{0}`: give `holdout`, true for pairs that are kept for the gate, or leave the row out"
    )]
    Split(String),
    #[error("`{0}` must list functions, each with a `name`")]
    Functions(&'static str),
    #[error("`{0}` and `{1}` say different things; keep the one that is meant")]
    TwoPrompts(&'static str, &'static str),
    #[error(
        "`{key}` begins with `{mark}`: a chat template wrote it in a form that is not read; give the messages"
    )]
    Rendered { key: String, mark: &'static str },
    #[error(
        "`{0}` changes what the pair means and is not read; remove the column if the pair is right without it"
    )]
    Column(&'static str),
    #[error(
        "`{given}` is not read; if it is `{meant}`, it changes what the pair means: give the column that name, or remove it if the pair is right without it"
    )]
    Spelled { given: String, meant: &'static str },
    #[error("`{0}` must be text")]
    System(&'static str),
    #[error("the conversation has a system prompt of its own, and `{0}` is another one")]
    TwoSystems(&'static str),
    #[error("a message in `{key}` has the role `{role}`; allowed: system, user, assistant, tool")]
    Role { key: String, role: String },
    #[error(
        "`{0}` must hold one assistant message, alone or after the messages of the prompt (the same in both responses)"
    )]
    NotOneResponse(String),
    #[error("`{0}` must end with an assistant message, since no prompt is given")]
    NoLastResponse(String),
    #[error(
        "`{0}` is text without a prompt, so it does not say where the prompt ends; give `prompt`, or begin it with `Human:` and `Assistant:` turns"
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
        "{} {chosen} is not above {} {rejected}, so the pair states no preference",
        names.0,
        names.1
    )]
    Contradicted {
        names: (&'static str, &'static str),
        chosen: f64,
        rejected: f64,
    },
    // The pair as a whole.
    #[error("the prompt has no messages")]
    EmptyPrompt,
    #[error("the last message of the prompt has the role {}; it must be user, or tool for the result of a call", .0.as_str())]
    LastRole(Role),
    #[error("the prompt is blank")]
    BlankPrompt,
    #[error("the {0} response is blank")]
    BlankResponse(&'static str),
    #[error("chosen and rejected are the same, so the pair states no preference")]
    Same,
}

/// The first columns of a row, as a list.
fn listed(columns: &[String]) -> String {
    let shown = columns.iter().take(12);
    let shown = shown.map(|name| format!("`{}`", name.chars().take(40).collect::<String>()));
    let shown: Vec<String> = shown.collect();
    match shown.as_slice() {
        [] => "no columns".to_owned(),
        names => names.join(", "),
    }
}
