//! Functions that the model may call, and what answers may look like: read from requests and
//! turned into one grammar.

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use realign_model::CallStyle;

/// Most functions in a request, as OpenAI has it.
const MAX_TOOLS: usize = 128;
/// Longest name of a function or schema.
const MAX_NAME: usize = 64;
/// Largest JSON text of a schema in bytes.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Compact JSON, as templates write it: free white space lets small models write nothing else.
const JSON_OPTIONS: (&str, &str) = (", ", ": ");

/// A function.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// What chat templates are given: `{"type": "function", "function": {…}}`.
    pub(crate) definition: Value,
    parameters: Value,
    strict: bool,
}

/// `tool_choice`.
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

/// `tools`, `tool_choice` and `parallel_tool_calls`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    parallel: bool,
}

/// Where an endpoint keeps a function's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Chat completions: inside `function`.
    Nested,
    /// Responses: beside `type`.
    Flat,
}

impl Tools {
    pub(crate) fn read(fields: &Fields<'_>, layout: Layout) -> Result<Self, ApiError> {
        let list = match fields.get("tools") {
            None => Vec::new(),
            Some(Value::Array(items)) => list(items, layout)?,
            Some(other) => return Err(wrong_type("tools", "an array of functions", other)),
        };
        let choice = choice(fields, &list, layout)?;
        let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        Ok(Self {
            list,
            choice,
            parallel,
        })
    }

    /// Whether answers may hold calls.
    pub(crate) fn callable(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// What the prompt describes: nothing if nothing may be called.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        match self.callable() {
            true => self.list.iter().map(|t| t.definition.clone()).collect(),
            false => Vec::new(),
        }
    }

    fn allowed(&self) -> impl Iterator<Item = &Tool> {
        self.list.iter().filter(|tool| match &self.choice {
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::None | ToolChoice::Auto | ToolChoice::Required => true,
        })
    }
}

fn list(items: &[Value], layout: Layout) -> Result<Vec<Tool>, ApiError> {
    if items.len() > MAX_TOOLS {
        let message = format!(
            "`tools` has {} entries; allowed: up to {MAX_TOOLS}",
            items.len()
        );
        return Err(ApiError::field("tools", message));
    }
    let read = |(i, item)| tool(item, &format!("tools[{i}]"), layout);
    let tools: Vec<Tool> = items
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    for (i, tool) in tools.iter().enumerate() {
        if tools[..i].iter().any(|earlier| earlier.name == tool.name) {
            let message = format!("`tools` has two functions named {:?}", tool.name);
            return Err(ApiError::field("tools", message));
        }
    }
    Ok(tools)
}

fn tool(item: &Value, place: &str, layout: Layout) -> Result<Tool, ApiError> {
    let outer = Fields::nested(item, place)?;
    if outer.string("type")? != "function" {
        return Err(ApiError::Unsupported {
            param: outer.path("type"),
            detail: " other than `function`".into(),
        });
    }
    let fields = match layout {
        Layout::Nested => Fields::nested(outer.required("function")?, &outer.path("function"))?,
        Layout::Flat => outer,
    };
    let name = name(&fields)?;
    let parameters = match fields.get("parameters") {
        Some(parameters) => schema(parameters, &fields.path("parameters"))?,
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    let mut function = json!({"name": name, "parameters": parameters});
    if fields.get("description").is_some() {
        function["description"] = fields.string("description")?.into();
    }
    Ok(Tool {
        definition: json!({"type": "function", "function": function}),
        strict: fields.boolean("strict")?.unwrap_or(false),
        name,
        parameters,
    })
}

fn name(fields: &Fields<'_>) -> Result<String, ApiError> {
    let name = fields.string("name")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        let path = fields.path("name");
        let message = format!(
            "`{path}` must have 1 to {MAX_NAME} characters; allowed: letters, digits, `_`, `-`"
        );
        return Err(ApiError::field(path, message));
    }
    Ok(name.to_string())
}

fn schema(value: &Value, place: &str) -> Result<Value, ApiError> {
    if !value.is_object() {
        return Err(wrong_type(place, "a JSON schema (an object)", value));
    }
    let bytes = value.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        let message = format!("`{place}` has {bytes} bytes; allowed: up to {MAX_SCHEMA_BYTES}");
        return Err(ApiError::field(place, message));
    }
    Ok(value.clone())
}

fn choice(fields: &Fields<'_>, list: &[Tool], layout: Layout) -> Result<ToolChoice, ApiError> {
    let expected = "`none`, `auto`, `required` or an object that names a function";
    let choice = match fields.get("tool_choice") {
        None if list.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                let message = format!("`tool_choice` must be {expected}");
                return Err(ApiError::field("tool_choice", message));
            }
        },
        Some(object @ Value::Object(_)) => named(object, list, layout)?,
        Some(other) => return Err(wrong_type("tool_choice", expected, other)),
    };
    match choice {
        ToolChoice::Auto if list.is_empty() => Ok(ToolChoice::None),
        ToolChoice::Required if list.is_empty() => Err(ApiError::field(
            "tool_choice",
            "`tool_choice` asks for a call, but `tools` has no function",
        )),
        choice => Ok(choice),
    }
}

