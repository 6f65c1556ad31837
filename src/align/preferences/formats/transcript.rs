//! Dialogues as one text, with a mark in front of each turn: `Human: …` and `Assistant: …` as in Anthropic
//! HH, some other common marks, and ChatML.

use super::{LineError, Message, Role};

/// The marks of user and assistant.
#[derive(Clone, Copy)]
struct Marks {
    user: &'static str,
    assistant: &'static str,
    /// Whether a text in front of the first turn is a system prompt.
    preface: bool,
}

const HH: Marks = marks("Human:", "Assistant:", true);
const FORMS: [Marks; 5] = [
    HH,
    marks("User:", "Assistant:", false),
    marks("USER:", "ASSISTANT:", false),
    marks("### Human:", "### Assistant:", false),
    marks("### Instruction:", "### Response:", true),
];
/// A text that stands before the first turn and says what it is.
const SYSTEM: &str = "System:";
/// How chat templates open turns: a text that begins so was written by one.
const RENDERED: [&str; 10] = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<bos>",
    "<s>",
    "[INST]",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
    "<|start|>",
];
const OPEN: &str = "<|im_start|>";
const CLOSE: &str = "<|im_end|>";

const fn marks(user: &'static str, assistant: &'static str, preface: bool) -> Marks {
    Marks {
        user,
        assistant,
        preface,
    }
}

/// A dialogue.
pub(super) struct Transcript {
    pub(super) turns: Vec<Message>,
    /// Whether it ends with the mark of the assistant, who is to speak.
    open: bool,
    /// The assistant's mark.
    mark: &'static str,
    /// What a row with it is read as.
    pub(super) format: &'static str,
}

impl Transcript {
    /// A response without what belongs to the form: the mark of its turn, unless the prompt ends with it,
    /// and the white space around it.
    pub(super) fn answer<'a>(&self, text: &'a str) -> &'a str {
        let text = text.trim();
        let text = text.strip_suffix(CLOSE).map_or(text, str::trim_end);
        match text.strip_prefix(self.mark) {
            Some(rest) if !self.open => rest.trim_start(),
            _ => text,
        }
    }
}

/// The dialogue in a prompt; `None` for any other text. It is one if its turns alternate and one is the
/// assistant's, if only the mark.
///
/// # Errors
/// If a chat template wrote the text in a form that is not read.
pub(super) fn prompt(key: &str, text: &str) -> Result<Option<Transcript>, LineError> {
    let start = text.trim_start();
    if start.starts_with(OPEN) {
        return chatml(key, start).map(Some);
    }
    if let Some(mark) = RENDERED.iter().find(|mark| start.starts_with(**mark)) {
        return Err(LineError::Rendered {
            key: key.into(),
            mark,
        });
    }
    let found = dialogue(text);
    Ok(found.or_else(|| match text.contains('\r') {
        true => dialogue(&text.replace("\r\n", "\n")),
        false => None,
    }))
}

/// The turns of a text with marks.
fn dialogue(text: &str) -> Option<Transcript> {
    let start = text.trim_start();
    let alternating = FORMS.into_iter().find_map(|marks| {
        let turns = paragraphs(start, marks).filter(|turns| is_dialogue(turns));
        let turns = turns.or_else(|| lines(start, marks).filter(|turns| is_dialogue(turns)));
        turns.map(|turns| close(turns, marks))
    });
    // In HH the blank line is part of the mark, and a speaker may have several turns in a row.
    let hh = || {
        let turns = paragraphs(start, HH)?;
        let spoken = turns.iter().any(|turn| turn.role == Role::Assistant);
        (spoken || text.starts_with("\n\n")).then(|| close(turns, HH))
    };
    let prefaced = || {
        FORMS
            .into_iter()
            .find_map(|marks| Some(close(prefaced(start, marks)?, marks)))
    };
    alternating.or_else(hh).or_else(prefaced)
}

/// Whether the turns alternate, and one is the assistant's.
fn is_dialogue(turns: &[Message]) -> bool {
    alternates(turns) && turns.iter().any(|turn| turn.role == Role::Assistant)
}

/// The turns of a whole dialogue, the answer at its end included; `None` for any other text.
pub(super) fn whole(key: &str, text: &str) -> Option<Vec<Message>> {
    let transcript = prompt(key, text).ok()??;
    let answered = transcript.turns.last()?.role == Role::Assistant && !transcript.open;
    answered.then_some(transcript.turns)
}

