//! `tool_choice`: which functions may or must be called.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::error::ApiError;
use super::super::request::{FIELD, message, shortened, string_enum, tagged, unsupported};
use super::{FunctionKind, Tool};

/// How `tool_choice` names functions.
pub(crate) trait NamedForm {
    /// What it names.
    fn named(self) -> Named;
}

/// What an object in `tool_choice` names.
pub(crate) enum Named {
    /// The function that must be called, and the field that names it.
    One(&'static str, String),
    /// The functions that may be called, whether one must be, and the field that lists them.
    Some(&'static str, Vec<String>, AllowedMode),
}

string_enum! {
    /// What an object in `tool_choice` names.
    NamedKind {
        Function = "function",
        AllowedTools = "allowed_tools",
    } else |_| unsupported(" other than `function` and `allowed_tools`")
}

string_enum! {
    /// Whether one of the allowed functions must be called.
    AllowedMode { Auto = "auto", Required = "required" }
}

tagged! {
    /// The functions that may or must be called, in the format of chat completions.
    NestedNamed by "type": NamedKind {
        [Function] => One(NestedOne),
        [AllowedTools] => Some(NestedSome),
    }
}

tagged! {
    /// The functions that may or must be called, in the format of responses.
    FlatNamed by "type": NamedKind {
        [Function] => One(FlatOne),
        [AllowedTools] => Some(FlatSome),
    }
}

/// The function that must be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedOne {
    function: FlatOne,
}

/// The name of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FlatOne {
    name: String,
}

/// The functions that may be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedSome {
    allowed_tools: Allowed<NestedRef>,
}

/// The functions that may be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FlatSome {
    #[serde(rename = "..allowed")]
    #[schemars(flatten)]
    allowed: Allowed<FlatRef>,
}

/// Functions of `tools`, and whether one of them must be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Allowed<R> {
    mode: AllowedMode,
    tools: Vec<R>,
}

/// A function of `tools`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct NestedRef {
    #[serde(rename = "type")]
    _type: FunctionKind,
    function: FlatOne,
}

/// A function of `tools`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct FlatRef {
    #[serde(rename = "type")]
    _type: FunctionKind,
    name: String,
}

impl NamedForm for NestedNamed {
    fn named(self) -> Named {
        match self {
            Self::One(_, one) => Named::One("tool_choice.function.name", one.function.name),
            Self::Some(_, NestedSome { allowed_tools }) => {
                let names = allowed_tools.tools.into_iter();
                let names = names.map(|tool| tool.function.name).collect();
                Named::Some("tool_choice.allowed_tools.tools", names, allowed_tools.mode)
            }
        }
    }
}

impl NamedForm for FlatNamed {
    fn named(self) -> Named {
        match self {
            Self::One(_, one) => Named::One("tool_choice.name", one.name),
            Self::Some(_, FlatSome { allowed }) => {
                let names = allowed.tools.into_iter().map(|tool| tool.name).collect();
                Named::Some("tool_choice.tools", names, allowed.mode)
            }
        }
    }
}

string_enum! {
    /// Whether functions may be called.
    ChoiceMode {
        None = "none",
        Auto = "auto",
        Required = "required",
    } else |_| message(format_args!(
        "{FIELD} must be `none`, `auto`, `required` or an object that names a function"
    ))
}

/// `tool_choice`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    rename = "one of",
    expecting = "`none`, `auto`, `required` or an object that names a function"
)]
#[schemars(inline, untagged)]
pub(crate) enum ChoiceField<N> {
    #[serde(rename = "string")]
    Mode(ChoiceMode),
    #[serde(rename = "object")]
    Named(N),
}

/// `tool_choice`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// No function may be called.
    #[default]
    None,
    /// The model decides.
    Auto,
    /// At least one function must be called.
    Required,
    /// The function of this name must be called.
    Named(String),
}

/// The choice, and the functions that may be called, if not all.
pub(super) fn choice<N: NamedForm>(
    field: Option<ChoiceField<N>>,
    list: &[Tool],
) -> Result<(ToolChoice, Option<Vec<String>>), ApiError> {
    let choice = match field {
        Some(ChoiceField::Named(named)) => return self::named(named.named(), list),
        Some(ChoiceField::Mode(ChoiceMode::None)) => ToolChoice::None,
        Some(ChoiceField::Mode(ChoiceMode::Required)) if list.is_empty() => {
            let message = "`tool_choice` asks for a call, but `tools` has no function";
            return Err(ApiError::field("tool_choice", message));
        }
        Some(ChoiceField::Mode(ChoiceMode::Required)) => ToolChoice::Required,
        Some(ChoiceField::Mode(ChoiceMode::Auto)) | None if list.is_empty() => ToolChoice::None,
        Some(ChoiceField::Mode(ChoiceMode::Auto)) | None => ToolChoice::Auto,
    };
    Ok((choice, None))
}

fn named(named: Named, list: &[Tool]) -> Result<(ToolChoice, Option<Vec<String>>), ApiError> {
    match named {
        Named::One(path, name) => {
            known(path, &name, list)?;
            Ok((ToolChoice::Named(name), None))
        }
        Named::Some(path, names, _) if names.is_empty() => {
            let message = format!("`{path}` must not be empty; `none` allows no function");
            Err(ApiError::field(path, message))
        }
        Named::Some(path, names, mode) => {
            names.iter().try_for_each(|name| known(path, name, list))?;
            let choice = match mode {
                AllowedMode::Auto => ToolChoice::Auto,
                AllowedMode::Required => ToolChoice::Required,
            };
            Ok((choice, Some(names)))
        }
    }
}

/// Refuses the name of a function that there is not.
fn known(path: &str, name: &str, list: &[Tool]) -> Result<(), ApiError> {
    if list.iter().any(|tool| tool.name == name) {
        return Ok(());
    }
    let shown = shortened(name);
    let message = format!("`{path}` is {shown:?}, which `tools` does not have");
    Err(ApiError::field(path, message))
}
