//! Functions that the model may call and the required format of answers, read from requests and
//! compiled into one grammar.

#[cfg(test)]
mod agreement;
mod check;
mod checks;
mod choice;
mod format;
mod grammar;
mod schema;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::request::{
    JsonSchemaText, List, ListItem, Name, Refused, string_enum, unsupported, without_effect,
};
use choice::{ChoiceField, choice};
use schema::resolve;

pub(crate) use checks::Checks;
pub(crate) use choice::{FlatNamed, NamedForm, NestedNamed, ToolChoice};
pub(crate) use format::{AnswerFormat, ResponseFormat, TextFormat};
pub(crate) use grammar::{Built, Efforts, arguments_key, grammar, json_after, schema_alone};
pub(crate) use schema::{Bounds, Effort, Notice};

/// Maximum number of functions in a request, as with OpenAI.
const MAX_TOOLS: usize = 128;

string_enum! {
    /// The kinds of tool: only functions.
    FunctionKind { Function = "function" } else |_| unsupported(" other than `function`")
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Function {
    name: Name,
    parameters: Option<JsonSchemaText>,
    description: Option<String>,
    strict: Option<bool>,
    #[serde(rename = "defer_loading")]
    #[schemars(skip)]
    _defer_loading: Option<Refused>,
}

without_effect! {
    /// Prompts are always cached.
    ToolExtras { "cache_control" }
}

/// A function in the format of chat completions.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedTool {
    #[serde(rename = "type")]
    _type: FunctionKind,
    function: Function,
    #[serde(rename = "..extras")]
    #[schemars(flatten)]
    _extras: ToolExtras,
}

/// A function in the format of responses: its fields are next to `type`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FlatTool {
    #[serde(rename = "type")]
    _type: FunctionKind,
    #[serde(rename = "..function")]
    #[schemars(flatten)]
    function: Function,
}

/// A format in which requests describe functions.
pub(crate) trait ToolForm: ListItem {
    /// How `tool_choice` names one of them.
    type Named: NamedForm;

    /// The function it describes.
    fn function(self) -> Function;

    /// What a client sent, in the form of chat completions.
    fn definition(sent: &Map<String, Value>) -> Value;
}

impl ListItem for NestedTool {
    const EXPECTED: &'static str = "an array of functions";
}

impl ListItem for FlatTool {
    const EXPECTED: &'static str = "an array of functions";
}

impl ToolForm for NestedTool {
    type Named = NestedNamed;

    fn function(self) -> Function {
        self.function
    }

    fn definition(sent: &Map<String, Value>) -> Value {
        sent.clone().into()
    }
}

impl ToolForm for FlatTool {
    type Named = FlatNamed;

    fn function(self) -> Function {
        self.function
    }

    fn definition(sent: &Map<String, Value>) -> Value {
        let mut function = sent.clone();
        function.shift_remove("type");
        json!({"type": "function", "function": function})
    }
}

/// `tools`, `tool_choice` and `parallel_tool_calls`, by default in the format of chat completions.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ToolFields<T = NestedTool, N = NestedNamed>
where
    T: ListItem,
{
    #[serde(bound(deserialize = "T: ListItem + Deserialize<'de>"))]
    #[schemars(extend("maxItems" = MAX_TOOLS))]
    tools: Option<List<T>>,
    tool_choice: Option<ChoiceField<N>>,
    parallel_tool_calls: Option<bool>,
}

/// A checked function.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The definition passed to chat templates: `{"type": "function", "function": {…}}`.
    pub(crate) definition: Value,
    pub(super) parameters: Value,
    pub(super) strict: bool,
}

/// `tools`, `tool_choice` and `parallel_tool_calls`, checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// The functions that may be called, if not all.
    only: Option<Vec<String>>,
    parallel: bool,
}

impl Tools {
    /// Checks what depends on several fields.
    ///
    /// # Errors
    /// For too many functions, duplicate names, or a choice that is not in `tools`.
    pub(crate) fn check<T: ToolForm>(fields: ToolFields<T, T::Named>) -> Result<Self, ApiError> {
        let list = list(fields.tools)?;
        let (choice, only) = choice(fields.tool_choice, &list)?;
        Ok(Self {
            choice,
            only,
            list,
            parallel: fields.parallel_tool_calls.unwrap_or(true),
        })
    }

    /// Makes the references of the schemas of functions that may be called pointers.
    ///
    /// # Errors
    /// The name of a function whose schema has a reference that leads nowhere, and the reference.
    pub(crate) fn resolve(&mut self) -> Result<(), (String, Notice)> {
        let callable = self.callable();
        for tool in self.list.iter_mut().filter(|_| callable) {
            tool.parameters =
                resolve(&tool.parameters).map_err(|broken| (tool.name.clone(), broken))?;
        }
        Ok(())
    }

    /// Whether answers may contain calls.
    pub(crate) fn callable(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// Whether an answer that is no call may be any text, thoughts in front of a call included.
    pub(crate) fn leave_text_free(&self, format: &AnswerFormat) -> bool {
        self.choice == ToolChoice::Auto && *format == AnswerFormat::Text
    }

    /// Whether the client named the one function to call.
    pub(crate) fn is_named(&self) -> bool {
        matches!(self.choice, ToolChoice::Named(_))
    }

    /// The definitions for the prompt; empty if no function may be called.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        if !self.callable() {
            return Vec::new();
        }
        self.list.iter().map(|t| t.definition.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tool> {
        self.list.iter_mut()
    }

    pub(super) fn allowed(&self) -> impl Iterator<Item = &Tool> {
        self.list
            .iter()
            .filter(|tool| match (&self.choice, &self.only) {
                (ToolChoice::Named(name), _) => tool.name == *name,
                (_, Some(only)) => only.contains(&tool.name),
                (_, None) => true,
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
    // In the order in which clients write the keys, which is the order in which templates show them.
    let mut described = json!({"name": name});
    if let Some(description) = function.description {
        described["description"] = description.into();
    }
    let given = function
        .parameters
        .map(|JsonSchemaText(parameters)| parameters);
    if let Some(parameters) = &given {
        described["parameters"] = parameters.clone();
    }
    if let Some(strict) = function.strict {
        described["strict"] = strict.into();
    }
    let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let parameters = given.unwrap_or_else(none);
    Tool {
        definition: json!({"type": "function", "function": described}),
        strict: function.strict.unwrap_or(false),
        name,
        parameters,
    }
}