/// The turns of a text that can be nothing but a dialogue, since no prompt is given.
pub(super) fn turns(key: &str, text: &str) -> Result<(Vec<Message>, &'static str), LineError> {
    let hh = paragraphs(text.trim_start(), HH).map(|turns| (turns, "Anthropic HH"));
    let answered =
        |(turns, _): &(Vec<Message>, &str)| turns.iter().any(|turn| turn.role == Role::Assistant);
    if let Some(hh) = hh.clone().filter(answered) {
        return Ok(hh);
    }
    match prompt(key, text)? {
        Some(transcript) => Ok((transcript.turns, transcript.format)),
        None => hh.ok_or_else(|| LineError::NoTurns(key.into())),
    }
}

fn close(mut turns: Vec<Message>, marks: Marks) -> Transcript {
    let open = turns
        .pop_if(|last| last.role == Role::Assistant && last.content.is_empty())
        .is_some();
    Transcript {
        turns,
        open,
        mark: marks.assistant,
        format: "transcript",
    }
}

/// Whether the turns, behind a system prompt, are the user's and the assistant's in turn.
fn alternates(turns: &[Message]) -> bool {
    let turns = match turns {
        [first, rest @ ..] if first.role == Role::System => rest,
        all => all,
    };
    let mut expected = [Role::User, Role::Assistant].into_iter().cycle();
    turns.iter().all(|turn| Some(turn.role) == expected.next())
}

/// Turns whose marks begin paragraphs.
fn paragraphs(text: &str, marks: Marks) -> Option<Vec<Message>> {
    let text = format!("\n\n{}", text.trim_start());
    split(&text, "\n\n", marks)
        .filter(|(preface, _)| preface.is_empty())
        .map(|(_, turns)| turns)
}

/// Turns whose marks begin lines.
fn lines(text: &str, marks: Marks) -> Option<Vec<Message>> {
    let text = format!("\n{text}");
    split(&text, "\n", marks)
        .filter(|(preface, _)| preface.is_empty())
        .map(|(_, turns)| turns)
}

/// Turns behind a system prompt, up to the mark of the assistant who is to speak.
fn prefaced(text: &str, marks: Marks) -> Option<Vec<Message>> {
    let named = text.starts_with(SYSTEM);
    if !named && !marks.preface {
        return None;
    }
    let separators = if named { ["\n\n", "\n"] } else { ["\n\n"; 2] };
    separators.into_iter().find_map(|before| {
        let (preface, turns) = split(text, before, marks)?;
        let preface = preface.strip_prefix(SYSTEM).unwrap_or(preface).trim();
        let preface = Some(preface).filter(|text| !text.starts_with(marks.user))?;
        let open = turns
            .last()
            .is_some_and(|last| last.role == Role::Assistant && last.content.is_empty());
        (open && alternates(&turns) && !preface.is_empty()).then(|| {
            let system = Message::new(Role::System, preface);
            std::iter::once(system).chain(turns).collect()
        })
    })
}

/// What precedes the first mark, and the turns, trimmed. `None` if there is no mark.
fn split<'a>(text: &'a str, before: &str, marks: Marks) -> Option<(&'a str, Vec<Message>)> {
    // One pass for each mark: a search from turn to turn would be quadratic in a line of 4 MiB.
    let mut starts: Vec<(usize, usize, Role)> = Vec::new();
    for (mark, role) in [(marks.user, Role::User), (marks.assistant, Role::Assistant)] {
        let mark = format!("{before}{mark}");
        let found = text.match_indices(&mark);
        starts.extend(found.map(|(start, mark)| (start, start + mark.len(), role)));
    }
    starts.sort_unstable_by_key(|(start, ..)| *start);
    let (first, ..) = *starts.first()?;
    let ends = starts.iter().skip(1).map(|(start, ..)| *start);
    let ends = ends.chain([text.len()]);
    let turns = starts
        .iter()
        .zip(ends)
        .map(|(&(_, body, role), end)| Message::new(role, text[body..end].trim()));
    Some((&text[..first], turns.collect()))
}

/// `<|im_start|>role`, a line break, the content, `<|im_end|>`; the last turn may be open.
fn chatml(key: &str, text: &str) -> Result<Transcript, LineError> {
    let mut turns = Vec::new();
    for turn in text.split(OPEN).skip(1) {
        let (role, content) = turn.split_once('\n').unwrap_or((turn, ""));
        let role = match role.trim() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => {
                return Err(LineError::Rendered {
                    key: key.into(),
                    mark: OPEN,
                });
            }
        };
        let content = content.trim_end();
        let content = content.strip_suffix(CLOSE).unwrap_or(content);
        turns.push(Message::new(role, content.trim()));
    }
    Ok(Transcript {
        format: "ChatML",
        ..close(turns, HH)
    })
}
