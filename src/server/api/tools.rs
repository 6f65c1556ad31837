//! Functions that the model may call, and what answers may look like: read from requests and
//! turned into one grammar.

mod format;
mod grammar;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::request::{AT, JsonSchemaText, List, Listed, Name, message, unsupported, words};

pub(crate) use format::{Format, ResponseFormat, TextFormat};
pub(crate) use grammar::{arguments_key, grammar};

/// Most functions in a request, as OpenAI has it.
const MAX_TOOLS: usize = 128;
/// Characters of a function's name that an error repeats.
const SHOWN: usize = 64;

words! {
    /// What a tool is.
    FunctionKind { Function = "function" } else |_| unsupported(" other than `function`")
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Function {
    name: Name,
    parameters: Option<JsonSchemaText>,
    description: Option<String>,
    strict: Option<bool>,
}

/// A function as chat completions take it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedTool {
    #[serde(rename = "type")]
    _type: FunctionKind,
    function: Function,
}

/// A function as responses take it: its fields are next to `type`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FlatTool {
    #[serde(rename = "type")]
    _type: FunctionKind,
    #[serde(rename = "..function")]
    #[schemars(flatten)]
    function: Function,
}

/// A way in which requests describe functions.
pub(crate) trait ToolForm: Listed {
    /// How `tool_choice` names one of them.
    type Named: NamedForm;

    /// The function.
    fn function(self) -> Function;
}

/// How `tool_choice` names a function.
pub(crate) trait NamedForm {
    /// The field that holds the name.
    const PATH: &'static str;

    /// The name.
    fn name(self) -> String;
}

impl Listed for NestedTool {
    const LIST: &'static str = "an array of functions";
}

impl Listed for FlatTool {
    const LIST: &'static str = "an array of functions";
}

impl ToolForm for NestedTool {
    type Named = NestedNamed;

    fn function(self) -> Function {
        self.function
    }
}

impl ToolForm for FlatTool {
    type Named = FlatNamed;

    fn function(self) -> Function {
        self.function
    }
}

/// The function that must be called, as chat completions name it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedNamed {
    #[serde(rename = "type")]
    _type: FunctionKind,
    function: NamedFunction,
}

/// The name of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct NamedFunction {
    name: String,
}

/// The function that must be called, as responses name it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FlatNamed {
    #[serde(rename = "type")]
    _type: FunctionKind,
    name: String,
}

impl NamedForm for NestedNamed {
    const PATH: &'static str = "tool_choice.function.name";

    fn name(self) -> String {
        self.function.name
    }
}

impl NamedForm for FlatNamed {
    const PATH: &'static str = "tool_choice.name";

    fn name(self) -> String {
        self.name
    }
}

words! {
    /// Whether functions may be called.
    ChoiceWord {
        None = "none",
        Auto = "auto",
        Required = "required",
    } else |_| message(format_args!(
        "{AT} must be `none`, `auto`, `required` or an object that names a function"
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
    Word(ChoiceWord),
    #[serde(rename = "object")]
    Named(N),
}

/// `tools`, `tool_choice` and `parallel_tool_calls`, as chat completions take them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ToolFields<T = NestedTool, N = NestedNamed>
where
    T: Listed,
{
    #[serde(bound(deserialize = "T: Listed + Deserialize<'de>"))]
    #[schemars(extend("maxItems" = MAX_TOOLS))]
    tools: Option<List<T>>,
    tool_choice: Option<ChoiceField<N>>,
    parallel_tool_calls: Option<bool>,
}

/// A function.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// What chat templates are given: `{"type": "function", "function": {…}}`.
    pub(crate) definition: Value,
    parameters: Value,
    strict: bool,
}

/// `tool_choice`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// None may be called.
    #[default]
    None,
    /// The model decides.
    Auto,
    /// At least one must be called.
    Required,
    /// This one must be called.
    Named(String),
}

/// `tools`, `tool_choice` and `parallel_tool_calls`, checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    parallel: bool,
}

impl Tools {
    /// Checks what depends on several fields.
    ///
    /// # Errors
    /// For too many functions, two of one name, or a choice that `tools` does not have.
    pub(crate) fn check<T: ToolForm>(fields: ToolFields<T, T::Named>) -> Result<Self, ApiError> {
        let list = list(fields.tools)?;
        Ok(Self {
            choice: choice(fields.tool_choice, &list)?,
            list,
            parallel: fields.parallel_tool_calls.unwrap_or(true),
        })
    }

    /// Whether answers may hold calls.
    pub(crate) fn callable(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// What the prompt describes: nothing if nothing may be called.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        if !self.callable() {
            return Vec::new();
        }
        self.list.iter().map(|t| t.definition.clone()).collect()
    }

    fn allowed(&self) -> impl Iterator<Item = &Tool> {
        self.list.iter().filter(|tool| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::None | ToolChoice::Auto | ToolChoice::Required => true,
        })
    }
}

fn list<T: ToolForm>(items: Option<List<T>>) -> Result<Vec<Tool>, ApiError> {
    let items = items.map_or_else(Vec::new, |items| items.0);
    if items.len() > MAX_TOOLS {
        let message = format!(
            "`tools` has {} entries; allowed: up to {MAX_TOOLS}",
            items.len()
        );
        return Err(ApiError::field("tools", message));
    }
    let tools: Vec<Tool> = items
        .into_iter()
        .map(|item| tool(item.function()))
        .collect();
    for (i, tool) in tools.iter().enumerate() {
        if tools[..i].iter().any(|earlier| earlier.name == tool.name) {
            let message = format!("`tools` has two functions named {:?}", tool.name);
            return Err(ApiError::field("tools", message));
        }
    }
    Ok(tools)
}

fn tool(function: Function) -> Tool {
    let Name(name) = function.name;
    let parameters = match function.parameters {
        Some(JsonSchemaText(parameters)) => parameters,
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    let mut described = json!({"name": name, "parameters": parameters});
    if let Some(description) = function.description {
        described["description"] = description.into();
    }
    Tool {
        definition: json!({"type": "function", "function": described}),
        strict: function.strict.unwrap_or(false),
        name,
        parameters,
    }
}

fn choice<N: NamedForm>(
    field: Option<ChoiceField<N>>,
    list: &[Tool],
) -> Result<ToolChoice, ApiError> {
    match field {
        Some(ChoiceField::Named(named)) => self::named(named, list),
        Some(ChoiceField::Word(ChoiceWord::None)) => Ok(ToolChoice::None),
        Some(ChoiceField::Word(ChoiceWord::Required)) if list.is_empty() => Err(ApiError::field(
            "tool_choice",
            "`tool_choice` asks for a call, but `tools` has no function",
        )),
        Some(ChoiceField::Word(ChoiceWord::Required)) => Ok(ToolChoice::Required),
        Some(ChoiceField::Word(ChoiceWord::Auto)) | None if list.is_empty() => Ok(ToolChoice::None),
        Some(ChoiceField::Word(ChoiceWord::Auto)) | None => Ok(ToolChoice::Auto),
    }
}

fn named<N: NamedForm>(named: N, list: &[Tool]) -> Result<ToolChoice, ApiError> {
    let name = named.name();
    if list.iter().any(|tool| tool.name == name) {
        return Ok(ToolChoice::Named(name));
    }
    let path = N::PATH;
    let shown: String = name.chars().take(SHOWN).collect();
    let message = format!("`{path}` is {shown:?}, which `tools` does not have");
    Err(ApiError::field(path, message))
}
