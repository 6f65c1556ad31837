//! Parses generated text into text and calls, incrementally.
//!
//! The text follows the grammar of [`super::tools`], so its form is known; only its end may be
//! missing. Whole and streamed answers are parsed by the same code.

use super::tools::arguments_key;
use realign_model::CallStyle;

const OPEN: &str = "<tool_call>";

/// A part of a parsed answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ParsedPart {
    /// Text outside of calls.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of the last call's arguments, as JSON text.
    Arguments(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only white space so far.
    Start,
    Text,
    /// Before the arguments.
    Head,
    Arguments {
        depth: usize,
        in_string: bool,
        escaped: bool,
    },
    /// After the arguments, up to the next call.
    Tail,
}

/// Parses one answer.
#[derive(Clone, Debug)]
pub(crate) struct CallParser {
    style: CallStyle,
    state: State,
    /// Text that is not parsed yet.
    held: String,
    /// Complete calls: names and arguments.
    made: Vec<(String, String)>,
    /// The last call.
    call: Call,
}

/// A call while it is parsed.
#[derive(Clone, Debug, Default)]
struct Call {
    name: String,
    arguments: String,
    /// Not returned yet, because it may turn out to repeat an earlier call.
    withheld: bool,
}

impl CallParser {
    pub(crate) fn new(style: CallStyle) -> Self {
        Self {
            style,
            state: State::Start,
            held: String::new(),
            made: Vec::new(),
            call: Call::default(),
        }
    }

    /// Adds new text and returns the parts it completes.
    pub(crate) fn push(&mut self, text: &str) -> Vec<ParsedPart> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Ends the answer. Text held back is returned as text, unless it belongs to a call. If the
    /// answer was `cut`, what may be the beginning of a call is taken for one.
    pub(crate) fn finish(&mut self, cut: bool) -> Vec<ParsedPart> {
        if cut && self.begun() > 0 {
            self.held.truncate(self.text_len());
        }
        let rest = std::mem::take(&mut self.held);
        let is_text = match self.state {
            State::Start | State::Text => true,
            // JSON that turned out not to be a call.
            State::Head => self.style == CallStyle::Bare && !(cut && begins_call(&rest)),
            State::Arguments { .. } | State::Tail => false,
        };
        if is_text && !rest.is_empty() {
            vec![ParsedPart::Text(rest)]
        } else {
            Vec::new()
        }
    }

