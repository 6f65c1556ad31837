//! Against what `transformers` renders: templates of models times conversations
//! (`tests/golden/templates`, `scripts/make-template-golden.py`).

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::functions::strftime;
use super::tests::loaded;
use super::turn::Mark;
use super::{ChatError, ChatTemplate, Next, Turn};
use crate::tokenizer::Tokenizer;

/// The time at which the golden values were rendered, 2026-03-07 09:05:02.
const NOW: Duration = Duration::from_secs(1_772_874_302);

/// Cells whose messages are not Jinja2's, with the reason. Their texts are: both refuse.
const OTHER_WORDS: [(&str, &str, &str); 1] = [(
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "tools_rich",
    "the undefined value came into a macro as its argument, whose name is all that is known",
)];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates")
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn template(source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, ChatError> {
    let mut template = ChatTemplate::new(source, tokenizer)?;
    template.bos = "<s>".into();
    template.eos = "</s>".into();
    let now = |format: &str| strftime(format, UNIX_EPOCH + NOW);
    template.environment.add_function("strftime_now", now);
    Ok(template)
}

fn render(template: &ChatTemplate, conversation: &Value) -> Result<String, ChatError> {
    let option = |name: &str| conversation["options"][name] == true;
    let continues = option("continue_final_message");
    let turn = Turn {
        next: match (continues, option("add_generation_prompt")) {
            (true, _) => Next::Continuation,
            (false, true) => Next::Answer,
            (false, false) => Next::Nothing,
        },
        variables: conversation["variables"]
            .as_object()
            .cloned()
            .unwrap_or_default(),
    };
    let messages: Vec<Map<String, Value>> =
        serde_json::from_value(conversation["messages"].clone()).unwrap();
    let tools = conversation["tools"].as_array().map(Vec::as_slice);
    let mark = continues.then(|| Mark::new(""));
    template.render_json(messages, tools, &turn, mark)
}

/// How a cell differs, if it does.
fn difference(
    rendered: &Result<String, ChatError>,
    cell: &Value,
    lines: &[Value],
) -> Option<String> {
    if let Some(places) = cell.as_array() {
        let line = |place: &Value| lines[place.as_u64().unwrap() as usize].as_str().unwrap();
        let expected: Vec<&str> = places.iter().map(line).collect();
        let expected = expected.join("\n");
        return match rendered {
            Ok(text) if *text == expected => None,
            other => Some(format!("{other:?} instead of {expected:?}")),
        };
    }
    match rendered {
        // Python's stack has its own limit.
        Err(ChatError::Exceeded(_)) if cell["raises"] == "RecursionError" => None,
        Err(ChatError::Refused(why)) if cell["message"] == why.as_str() => None,
        other => Some(format!("{other:?} instead of {cell}")),
    }
}

#[test]
fn prompts_are_byte_for_byte_those_of_transformers() {
    let (tokenizer, _) = loaded();
    let from = |name: &str, otherwise: &str| {
        std::env::var_os(name).map_or_else(|| folder().join(otherwise), PathBuf::from)
    };
    let sources = from("REALIGN_TEMPLATES", "sources");
    let golden = read(&from("REALIGN_TEMPLATES_GOLDEN", "golden.json"));
    let conversations = read(&folder().join("conversations.json"));
    let conversations = conversations.as_object().unwrap();
    let lines = golden["lines"].as_array().unwrap();
    let (mut count, mut differ) = (0, Vec::new());
    for (name, row) in golden["cells"].as_object().unwrap() {
        let path = sources.join(format!("{name}.jinja"));
        let source = std::fs::read_to_string(&path).unwrap();
        let template = template(&source, &tokenizer).unwrap_or_else(|e| panic!("{name}: {e}"));
        let row = row.as_object().unwrap();
        assert!(row.keys().eq(conversations.keys()), "{name}");
        for (key, cell) in row {
            count += 1;
            let rendered = render(&template, &conversations[key]);
            let known = OTHER_WORDS
                .iter()
                .any(|known| (known.0, known.1) == (name, key));
            match difference(&rendered, cell, lines) {
                Some(_) if known && rendered.is_err() => {}
                Some(how) => differ.push(format!("{name} × {key}: {how}")),
                None => assert!(!known, "{name} × {key} is equal by now"),
            }
        }
    }
    let few: Vec<&String> = differ.iter().take(5).collect();
    assert!(
        differ.is_empty(),
        "{} of {count} differ: {few:#?}",
        differ.len()
    );
    assert!(count >= 40 * 30, "only {count} cells");
}
