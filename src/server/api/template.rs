//! Fields that say how a conversation is rendered, and whether the model thinks first.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::request::string_enum;
use realign_model::ChatTemplate;
use realign_model::chat::{Next, Turn};

/// Variables that a request cannot set: they are the conversation itself.
const OWN: [&str; 6] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
];
/// Variables that change nothing where a template does not have them, because its model never thinks.
const HARMLESS: [&str; 3] = ["enable_thinking", "thinking", "reasoning_effort"];

string_enum! {
    /// How much the model thinks.
    Effort {
        None = "none",
        Minimal = "minimal",
        Low = "low",
        Medium = "medium",
        High = "high",
        Xhigh = "xhigh",
    }
}

impl Effort {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Effort::None => "none",
            Effort::Minimal => "minimal",
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
            Effort::Xhigh => "xhigh",
        }
    }
}

/// How a conversation is rendered.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct TemplateFields {
    /// Whether to open the assistant's turn. Default: true, unless the last message is continued.
    add_generation_prompt: Option<bool>,
    /// Continue the last message, which is the assistant's, instead of opening a turn.
    continue_final_message: Option<bool>,
    /// Further variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether a model that can think does so; the same as in `chat_template_kwargs`.
    enable_thinking: Option<bool>,
    /// How much a model that can think does so; `none` and `minimal` switch it off where the template
    /// knows no efforts.
    reasoning_effort: Option<Effort>,
}

impl TemplateFields {
    /// The defaults, with how much the model thinks.
    pub(crate) fn with_effort(effort: Option<Effort>) -> Self {
        Self {
            reasoning_effort: effort,
            ..Self::default()
        }
    }

    /// How the conversation is rendered.
    ///
    /// # Errors
    /// For fields that contradict each other, or a variable that the template does not have.
    pub(crate) fn turn(self, template: &ChatTemplate) -> Result<Turn, ApiError> {
        let continues = self.continue_final_message.unwrap_or(false);
        let next = match (continues, self.add_generation_prompt) {
            (true, Some(true)) => {
                let message = "`continue_final_message` continues a turn and `add_generation_prompt` \
                               opens another one; set one of them";
                return Err(ApiError::field("continue_final_message", message));
            }
            (true, _) => Next::Continuation,
            (false, Some(false)) => Next::Nothing,
            (false, _) => Next::Answer,
        };
        let mut variables = self.chat_template_kwargs.unwrap_or_default();
        for name in variables.keys() {
            let why = if OWN.contains(&name.as_str()) {
                "is a field of the request"
            } else if template.mentions(name) || HARMLESS.contains(&name.as_str()) {
                continue;
            } else {
                "is no variable of the model's chat template"
            };
            let message = format!("`chat_template_kwargs.{name}` {why}");
            return Err(ApiError::field("chat_template_kwargs", message));
        }
        if let Some(thinks) = self.enable_thinking {
            variables.entry("enable_thinking").or_insert(thinks.into());
        }
        if let Some(effort) = self.reasoning_effort {
            if template.mentions("reasoning_effort") {
                variables
                    .entry("reasoning_effort")
                    .or_insert(effort.name().into());
            } else {
                let thinks = !matches!(effort, Effort::None | Effort::Minimal);
                variables.entry("enable_thinking").or_insert(thinks.into());
            }
        }
        Ok(Turn { next, variables })
    }
}