fn named(object: &Value, list: &[Tool], layout: Layout) -> Result<ToolChoice, ApiError> {
    let outer = Fields::nested(object, "tool_choice")?;
    if outer.string("type")? != "function" {
        return Err(ApiError::Unsupported {
            param: outer.path("type"),
            detail: " other than `function`".into(),
        });
    }
    let fields = match layout {
        Layout::Nested => Fields::nested(outer.required("function")?, "tool_choice.function")?,
        Layout::Flat => outer,
    };
    let name = fields.string("name")?;
    if list.iter().any(|tool| tool.name == name) {
        return Ok(ToolChoice::Named(name.to_string()));
    }
    let path = fields.path("name");
    let shown: String = name.chars().take(MAX_NAME).collect();
    let message = format!("`{path}` is {shown:?}, which `tools` does not have");
    Err(ApiError::field(path, message))
}

/// What the text of an answer must be, apart from calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    /// Any text.
    #[default]
    Text,
    /// JSON that fits the schema.
    Json { schema: Value, strict: bool },
}

impl Format {
    /// `response_format`, or `text.format` of responses, whose schema is not nested.
    pub(crate) fn read(value: &Value, place: &str, layout: Layout) -> Result<Self, ApiError> {
        let outer = Fields::nested(value, place)?;
        match outer.string("type")? {
            "text" => Ok(Self::Text),
            "json_object" => Ok(Self::Json {
                schema: json!({"type": "object"}),
                strict: false,
            }),
            "json_schema" => {
                let path = outer.path("json_schema");
                let fields = match layout {
                    Layout::Nested => Fields::nested(outer.required("json_schema")?, &path)?,
                    Layout::Flat => outer,
                };
                name(&fields)?;
                let place = fields.path("schema");
                Ok(Self::Json {
                    schema: schema(fields.required("schema")?, &place)?,
                    strict: fields.boolean("strict")?.unwrap_or(false),
                })
            }
            other => {
                let path = outer.path("type");
                let shown: String = other.chars().take(MAX_NAME).collect();
                let allowed = "`text`, `json_object`, `json_schema`";
                let message = format!("`{path}` is {shown:?}; allowed: {allowed}");
                Err(ApiError::field(path, message))
            }
        }
    }
}

/// The grammar of an answer in llguidance's Lark dialect; `None` if anything may be said.
pub(crate) fn grammar(tools: &Tools, format: &Format, style: CallStyle) -> Option<String> {
    let text = match format {
        Format::Text => None,
        Format::Json { schema, strict } => Some(format!("%json {}", options(schema, *strict))),
    };
    if !tools.callable() {
        return text.map(|json| format!("start: {json}\n"));
    }
    let calls = calls(tools, style);
    let forced = tools.choice != ToolChoice::Auto;
    let start = match (style, forced, text) {
        (CallStyle::Tagged, true, _) => "start: \"<tool_call>\" calls\n".to_string(),
        (CallStyle::Bare, true, _) => "start: calls\n".to_string(),
        (CallStyle::Tagged, false, Some(json)) => {
            format!("start: \"<tool_call>\" calls | text\ntext: {json}\n")
        }
        (CallStyle::Bare, false, Some(json)) => format!("start: calls | text\ntext: {json}\n"),
        (CallStyle::Tagged, false, None) => "start: before calls | TEXT?\n\
             before[lazy]: /(.|\\n)*/ \"<tool_call>\"\n\
             TEXT: /(.|\\n)+/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\n"
            .to_string(),
        // What begins like a call is one.
        (CallStyle::Bare, false, None) => {
            "start: calls | TEXT?\nTEXT: /[^{](.|\\n)*/\n".to_string()
        }
    };
    Some(start + &calls)
}

fn calls(tools: &Tools, style: CallStyle) -> String {
    let mut rules = match style {
        // A Llama template refuses a conversation with two calls in one answer.
        CallStyle::Bare => String::from("calls: call\n"),
        CallStyle::Tagged if tools.parallel => {
            String::from("calls: tagged (\"\\n<tool_call>\" tagged)*\n")
        }
        CallStyle::Tagged => String::from("calls: tagged\n"),
    };
    if style == CallStyle::Tagged {
        rules.push_str("tagged: \"\\n\" call \"\\n</tool_call>\"\n");
    }
    let key = arguments_key(style);
    let mut names = Vec::new();
    for (i, tool) in tools.allowed().enumerate() {
        // Names hold no character that JSON escapes.
        let head = format!("{{\"name\": \"{}\", \"{key}\": ", tool.name);
        let head = Value::String(head);
        let schema = options(&tool.parameters, tool.strict);
        rules.push_str(&format!(
            "call_{i}: {head} arguments_{i} \"}}\"\narguments_{i}: %json {schema}\n"
        ));
        names.push(format!("call_{i}"));
    }
    rules + "call: " + &names.join(" | ") + "\n"
}

/// The key under which a call's arguments stand.
pub(crate) fn arguments_key(style: CallStyle) -> &'static str {
    match style {
        CallStyle::Tagged => "arguments",
        CallStyle::Bare => "parameters",
    }
}

/// The schema with our own layout of JSON. Without `strict`, keywords that cannot be enforced are
/// left to the model, as with OpenAI.
fn options(schema: &Value, strict: bool) -> Value {
    let mut schema = schema.clone();
    let (item_separator, key_separator) = JSON_OPTIONS;
    schema["x-guidance"] = json!({
        "item_separator": item_separator,
        "key_separator": key_separator,
        "whitespace_flexible": false,
        "lenient": !strict,
    });
    schema
}
