//! A template's source before it is compiled: checked, and rewritten where minijinja's parser reads it
//! in another way than Jinja2.

use minijinja::machinery::{Token, tokenize};
use minijinja::{Environment, Error};

use super::budget::exceeded;

/// Tokens between `{{` and `}}`, or `{%` and `%}`: the parser nests a chain of operators as deep
/// as it is long, and the compiler recurses.
const MAX_BLOCK_TOKENS: usize = 1000;
/// `elif` branches: each nests in the one before it.
const MAX_ELIFS: usize = 200;
/// Most bytes of a template's source. The longest that models come with have 30 KB.
const MAX_SOURCE: usize = 1 << 20;
/// Most lines: the library counts them in 16 bits.
const MAX_LINES: usize = 50_000;

/// Behind [`super::python::SAME`] a constant is none.
const SAMED: &str = "|realign_same ";
/// Makes a list a tuple, see [`super::python::TUPLE`].
const TUPLED: &str = "|realign_tuple ";

/// An environment that reads source as `transformers` has it read.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // The settings under which templates are written and tested upstream.
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment
}

fn check_source(source: &str) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(exceeded(format!("has more than {MAX_SOURCE} bytes")));
    }
    if source.matches('\n').count() > MAX_LINES {
        return Err(exceeded(format!("has more than {MAX_LINES} lines")));
    }
    Ok(())
}

/// What a token is to the one behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// `{{` or `{%`, and whatever else begins an operand.
    Opener,
    BlockStart,
    /// A literal that begins an operand, or does not.
    Literal {
        first: bool,
    },
    /// A text, which may go on in the next literal.
    Text {
        first: bool,
    },
    /// The end of a list or a dictionary, or of an expression in parentheses.
    Closed {
        literal: bool,
    },
    /// A name, a call, an item: what no constant is.
    Value,
    /// An operator other than `and`, `or` and `not`.
    Operator,
    /// `is`, behind which `none` is the name of a test.
    Is,
    Dot,
}

/// An open bracket.
struct Open {
    /// A call or an index, not an operand of its own.
    follows_value: bool,
    is_paren: bool,
    /// What a loop or `set` assigns to.
    is_target: bool,
    has_comma: bool,
}

/// Rewrites a source:
///
/// - Constants: the compiler computes expressions of them, in its own way and without a budget. Behind
///   the filter `SAME` they are none.
/// - `(1, 2)` is a tuple, which `%` needs to know.
/// - `{% generation %}`, with which training tools mark the assistant's text, is a block of its own.
/// - Texts side by side are one.
///
/// # Errors
/// For a source that is too large, or malformed.
pub(super) fn prepare(source: &str) -> Result<String, Error> {
    check_source(source)?;
    let mut prepared = String::with_capacity(source.len());
    let mut reader = Reader::default();
    let mut copied = 0;
    for token in tokenize(source, false, Default::default(), Default::default()) {
        let (token, span) = token?;
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let change = reader.read(&token)?;
        if change == Change::None {
            continue;
        }
        let upto = match change {
            Change::Behind(_) => end,
            _ => start,
        };
        prepared.push_str(source.get(copied..upto).unwrap_or_default());
        copied = upto;
        match change {
            Change::Instead(text) => {
                prepared.push_str(text);
                copied = end;
            }
            Change::Behind(filter) | Change::Before(filter) => {
                prepared.push_str(filter);
            }
            Change::None => {}
        }
    }
    prepared.push_str(source.get(copied..).unwrap_or_default());
    Ok(prepared)
}

/// What is written where a token stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Instead(&'static str),
    Before(&'static str),
    Behind(&'static str),
}

struct Reader {
    last: Last,
    open: Vec<Open>,
    in_block: usize,
    elifs: usize,
    /// Behind `for` or `set`.
    at_target: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            last: Last::Opener,
            open: Vec::new(),
            in_block: 0,
            elifs: 0,
            at_target: false,
        }
    }
}