    /// Takes one step; returns `false` if more text is needed.
    fn step(&mut self, parts: &mut Vec<ParsedPart>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Text => self.text(parts),
            State::Head => self.head(parts),
            State::Arguments {
                depth,
                in_string,
                escaped,
            } => self.arguments(parts, depth, in_string, escaped),
            State::Tail => self.tail(),
        }
    }

    fn start(&mut self) -> bool {
        match (self.style, self.held.chars().next()) {
            (_, None) => false,
            (CallStyle::Bare, Some('{')) => {
                self.state = State::Head;
                true
            }
            _ => {
                self.state = State::Text;
                true
            }
        }
    }

    fn text(&mut self, parts: &mut Vec<ParsedPart>) -> bool {
        let found = match self.style {
            CallStyle::Tagged => self.held.find(OPEN),
            CallStyle::Bare => None,
        };
        let (text, rest) = match found {
            Some(at) => (self.held[..at].trim_end(), &self.held[at + OPEN.len()..]),
            None => self.held.split_at(self.text_len()),
        };
        if !text.is_empty() {
            parts.push(ParsedPart::Text(text.to_string()));
        }
        self.held = rest.to_string();
        if found.is_some() {
            self.state = State::Head;
        }
        found.is_some()
    }

    /// Length of the held text that cannot belong to a call: without a partial tag at its end and
    /// the white space before that, in bytes.
    fn text_len(&self) -> usize {
        if self.style == CallStyle::Bare {
            return self.held.len();
        }
        // The tag is ASCII, so this is a character boundary.
        self.held[..self.held.len() - self.begun()].trim_end().len()
    }

    /// Length of a partial tag at the end of the held text.
    fn begun(&self) -> usize {
        if self.style == CallStyle::Bare || !matches!(self.state, State::Start | State::Text) {
            return 0;
        }
        let bytes = self.held.as_bytes();
        (1..OPEN.len().min(bytes.len() + 1))
            .rev()
            .find(|&n| OPEN.as_bytes().starts_with(&bytes[bytes.len() - n..]))
            .unwrap_or(0)
    }

    fn head(&mut self, parts: &mut Vec<ParsedPart>) -> bool {
        let mark = format!(", \"{}\": ", arguments_key(self.style));
        let Some(at) = self.held.find(&mark) else {
            return false;
        };
        let name = self.held[..at].trim_start();
        let name = name.strip_prefix("{\"name\": ").unwrap_or(name);
        let name = name.trim_matches('"').to_string();
        self.call = Call {
            withheld: self.made.iter().any(|(made, _)| *made == name),
            arguments: String::new(),
            name: name.clone(),
        };
        if !self.call.withheld {
            parts.push(ParsedPart::Call(name));
        }
        self.held.drain(..at + mark.len());
        self.state = State::Arguments {
            depth: 0,
            in_string: false,
            escaped: false,
        };
        true
    }

    fn arguments(
        &mut self,
        parts: &mut Vec<ParsedPart>,
        mut depth: usize,
        mut in_string: bool,
        mut escaped: bool,
    ) -> bool {
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let rest = end.map_or_else(String::new, |end| self.held.split_off(end));
        let arguments = std::mem::replace(&mut self.held, rest);
        if !arguments.is_empty() {
            self.add_arguments(arguments, parts);
        }
        if end.is_some() {
            let Call {
                name, arguments, ..
            } = std::mem::take(&mut self.call);
            self.made.push((name, arguments));
        }
        self.state = match end {
            Some(_) => State::Tail,
            None => State::Arguments {
                depth,
                in_string,
                escaped,
            },
        };
        end.is_some()
    }

    /// Adds arguments of the last call. A call that begins like an earlier one is returned where it
    /// differs, and never if it does not: small models repeat a call without end.
    fn add_arguments(&mut self, arguments: String, parts: &mut Vec<ParsedPart>) {
        let call = &mut self.call;
        call.arguments.push_str(&arguments);
        if !call.withheld {
            parts.push(ParsedPart::Arguments(arguments));
            return;
        }
        let repeats = |(name, made): &(String, String)| {
            *name == call.name && made.starts_with(&call.arguments)
        };
        if !self.made.iter().any(repeats) {
            call.withheld = false;
            parts.push(ParsedPart::Call(call.name.clone()));
            parts.push(ParsedPart::Arguments(call.arguments.clone()));
        }
    }

    fn tail(&mut self) -> bool {
        let Some(at) = self.held.find(OPEN) else {
            return false;
        };
        self.held.drain(..at + OPEN.len());
        self.state = State::Head;
        true
    }
}

