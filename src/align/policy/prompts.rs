//! Lists of prompts in a policy, or in a file beside it.

use std::path::Path;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::error::PolicyError;
use super::labelled::{FileReader, is_plain_name};
use super::raw::RawPrompts;

/// Most prompts of one list.
const MAX_PROMPTS: usize = 10_000;

#[derive(Deserialize)]
struct PromptRow {
    prompt: String,
}

/// The prompts of a list or a file, without blank ones; errors are recorded.
pub(super) fn resolve(
    file: &Path,
    key: &str,
    raw: Spanned<RawPrompts>,
    reader: FileReader<'_>,
    errors: &mut Vec<PolicyError>,
) -> Vec<String> {
    let at = raw.referenced;
    let read = match raw.value {
        RawPrompts::List(prompts) => Ok(prompts),
        RawPrompts::File(name) => read_file(&name, reader),
    };
    let problem = match &read {
        Ok(prompts) if prompts.len() > MAX_PROMPTS => {
            format!("`{key}` has more than {MAX_PROMPTS} prompts")
        }
        Ok(prompts) if prompts.iter().all(|prompt| prompt.trim().is_empty()) => {
            format!("`{key}` has no prompt; leave it out or give a list or a file")
        }
        Ok(prompts) => return cleaned(prompts),
        Err(why) => format!("`{key}`: {why}"),
    };
    errors.push(PolicyError::at(file, at, problem));
    Vec::new()
}

fn cleaned(prompts: &[String]) -> Vec<String> {
    let trimmed = prompts.iter().map(|prompt| prompt.trim());
    let kept = trimmed.filter(|prompt| !prompt.is_empty());
    kept.map(str::to_owned).collect()
}

fn read_file(name: &str, reader: FileReader<'_>) -> Result<Vec<String>, String> {
    let is_json = name.ends_with(".jsonl");
    if !is_plain_name(name) || !(is_json || name.ends_with(".txt")) {
        return Err(format!(
            "{name:?} is not the name of a .txt or .jsonl file in the policy's directory"
        ));
    }
    let bytes = reader(Path::new(name)).map_err(|error| format!("cannot read {name}: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|error| format!("{name}: {error}"))?;
    let lines = text.lines().enumerate();
    let mut prompts = Vec::new();
    for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        if is_json {
            let row: PromptRow = serde_json::from_str(line).map_err(|error| {
                format!(
                    "{name} line {}: {error}; each line holds a prompt",
                    index + 1
                )
            })?;
            prompts.push(row.prompt);
        } else {
            prompts.push(line.to_owned());
        }
    }
    Ok(prompts)
}
