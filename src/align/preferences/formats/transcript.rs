//! Dialogues as one text, as in Anthropic HH: turns that begin with `\n\nHuman:` or
//! `\n\nAssistant:`.

use super::{LineError, Message, Role};

const MARKS: [(&str, Role); 2] = [
    ("\n\nHuman:", Role::User),
    ("\n\nAssistant:", Role::Assistant),
];

/// The turns of a text, trimmed.
pub(super) fn turns(key: &str, text: &str) -> Result<Vec<Message>, LineError> {
    let text = format!("\n\n{}", text.trim_start());
    // One pass for each mark: a search from turn to turn would be quadratic in a line of 4 MiB.
    let mut starts: Vec<(usize, usize, Role)> = MARKS
        .iter()
        .flat_map(|(mark, role)| {
            let found = text.match_indices(mark);
            found.map(|(start, mark)| (start, start + mark.len(), *role))
        })
        .collect();
    starts.sort_unstable_by_key(|(start, ..)| *start);
    if starts.first().is_none_or(|(start, ..)| *start > 0) {
        return Err(LineError::NoTurns(key.into()));
    }
    let ends = starts.iter().skip(1).map(|(start, ..)| *start);
    let ends = ends.chain([text.len()]);
    let turn = |(&(_, body, role), end): (&(usize, usize, Role), usize)| Message {
        role,
        content: text[body..end].trim().to_owned(),
    };
    Ok(starts.iter().zip(ends).map(turn).collect())
}

/// The turns of a prompt that ends where the assistant is to speak; `None` for any other text.
pub(super) fn prompt(key: &str, text: &str) -> Option<Vec<Message>> {
    if !text.trim_end().ends_with("\n\nAssistant:") {
        return None;
    }
    let mut turns = turns(key, text).ok()?;
    turns.pop();
    (!turns.is_empty()).then_some(turns)
}