/// Whether a bare answer that was cut may be a call.
fn begins_call(text: &str) -> bool {
    const HEAD: &str = "{\"name\": \"";
    let text = text.trim_start();
    text.starts_with(HEAD) || HEAD.starts_with(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text in pieces of `size` characters; joins what belongs together.
    fn read(style: CallStyle, text: &str, size: usize) -> Vec<ParsedPart> {
        read_to(style, text, size, false)
    }

    fn read_to(style: CallStyle, text: &str, size: usize, cut: bool) -> Vec<ParsedPart> {
        let mut parser = CallParser::new(style);
        let characters: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for piece in characters.chunks(size) {
            parts.extend(parser.push(&piece.iter().collect::<String>()));
        }
        parts.extend(parser.finish(cut));
        let mut joined: Vec<ParsedPart> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(ParsedPart::Text(all)), ParsedPart::Text(more))
                | (Some(ParsedPart::Arguments(all)), ParsedPart::Arguments(more)) => {
                    all.push_str(&more)
                }
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn text(text: &str) -> ParsedPart {
        ParsedPart::Text(text.into())
    }

    fn call(name: &str, arguments: &str) -> [ParsedPart; 2] {
        [
            ParsedPart::Call(name.into()),
            ParsedPart::Arguments(arguments.into()),
        ]
    }

    #[test]
    fn calls_are_read_alike_however_the_text_is_cut() {
        use CallStyle::{Bare, Tagged};
        let tricky = r#"{"a": "</tool_call> \"}{", "b": [{"c": "\\"}], "d": "é"}"#;
        let one =
            format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {tricky}}}\n</tool_call>");
        let two = format!("Let me see.\n\n{one}\n{}", one.replace("\"f\"", "\"g-2\""));
        let bare = format!("{{\"name\": \"f\", \"parameters\": {tricky}}}");
        let cut = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b";
        let cases = [
            (Tagged, one.clone(), call("f", tricky).to_vec()),
            (
                Tagged,
                two,
                [
                    &[text("Let me see.")][..],
                    &call("f", tricky),
                    &call("g-2", tricky),
                ]
                .concat(),
            ),
            (Bare, bare, call("f", tricky).to_vec()),
            (
                Bare,
                "It is {5}. <tool_call>".into(),
                vec![text("It is {5}. <tool_call>")],
            ),
            (
                Tagged,
                "a < b, <tool_cat> \n".into(),
                vec![text("a < b, <tool_cat> \n")],
            ),
            (Tagged, "ends in <tool".into(), vec![text("ends in <tool")]),
            (Tagged, cut.into(), call("f", "{\"a\": \"b").to_vec()),
            (Tagged, "<tool_call>\n{\"name\": \"f".into(), vec![]),
            (Tagged, String::new(), vec![]),
        ];
        for (style, whole, expected) in cases {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(read(style, &whole, size), expected, "{whole} by {size}");
            }
        }
    }

    #[test]
    fn a_cut_leaves_no_part_of_a_call_in_the_text() {
        use CallStyle::{Bare, Tagged};
        let arguments = |text: &str| call("f", text).to_vec();
        let cases = [
            (Tagged, "Sure.\n<tool", vec![text("Sure.")]),
            (Tagged, "Sure.\n<tool_call>\n{\"na", vec![text("Sure.")]),
            (Tagged, "<tool_call>", vec![]),
            (
                Tagged,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a",
                arguments("{\"a"),
            ),
            (Tagged, "a < b \n", vec![text("a < b \n")]),
            (Bare, "{\"na", vec![]),
            (Bare, "{\"name\": \"f", vec![]),
            (Bare, "{\"city\": \"Os", vec![text("{\"city\": \"Os")]),
        ];
        for (style, whole, expected) in cases {
            for size in [1, 2, 7, 1000] {
                assert_eq!(
                    read_to(style, whole, size, true),
                    expected,
                    "{whole} by {size}"
                );
            }
        }
    }

    #[test]
    fn a_repeated_call_is_dropped() {
        let made = |name: &str, arguments: &str| {
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>"
            )
        };
        let text = [
            made("f", r#"{"a": 1}"#),
            made("f", r#"{"a": 12}"#),
            made("f", r#"{"a": 1}"#),
            made("g", r#"{"a": 1}"#),
            made("f", r#"{"a": 12}"#),
        ];
        let expected = [
            call("f", r#"{"a": 1}"#),
            call("f", r#"{"a": 12}"#),
            call("g", r#"{"a": 1}"#),
        ];
        for size in [1, 3, 1000] {
            let parts = read(CallStyle::Tagged, &text.join("\n"), size);
            assert_eq!(parts, expected.concat(), "by {size}");
        }
    }
}
