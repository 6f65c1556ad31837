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
        let wish = Wish::read(
            &variables,
            self.enable_thinking,
            self.reasoning_effort,
            template,
        )?;
        wish.set(&mut variables, template);
        Ok(Turn { next, variables })
    }

    /// Whether the last message is continued.
    pub(crate) fn continues(&self) -> bool {
        self.continue_final_message.unwrap_or(false)
    }

    /// Whether the request switches thinking off, and the template has no variable that does.
    pub(crate) fn must_not_think(&self, template: &ChatTemplate) -> bool {
        let variables = self.chat_template_kwargs.clone().unwrap_or_default();
        let (on, effort) = (self.enable_thinking, self.reasoning_effort);
        let wish = Wish::read(&variables, on, effort, template);
        let off = wish.is_ok_and(|wish| wish.thinks.is_some_and(|(_, thinks)| !thinks));
        off && !SWITCHES.iter().any(|name| template.mentions(name))
    }
}

/// Variables with which templates switch thinking.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];
/// The variable of templates that know efforts.
const EFFORT: &str = "reasoning_effort";

/// What a request says about thinking, and in which fields.
struct Wish {
    thinks: Option<(String, bool)>,
    effort: Option<(String, String)>,
}

impl Wish {
    /// Collects what the fields say.
    ///
    /// # Errors
    /// If two of them contradict each other.
    fn read(
        variables: &Map<String, Value>,
        enable_thinking: Option<bool>,
        effort: Option<Effort>,
        template: &ChatTemplate,
    ) -> Result<Self, ApiError> {
        let variable =
            |name: &str| Some((format!("chat_template_kwargs.{name}"), variables.get(name)?));
        let switches = SWITCHES.iter().filter_map(|name| variable(name));
        let switches = switches.filter_map(|(name, value)| Some((name, value.as_bool()?)));
        let field = enable_thinking.map(|thinks| ("enable_thinking".to_owned(), thinks));
        let mut thinks: Vec<(String, bool)> = switches.chain(field).collect();

        let of_template = variable(EFFORT);
        let of_template =
            of_template.and_then(|(name, value)| Some((name, value.as_str()?.to_owned())));
        let field = effort.map(|effort| (EFFORT.to_owned(), effort.name().to_owned()));
        let efforts: Vec<(String, String)> = of_template.into_iter().chain(field).collect();

        let knows_efforts = template.mentions(EFFORT);
        let switched = efforts.iter().filter_map(|(name, effort)| {
            let thinks = match effort.as_str() {
                "none" => false,
                "minimal" if knows_efforts => return None,
                "minimal" => false,
                _ => true,
            };
            Some((name.clone(), thinks))
        });
        thinks.extend(switched);
        agree(&thinks)?;
        agree(&efforts)?;
        Ok(Self {
            thinks: thinks.into_iter().next(),
            effort: efforts.into_iter().next(),
        })
    }

    /// Sets the variables with which the template does it.
    fn set(self, variables: &mut Map<String, Value>, template: &ChatTemplate) {
        if let Some((_, effort)) = self.effort
            && template.mentions(EFFORT)
        {
            variables.entry(EFFORT).or_insert(effort.into());
        }
        if let Some((field, thinks)) = self.thinks {
            // An effort alone is no switch for a template that knows efforts.
            if !(field.ends_with(EFFORT) && template.mentions(EFFORT)) {
                let switches = SWITCHES.iter();
                for name in switches.filter(|name| template.mentions(name) || **name == SWITCHES[0])
                {
                    variables.entry(*name).or_insert(thinks.into());
                }
            }
        }
    }
}

/// Refuses values that contradict each other, and names the fields.
fn agree<T: PartialEq + std::fmt::Display>(values: &[(String, T)]) -> Result<(), ApiError> {
    let Some((first, value)) = values.first() else {
        return Ok(());
    };
    match values.iter().find(|(_, other)| other != value) {
        None => Ok(()),
        Some((second, other)) => {
            let message = format!(
                "`{second}` is {other} and `{first}` is {value}: one asks for what the other forbids; \
                 send one of them"
            );
            Err(ApiError::field(second.clone(), message))
        }
    }
}
