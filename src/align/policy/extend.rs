//! Adds an example or a prompt to a policy's text and leaves the rest of the file as its author wrote
//! it. The place is found by lines and indentation; the result counts only if it reads as the old
//! file with that one item more.

use serde_json::{Value, json};

use super::model::ExampleVerdict;
use super::parse::yaml_options;

/// What is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition<'a> {
    /// A test of a rule.
    Example {
        /// The rule's id.
        rule: &'a str,
        /// The user message.
        prompt: &'a str,
        /// The answer.
        response: &'a str,
        /// What the rule should say about it.
        verdict: ExampleVerdict,
    },
    /// A prompt that the policy is about.
    Prompt(&'a str),
    /// A prompt whose answer must not change.
    Control(&'a str),
}

/// Why a text was not extended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendError {
    /// The rule is not there.
    #[error("the file has no rule {0:?}")]
    NoRule(String),
    /// The prompts are in a file of their own.
    #[error("the policy's {key} are in the file {file}: add the prompt there")]
    OtherFile {
        /// `prompts` or `controls`.
        key: &'static str,
        /// The file's name.
        file: String,
    },
    /// The text has a form that is not understood line by line.
    #[error(
        "the file is written in a form that is not changed automatically: add these lines yourself"
    )]
    Form,
}

/// The item as YAML, on one line, without the dash.
pub fn item(addition: &Addition<'_>) -> String {
    // Every JSON string is a double-quoted YAML string.
    let quoted = |text: &str| Value::from(text).to_string();
    match addition {
        Addition::Example {
            prompt,
            response,
            verdict,
            ..
        } => format!(
            "{{ prompt: {}, response: {}, verdict: {} }}",
            quoted(prompt),
            quoted(response),
            verdict_name(*verdict)
        ),
        Addition::Prompt(text) | Addition::Control(text) => quoted(text),
    }
}

/// `text`, a policy file, with the addition.
///
/// # Errors
/// [`ExtendError`].
pub fn extend(text: &str, addition: &Addition<'_>) -> Result<String, ExtendError> {
    let before: Value = read(text)?;
    let expected = with(before, addition)?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut changed = insert(lines, addition).ok_or(ExtendError::Form)?.join("\n");
    changed.push('\n');
    let after: Value = read(&changed)?;
    if after == expected {
        Ok(changed)
    } else {
        Err(ExtendError::Form)
    }
}

fn read(text: &str) -> Result<Value, ExtendError> {
    serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|_| ExtendError::Form)
}

fn verdict_name(verdict: ExampleVerdict) -> &'static str {
    match verdict {
        ExampleVerdict::Violates => "violates",
        ExampleVerdict::Complies => "complies",
    }
}

