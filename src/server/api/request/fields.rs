//! Types of single fields. Each defines both the reader and the schema of its field.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde_json::Value;

use super::fault::{FIELD, message, unexpected};
use realign_core::json::parse as parse_json;

/// Maximum length of the name of a function or schema.
const MAX_NAME: usize = 64;
/// Maximum size of a schema's JSON text, in bytes.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;

/// Implements `JsonSchema` for an inlined type.
macro_rules! inline_schema {
    ($name:literal, $generator:ident => $schema:expr) => {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            $name.into()
        }

        fn json_schema($generator: &mut SchemaGenerator) -> Schema {
            $schema
        }
    };
}

/// A number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Number<const MIN: i64, const MAX: i64>(pub(crate) f64);

impl<const MIN: i64, const MAX: i64> JsonSchema for Number<MIN, MAX> {
    inline_schema!("Number", _generator =>
        json_schema!({"type": "number", "minimum": MIN, "maximum": MAX}));
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Number<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some(number) = value.as_f64() else {
            return Err(D::Error::invalid_type(unexpected(&value), &"a number"));
        };
        if (MIN as f64..=MAX as f64).contains(&number) {
            return Ok(Self(number));
        }
        let allowed = format!("{MIN} to {MAX}");
        Err(D::Error::invalid_value(
            unexpected(&value),
            &allowed.as_str(),
        ))
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Integer<const MIN: i64, const MAX: i64>(pub(crate) i64);

impl<const MIN: i64, const MAX: i64> JsonSchema for Integer<MIN, MAX> {
    inline_schema!("Integer", _generator =>
        json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX}));
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Integer<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Some(number) = value.as_u64().filter(|number| *number > i64::MAX as u64) {
            let allowed = format!("up to {MAX}");
            let found = Unexpected::Unsigned(number);
            return Err(D::Error::invalid_value(found, &allowed.as_str()));
        }
        let Some(number) = value.as_i64().or_else(|| whole(&value)) else {
            // Too large for a count of 64 bits, and so without a fraction.
            if let Some(number) = value.as_f64().filter(|number| number.fract() == 0.0) {
                let allowed = format!("{MIN} to {MAX}");
                let found = Unexpected::Float(number);
                return Err(D::Error::invalid_value(found, &allowed.as_str()));
            }
            let expected = "an integer of 64 bits";
            return Err(D::Error::invalid_type(unexpected(&value), &expected));
        };
        if (MIN..=MAX).contains(&number) {
            return Ok(Self(number));
        }
        let allowed = match MAX {
            i64::MAX => format!("{MIN} or more"),
            max => format!("{MIN} to {max}"),
        };
        Err(D::Error::invalid_value(
            Unexpected::Signed(number),
            &allowed.as_str(),
        ))
    }
}

/// The integer that is written with a point, as some languages write all numbers: `2.0`.
fn whole(value: &Value) -> Option<i64> {
    // The largest number up to which every integer has a form of its own.
    const MOST: f64 = 9_007_199_254_740_992.0;
    let number = value.as_f64()?;
    (number.fract() == 0.0 && number.abs() <= MOST).then_some(number as i64)
}

/// A count from `MIN`, which is not negative, to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count<const MIN: i64, const MAX: i64>(pub(crate) usize);

impl<const MIN: i64, const MAX: i64> JsonSchema for Count<MIN, MAX> {
    inline_schema!("Count", generator => Integer::<MIN, MAX>::json_schema(generator));
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Integer(number) = Integer::<MIN, MAX>::deserialize(deserializer)?;
        Ok(Self(usize::try_from(number).unwrap_or(0)))
    }
}

/// The most tokens of an answer: 1 or more, or -1 for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<usize>);

impl JsonSchema for Limit {
    inline_schema!("Limit", _generator => json_schema!({"type": "integer", "anyOf": [
        {"minimum": 1, "maximum": i64::MAX}, {"const": -1}]}));
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Integer::<{ i64::MIN }, { i64::MAX }>::deserialize(deserializer)?.0 {
            -1 => Ok(Self(None)),
            number @ 1.. => Ok(Self(usize::try_from(number).ok())),
            number => Err(D::Error::invalid_value(
                Unexpected::Signed(number),
                &"1 or more, and -1 for no limit",
            )),
        }
    }
}

/// The `model` field.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct ModelName(pub(crate) String);

impl ModelName {
    /// Placeholder for the served name in the schema.
    pub(crate) const SERVED: &str = "SERVED_NAME";
}

impl JsonSchema for ModelName {
    inline_schema!("ModelName", _generator => json_schema!({
        "type": "string",
        "description":
            "The served name, `<name>@base`, or `<name>@<generation>` to pin one.",
        "examples": [Self::SERVED],
    }));
}

