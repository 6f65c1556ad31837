//! The grammar that an answer must follow.

use serde_json::{Value, json};

use super::{AnswerFormat, ToolChoice, Tools};
use realign_model::CallStyle;

/// Separators of JSON as chat templates write it. With arbitrary white space, small models may
/// produce nothing else.
const JSON_OPTIONS: (&str, &str) = (", ", ": ");

/// The grammar of an answer in llguidance's Lark dialect; `None` if the answer is unconstrained.
pub(crate) fn grammar(tools: &Tools, format: &AnswerFormat, style: CallStyle) -> Option<String> {
    let text = match format {
        AnswerFormat::Text => None,
        AnswerFormat::Json { schema, strict } => {
            Some(format!("%json {}", options(schema, *strict)))
        }
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
        // Text that begins like a call is a call.
        (CallStyle::Bare, false, None) => {
            "start: calls | TEXT?\nTEXT: /[^{](.|\\n)*/\n".to_string()
        }
    };
    Some(start + &calls)
}

fn calls(tools: &Tools, style: CallStyle) -> String {
    let mut rules = match style {
        // Llama's chat template rejects a conversation with two calls in one answer.
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
        // Names contain no character that JSON escapes.
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

/// The JSON key of a call's arguments.
pub(crate) fn arguments_key(style: CallStyle) -> &'static str {
    match style {
        CallStyle::Tagged => "arguments",
        CallStyle::Bare => "parameters",
    }
}

/// The schema with our JSON separators. Without `strict`, keywords that cannot be enforced are
/// ignored, as with OpenAI.
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