/// The key of the list that the addition goes to.
fn key(addition: &Addition<'_>) -> &'static str {
    match addition {
        Addition::Example { .. } => "examples",
        Addition::Prompt(_) => "prompts",
        Addition::Control(_) => "controls",
    }
}

/// The file's value with the addition.
fn with(mut file: Value, addition: &Addition<'_>) -> Result<Value, ExtendError> {
    if !file.is_object() {
        return Err(ExtendError::Form);
    }
    let key = key(addition);
    let (owner, item) = match addition {
        Addition::Example {
            rule,
            prompt,
            response,
            verdict,
        } => {
            let rules = file["rules"].as_array_mut().into_iter().flatten();
            let found = rules.into_iter().find(|value| value["id"] == **rule);
            let item = json!({ "prompt": prompt, "response": response, "verdict": verdict_name(*verdict) });
            let found = found.ok_or_else(|| ExtendError::NoRule((*rule).to_owned()))?;
            (found, item)
        }
        Addition::Prompt(text) | Addition::Control(text) => (&mut file, Value::from(*text)),
    };
    let owner = owner.as_object_mut().ok_or(ExtendError::Form)?;
    match owner.entry(key).or_insert_with(|| json!([])) {
        Value::Array(items) => items.push(item),
        Value::String(file) => {
            let file = file.clone();
            return Err(ExtendError::OtherFile { key, file });
        }
        _ => return Err(ExtendError::Form),
    }
    Ok(file)
}

/// A range of lines.
#[derive(Clone, Copy, Debug)]
struct Block {
    from: usize,
    /// Exclusive; blank lines and comments at the end are not part of it.
    to: usize,
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Whether a line says nothing.
fn is_silent(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// The text of a line's key, with a dash of a list counted as indentation.
fn key_of(line: &str) -> (usize, &str) {
    let mut at = indent(line);
    while line[at..].starts_with("- ") {
        at += 1 + indent(&line[at + 1..]);
    }
    (at, &line[at..])
}

/// From a line that begins at `from` to the last line of what belongs to it.
fn block(lines: &[String], from: usize, within: usize, ends: impl Fn(&str) -> bool) -> Block {
    let mut to = from + 1;
    for (at, line) in lines.iter().enumerate().take(within).skip(from + 1) {
        if is_silent(line) {
            continue;
        }
        if ends(line) {
            break;
        }
        to = at + 1;
    }
    Block { from, to }
}

/// The block of a key at an indentation, between two lines.
fn key_block(lines: &[String], owner: Block, column: usize, key: &str) -> Option<Block> {
    let head = format!("{key}:");
    let is_head = |line: &String| {
        let (at, text) = key_of(line);
        at == column && text.starts_with(&head) && !is_silent(line)
    };
    let from = owner.from + lines[owner.from..owner.to].iter().position(is_head)?;
    Some(block(lines, from, owner.to, |line| {
        // A list may stand as far left as its key.
        indent(line) < column || (indent(line) == column && !line[column..].starts_with("- "))
    }))
}

/// The rule's lines, and the column of its keys.
fn rule_block(lines: &[String], rule: &str) -> Option<(Block, usize)> {
    let whole = Block {
        from: 0,
        to: lines.len(),
    };
    let rules = key_block(lines, whole, 0, "rules")?;
    let names = [
        format!("id: {rule}"),
        format!("id: \"{rule}\""),
        format!("id: '{rule}'"),
    ];
    let first = (rules.from + 1..rules.to).find(|&at| !is_silent(&lines[at]))?;
    let dash = indent(&lines[first]);
    let (column, _) = key_of(&lines[first]);
    let mut from = first;
    while from < rules.to {
        let item = block(lines, from, rules.to, |line| indent(line) <= dash);
        let is_id = |line: &String| {
            let (at, text) = key_of(line);
            let text = text.split(" #").next().unwrap_or_default().trim_end();
            at == column && names.iter().any(|name| text == name)
        };
        if lines[item.from..item.to].iter().any(is_id) {
            return Some((item, column));
        }
        from = (item.to..rules.to).find(|&at| !is_silent(&lines[at]))?;
    }
    None
}

fn insert(mut lines: Vec<String>, addition: &Addition<'_>) -> Option<Vec<String>> {
    let whole = Block {
        from: 0,
        to: lines.len(),
    };
    let (owner, column) = match addition {
        Addition::Example { rule, .. } => rule_block(&lines, rule)?,
        Addition::Prompt(_) | Addition::Control(_) => (whole, 0),
    };
    let (key, item) = (key(addition), item(addition));
    let Some(list) = key_block(&lines, owner, column, key) else {
        let margin = " ".repeat(column);
        let at = match addition {
            Addition::Example { .. } => owner.to,
            // Behind the last line that says something.
            _ => lines.iter().rposition(|line| !is_silent(line))? + 1,
        };
        lines.insert(at, format!("{margin}{key}:"));
        lines.insert(at + 1, format!("{margin}  - {item}"));
        return Some(lines);
    };
    let items = &lines[list.from + 1..list.to];
    if let Some(first) = items
        .iter()
        .find(|line| line.trim_start().starts_with("- "))
    {
        let margin = " ".repeat(indent(first));
        lines.insert(list.to, format!("{margin}- {item}"));
        return Some(lines);
    }
    // A list in brackets: the item goes before the last one.
    let last = &mut lines[list.to - 1];
    let at = last.rfind(']')?;
    let is_empty = last[..at].trim_end().ends_with('[');
    let comma = if is_empty { "" } else { ", " };
    last.insert_str(at, &format!("{comma}{item}"));
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# A comment.
id: shop
controls: [\"a\"] # two
rules:
  - id: one   # the first
    violates: { response: { any_phrase: [x] } }
    examples:
      - { prompt: a, response: x, verdict: violates }

  # About two.
  - severity: high
    id: 'two'
    violates:
      response: { any_phrase: [y] }
prompts:
- first

# The end.
";

    fn example<'a>(rule: &'a str) -> Addition<'a> {
        Addition::Example {
            rule,
            prompt: "Say \"it\": #1",
            response: "no\nmore",
            verdict: ExampleVerdict::Complies,
        }
    }

    #[test]
    fn an_addition_is_one_line_where_it_belongs() {
        let line = r##"- { prompt: "Say \"it\": #1", response: "no\nmore", verdict: complies }"##;
        let cases = [
            (
                Addition::Control("b"),
                "controls: [\"a\", \"b\"] # two\n".to_owned(),
            ),
            (
                Addition::Prompt("b"),
                "- first\n- \"b\"\n\n# The end.".to_owned(),
            ),
            (
                example("one"),
                format!("verdict: violates }}\n      {line}\n\n  # About"),
            ),
            (
                example("two"),
                format!("[y] }}\n    examples:\n      {line}\nprompts:"),
            ),
        ];
        for (addition, expect) in cases {
            let changed = extend(FILE, &addition).unwrap();
            assert!(changed.contains(&expect), "{expect}\nis not in\n{changed}");
            assert!(changed.starts_with("# A comment.\n") && changed.ends_with("# The end.\n"));
            // Repeating it adds to the list that is there now.
            assert!(extend(&changed, &addition).is_ok(), "{changed}");
        }
        let bare = "id: a\nrules: []";
        let changed = extend(bare, &Addition::Control("b")).unwrap();
        assert_eq!(changed, "id: a\nrules: []\ncontrols:\n  - \"b\"\n");
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let other = FILE.replace("controls: [\"a\"]", "controls: all.txt");
        let told = extend(&other, &Addition::Control("b")).unwrap_err();
        assert!(told.to_string().contains("all.txt"), "{told}");
        let told = extend(FILE, &example("three")).unwrap_err();
        assert_eq!(told, ExtendError::NoRule("three".into()));
        for text in [
            "{ id: a, rules: [{ id: one }] }",
            "id: a\nrules: [{ id: one }]\n",
            "id: [",
            "",
        ] {
            assert_eq!(
                extend(text, &example("one")).unwrap_err(),
                ExtendError::Form,
                "{text}"
            );
        }
    }

    #[test]
    fn the_policies_of_the_repository_can_be_extended() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        for name in [
            "policies/helpful-answers.yaml",
            "demo/no-medication-doses.yaml",
            "policies/examples/tone-and-brand.yaml",
        ] {
            let text = std::fs::read_to_string(format!("{root}/{name}")).unwrap();
            let file = read(&text).unwrap();
            for rule in file["rules"].as_array().unwrap() {
                let rule = rule["id"].as_str().unwrap();
                let changed = extend(&text, &example(rule)).unwrap();
                assert!(changed.len() > text.len(), "{name} {rule}");
            }
            extend(&text, &Addition::Control("c")).unwrap();
        }
    }
}