impl Reader {
    fn read(&mut self, token: &Token<'_>) -> Result<Change, Error> {
        self.count(token)?;
        let last = self.last;
        let first = matches!(last, Last::Opener | Last::BlockStart);
        let mut change = Change::None;
        self.last = match token {
            Token::TemplateData(_) | Token::VariableStart => {
                self.open.clear();
                Last::Opener
            }
            Token::BlockStart => {
                self.open.clear();
                Last::BlockStart
            }
            Token::Ident(name) => {
                let (role, at_name) = self.name(name);
                change = at_name;
                role
            }
            Token::Str(_) | Token::String(_) => {
                if matches!(last, Last::Text { .. }) {
                    change = Change::Before("~");
                }
                Last::Text { first }
            }
            Token::Int(_) | Token::Int128(_) | Token::Float(_) => Last::Literal { first },
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                self.open.push(Open {
                    follows_value: !matches!(
                        last,
                        Last::Opener | Last::BlockStart | Last::Operator | Last::Is
                    ),
                    is_paren: matches!(token, Token::ParenOpen),
                    is_target: self.at_target,
                    has_comma: false,
                });
                Last::Opener
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => match self.open.pop() {
                Some(open) if open.follows_value => Last::Value,
                Some(open) if open.is_paren && open.has_comma && !open.is_target => {
                    change = Change::Behind(TUPLED);
                    Last::Value
                }
                _ => Last::Closed {
                    literal: !matches!(token, Token::ParenClose),
                },
            },
            Token::Comma => {
                if let Some(open) = self.open.last_mut() {
                    open.has_comma = true;
                }
                Last::Opener
            }
            Token::Dot => Last::Dot,
            Token::Pipe => Last::Dot,
            Token::Assign | Token::Colon => Last::Opener,
            Token::VariableEnd | Token::BlockEnd => Last::Opener,
            _ => {
                // A `-` behind an operand is an operator, and so is a `*` that spreads no list.
                if matches!(
                    last,
                    Last::Literal { .. } | Last::Text { .. } | Last::Closed { .. }
                ) {
                    change = Change::Before(SAMED);
                }
                Last::Operator
            }
        };
        if !matches!(
            token,
            Token::Ident("for" | "set") | Token::Comma | Token::Ident(_)
        ) {
            self.at_target &= matches!(token, Token::ParenOpen | Token::ParenClose);
        }
        Ok(change)
    }

    /// A name: a keyword, a literal or a variable.
    fn name(&mut self, name: &str) -> (Last, Change) {
        let last = self.last;
        let first = matches!(last, Last::Opener | Last::BlockStart);
        if last == Last::Dot {
            return (Last::Value, Change::None);
        }
        if last == Last::BlockStart {
            self.at_target = matches!(name, "for" | "set");
            return match name {
                "generation" => (Last::Value, Change::Instead("with")),
                "endgeneration" => (Last::Value, Change::Instead("endwith")),
                _ => (Last::Opener, Change::None),
            };
        }
        match name {
            "true" | "false" | "none" | "True" | "False" | "None" if last != Last::Is => {
                (Last::Literal { first }, Change::None)
            }
            "and" | "or" => {
                let is_alone = matches!(
                    last,
                    Last::Literal { first: true }
                        | Last::Text { first: true }
                        | Last::Closed { literal: true }
                );
                let change = if is_alone {
                    Change::Before(SAMED)
                } else {
                    Change::None
                };
                (Last::Opener, change)
            }
            "in" => {
                self.at_target = false;
                (Last::Operator, Change::None)
            }
            "not" if last == Last::Is => (Last::Is, Change::None),
            "if" | "elif" | "else" | "not" => (Last::Opener, Change::None),
            "is" => (Last::Is, Change::None),
            _ => (Last::Value, Change::None),
        }
    }

    /// Refuses expressions that are too long.
    fn count(&mut self, token: &Token<'_>) -> Result<(), Error> {
        self.in_block += 1;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => self.in_block = 0,
            Token::Ident("elif") => self.elifs += 1,
            _ => {}
        }
        if self.in_block > MAX_BLOCK_TOKENS {
            let limit = MAX_BLOCK_TOKENS;
            return Err(exceeded(format!(
                "has an expression of more than {limit} tokens"
            )));
        }
        if self.elifs > MAX_ELIFS {
            return Err(exceeded(format!("has more than {MAX_ELIFS} elif branches")));
        }
        Ok(())
    }
}