/// The name of a function or schema. Beyond OpenAI's characters it may have those of MCP servers'
/// tools. None of them is escaped in JSON, which grammars of calls rely on.
#[derive(Clone, Debug)]
pub(crate) struct Name(pub(crate) String);

impl JsonSchema for Name {
    inline_schema!("Name", _generator => {
        let pattern = format!("^[a-zA-Z0-9_./:-]{{1,{MAX_NAME}}}$");
        json_schema!({"type": "string", "pattern": pattern})
    });
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(message(format_args!(
                "{FIELD} must have 1 to {MAX_NAME} characters; allowed: letters, digits, \
                 `_`, `-`, `.`, `/`, `:`"
            )));
        }
        Ok(Self(name))
    }
}

/// A JSON schema that a client sends.
#[derive(Clone, Debug)]
pub(crate) struct JsonSchemaText(pub(crate) Value);

impl JsonSchema for JsonSchemaText {
    inline_schema!("JsonSchema", _generator => {
        let description = format!("A JSON schema of at most {} KiB.", MAX_SCHEMA_BYTES / 1024);
        json_schema!({"type": "object", "description": description})
    });
}

impl JsonSchemaText {
    fn check<E: Error>(value: Value) -> Result<Self, E> {
        if !value.is_object() {
            let expected = "a JSON schema (an object)";
            return Err(E::invalid_type(unexpected(&value), &expected));
        }
        let bytes = value.to_string().len();
        if bytes > MAX_SCHEMA_BYTES {
            let allowed = format!("bytes; allowed: up to {MAX_SCHEMA_BYTES}");
            return Err(E::invalid_length(bytes, &allowed.as_str()));
        }
        Ok(Self(value))
    }
}

impl<'de> Deserialize<'de> for JsonSchemaText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::check(Value::deserialize(deserializer)?)
    }
}

/// The arguments of an earlier call: any text, mostly that of a JSON object.
#[derive(Clone, Debug)]
pub(crate) struct Arguments(Value);

impl Arguments {
    /// Arguments that this server's model wrote.
    pub(crate) fn of(text: &str) -> Self {
        Self(Value::String(text.to_owned()))
    }

    /// The arguments as templates read them: an object where the text is one, `{}` for an empty
    /// text, otherwise the text as it is. A model's arguments may be cut or malformed.
    pub(crate) fn for_template(self) -> Value {
        let Value::String(text) = &self.0 else {
            return self.0;
        };
        if text.trim().is_empty() {
            return Value::Object(serde_json::Map::new());
        }
        // What says two things is no object.
        let parsed: Option<Value> = parse_json(text.as_bytes()).ok();
        parsed.filter(Value::is_object).unwrap_or(self.0)
    }
}

impl JsonSchema for Arguments {
    inline_schema!("Arguments", _generator =>
        json_schema!({"type": "string", "description": "The text of a JSON object."}));
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            arguments @ (Value::String(_) | Value::Object(_)) => Ok(Self(arguments)),
            other => Err(D::Error::invalid_type(unexpected(&other), &"a string")),
        }
    }
}

/// A JSON schema, or its text.
#[derive(Clone, Debug)]
pub(crate) struct SchemaOrText(pub(crate) Value);

impl JsonSchema for SchemaOrText {
    inline_schema!("SchemaOrText", _generator => {
        let description = format!("A JSON schema of at most {} KiB, or its text.", MAX_SCHEMA_BYTES / 1024);
        json_schema!({"type": ["object", "string"], "description": description})
    });
}

impl<'de> Deserialize<'de> for SchemaOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Value::String(text) = &value {
            let parsed = parse_json(text.as_bytes());
            value = parsed.map_err(|e| {
                message::<D::Error>(format_args!(
                    "{FIELD} must be a JSON schema or its text: {e}"
                ))
            })?;
        }
        JsonSchemaText::check(value).map(|JsonSchemaText(schema)| Self(schema))
    }
}

/// A text that is compiled: a regular expression or a grammar.
#[derive(Clone, Debug)]
pub(crate) struct CompiledText(pub(crate) String);

impl JsonSchema for CompiledText {
    inline_schema!("CompiledText", _generator =>
        json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_SCHEMA_BYTES / 4}));
}

impl<'de> Deserialize<'de> for CompiledText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > MAX_SCHEMA_BYTES {
            let allowed = format!("bytes; allowed: up to {MAX_SCHEMA_BYTES}");
            return Err(D::Error::invalid_length(text.len(), &allowed.as_str()));
        }
        Ok(Self(text))
    }
}

/// An item of a [`List`].
pub(crate) trait ListItem {
    /// Describes a list of these items in errors.
    const EXPECTED: &'static str;
}

/// An array whose errors name its items.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<T: JsonSchema> JsonSchema for List<T> {
    inline_schema!("List", generator => Vec::<T>::json_schema(generator));
}

impl<'de, T: ListItem + Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T: ListItem + Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}
