//! What is wrong with a request, and in which field.

use std::fmt;

use serde::de::{Error, Expected, Unexpected};
use serde_json::{Number, Value};

use super::super::error::ApiError;

/// Placeholder for the field's path, with backticks, in the messages of [`message`].
pub(crate) const FIELD: char = '\u{1}';
/// Marks the text of an error as "not supported": serde passes custom errors on as text only.
const UNSUPPORTED: char = '\u{2}';
/// Maximum number of characters of a client's text that an error repeats.
const SHOWN: usize = 64;

/// A path segment: from an object or array to one of its elements.
#[derive(Debug)]
pub(super) enum Step {
    Field(String),
    Item(usize),
}

/// What is wrong with a field.
#[derive(Debug)]
enum Problem {
    Missing,
    Type {
        expected: String,
        found: &'static str,
    },
    Value {
        found: String,
        allowed: String,
    },
    /// `expected` names the items and how many are allowed.
    Length {
        count: usize,
        expected: String,
    },
    Unsupported {
        detail: String,
    },
    /// The message, with [`FIELD`] for the path.
    Message(String),
}

/// A faulty field: what is wrong, and the path to it, innermost segment first.
#[derive(Debug)]
pub(super) struct Fault {
    steps: Vec<Step>,
    problem: Problem,
}

impl Fault {
    fn new(problem: Problem) -> Self {
        Self {
            steps: Vec::new(),
            problem,
        }
    }

    /// A required field is missing.
    pub(super) fn missing() -> Self {
        Self::new(Problem::Missing)
    }

    /// The same fault, seen from the enclosing object or array.
    pub(super) fn within(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn path(&self) -> String {
        path(self.steps.iter().rev())
    }
}

/// The path of these steps, from the outermost to the innermost.
pub(super) fn path<'a>(steps: impl Iterator<Item = &'a Step>) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Field(name) if path.is_empty() => path.push_str(name),
            Step::Field(name) => path.push_str(&format!(".{name}")),
            Step::Item(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let path = fault.path();
        let message = match fault.problem {
            Problem::Missing => format!("the field `{path}` is required"),
            Problem::Type { expected, found } => {
                format!("`{path}` must be {expected}, not {found}")
            }
            Problem::Value { found, allowed } => format!("`{path}` is {found}; allowed: {allowed}"),
            Problem::Length { count, expected } => format!("`{path}` has {count} {expected}"),
            Problem::Unsupported { detail } => {
                return ApiError::Unsupported {
                    param: path,
                    detail,
                };
            }
            Problem::Message(message) => message.replace(FIELD, &format!("`{path}`")),
        };
        ApiError::field(path, message)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.path(), self.problem)
    }
}

impl std::error::Error for Fault {}

impl Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        let text = text.to_string();
        Self::new(match text.strip_prefix(UNSUPPORTED) {
            Some(detail) => Problem::Unsupported {
                detail: detail.into(),
            },
            None => Problem::Message(text),
        })
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a number with a fraction",
            Unexpected::Char(_) | Unexpected::Str(_) => "a string",
            Unexpected::Seq => "an array",
            Unexpected::Map => "an object",
            Unexpected::Unit | Unexpected::Option => "null",
            _ => "another value",
        };
        Self::new(Problem::Type {
            expected: plain(expected),
            found,
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Float(number) => Value::from(number).to_string(),
            Unexpected::Unsigned(number) => Number::from(number).to_string(),
            Unexpected::Signed(number) => Number::from(number).to_string(),
            Unexpected::Str(text) => shown(text),
            other => other.to_string(),
        };
        Self::new(Problem::Value {
            found,
            allowed: plain(expected),
        })
    }

    fn invalid_length(count: usize, expected: &dyn Expected) -> Self {
        Self::new(Problem::Length {
            count,
            expected: expected.to_string(),
        })
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        let allowed: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
        Self::new(Problem::Value {
            found: shown(found),
            allowed: allowed.join(", "),
        })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::missing().within(Step::Field(name.into()))
    }
}

/// What was expected, in plain words where serde has its own.
fn plain(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer, 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer".into(),
        "f32" | "f64" => "a number".into(),
        "a sequence" => "an array".into(),
        "a map" => "an object".into(),
        _ => expected,
    }
}

fn shown(text: &str) -> String {
    format!("{:?}", shortened(text))
}

/// The beginning of a client's text.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// An error with its own text, in which [`FIELD`] stands for the field's path.
pub(crate) fn message<E: Error>(text: impl fmt::Display) -> E {
    E::custom(text)
}

/// A field asks for something that this server does not support; `detail` says which of its values,
/// with a leading space, or is empty.
pub(crate) fn unsupported<E: Error>(detail: &str) -> E {
    E::custom(format!("{UNSUPPORTED}{detail}"))
}

/// A value as serde's errors name it.
pub(crate) fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), _, _) => Unexpected::Unsigned(value),
            (None, Some(value), _) => Unexpected::Signed(value),
            (None, None, value) => Unexpected::Float(value.unwrap_or(f64::NAN)),
        },
        Value::String(text) => Unexpected::Str(text),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

/// A value of the wrong JSON type.
pub(crate) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::field(
        path,
        format!("`{path}` must be {expected}, not {}", kind(found)),
    )
}

/// A value's JSON type, as error messages name it.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
