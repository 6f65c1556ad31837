//! The grammar that an answer must follow.

use serde_json::{Value, json};

use super::schema::{enforceable, only_named};
use super::{AnswerFormat, Bounds, Effort, Notice, ToolChoice, Tools};
use realign_engine::grammar::{Grammar, choice_rule, regex_rule};
use realign_model::CallStyle;

/// Maximum number of calls in an answer, so that a model that does nothing else comes to an end.
const MAX_CALLS: usize = 16;

/// Separators of JSON as chat templates write it. With arbitrary white space, small models may
/// produce nothing else.
const JSON_OPTIONS: (&str, &str) = (", ", ": ");

/// A grammar, and what of its schemas is left to the model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Built {
    /// In llguidance's Lark dialect.
    pub(crate) lark: String,
    /// Whose schema it is, whether it is strict, and what is not enforced.
    pub(crate) notices: Vec<(String, bool, Notice)>,
}

impl Built {
    /// Stands for the answer where a function is named.
    pub(crate) const ANSWER: &str = "the answer";

    fn schema(
        &mut self,
        of: &str,
        schema: &Value,
        (strict, effort, bounds): (bool, Effort, Bounds),
    ) -> Value {
        let effort = if strict { Effort::Most } else { effort };
        let (mut schema, notices) = enforceable(schema, effort, bounds);
        only_named(&mut schema);
        let notices = notices.into_iter();
        self.notices
            .extend(notices.map(|notice| (of.to_owned(), strict, notice)));
        options(schema)
    }
}

/// How much of each schema is enforced.
#[derive(Clone, Debug)]
pub(crate) struct Efforts {
    /// Of the answer's format.
    pub(crate) format: Effort,
    /// Of the functions that may be called, in their order; those beyond have [`Effort::Most`].
    pub(crate) tools: Vec<Effort>,
    pub(crate) bounds: Bounds,
}

impl Efforts {
    pub(crate) fn most(bounds: Bounds) -> Self {
        Self {
            format: Effort::Most,
            tools: Vec::new(),
            bounds,
        }
    }
}

/// A grammar of one schema alone, to find out whether it can be compiled.
pub(crate) fn schema_alone(schema: &Value, effort: Effort, bounds: Bounds) -> String {
    let (schema, _) = enforceable(schema, effort, bounds);
    format!("start: %json {}\n", options(schema))
}

/// The grammar of an answer; `None` if the answer is unconstrained.
pub(crate) fn grammar(
    tools: &Tools,
    format: &AnswerFormat,
    style: CallStyle,
    efforts: &Efforts,
) -> Option<Built> {
    let mut built = Built::default();
    let lark = lark(tools, format, (style, efforts), &mut built)?;
    Some(Built { lark, ..built })
}

fn lark(
    tools: &Tools,
    format: &AnswerFormat,
    (style, efforts): (CallStyle, &Efforts),
    built: &mut Built,
) -> Option<String> {
    let text = match format {
        AnswerFormat::Text => None,
        AnswerFormat::Json { schema, strict } => {
            let schema = built.schema(
                Built::ANSWER,
                schema,
                (*strict, efforts.format, efforts.bounds),
            );
            Some(format!("%json {schema}"))
        }
        AnswerFormat::Regex(regex) => Some(regex_rule(regex)),
        AnswerFormat::Choice(texts) => Some(choice_rule(texts.iter().map(String::as_str))),
        // Refused together with calls.
        AnswerFormat::Grammar(Grammar(lark)) => return Some(lark.clone()),
    };
    if !tools.callable() {
        return text.map(|json| format!("start: {json}\n"));
    }
    let calls = calls(tools, (style, efforts), built);
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
        // Text that begins like a call is a call.
        (CallStyle::Bare, false, None) => {
            "start: calls | TEXT?\nTEXT: /[^{](.|\\n)*/\n".to_string()
        }
    };
    Some(start + &calls)
}

fn calls(tools: &Tools, (style, efforts): (CallStyle, &Efforts), built: &mut Built) -> String {
    let mut rules = match style {
        // Llama's chat template rejects a conversation with two calls in one answer.
        CallStyle::Bare => String::from("calls: call\n"),
        // A function that the client names is called once.
        CallStyle::Tagged if tools.parallel && !tools.is_named() => {
            let more = MAX_CALLS - 1;
            format!("calls: tagged (\"\\n<tool_call>\" tagged){{0,{more}}}\n")
        }
        CallStyle::Tagged => String::from("calls: tagged\n"),
    };
    if style == CallStyle::Tagged {
        rules.push_str("tagged: \"\\n\" call \"\\n</tool_call>\"\n");
    }
    let key = arguments_key(style);
    let mut names = Vec::new();
    for (i, tool) in tools.allowed().enumerate() {
        // Names contain no character that JSON escapes.
        let head = format!("{{\"name\": \"{}\", \"{key}\": ", tool.name);
        let head = Value::String(head);
        let effort = efforts.tools.get(i).copied().unwrap_or(Effort::Most);
        let schema = built.schema(
            &tool.name,
            &tool.parameters,
            (tool.strict, effort, efforts.bounds),
        );
        rules.push_str(&format!(
            "call_{i}: {head} arguments_{i} \"}}\"\narguments_{i}: %json {schema}\n"
        ));
        names.push(format!("call_{i}"));
    }
    rules + "call: " + &names.join(" | ") + "\n"
}

/// The mark after which an answer is JSON; empty if it is from the beginning, `None` if nothing tells.
pub(crate) fn json_after(
    tools: &Tools,
    format: &AnswerFormat,
    style: CallStyle,
) -> Option<&'static str> {
    let json = matches!(format, AnswerFormat::Json { .. });
    match (tools.callable(), style) {
        (false, _) => json.then_some(""),
        (true, _) if json || tools.choice != ToolChoice::Auto => Some(""),
        (true, CallStyle::Tagged) => Some("<tool_call>"),
        (true, CallStyle::Bare) => None,
    }
}

/// The JSON key of a call's arguments.
pub(crate) fn arguments_key(style: CallStyle) -> &'static str {
    match style {
        CallStyle::Tagged => "arguments",
        CallStyle::Bare => "parameters",
    }
}

/// The schema with our JSON separators.
fn options(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => json!({"enum": []}),
        schema => schema,
    };
    let (item_separator, key_separator) = JSON_OPTIONS;
    schema["x-guidance"] = json!({
        "item_separator": item_separator,
        "key_separator": key_separator,
        "whitespace_flexible": false,
    });
    schema
}
