//! Reading fields of a JSON object by hand, so that every error names the field, what was found
//! and what is allowed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object and where it stands in the request. `null` counts as absent throughout.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    place: String,
}

impl<'a> Fields<'a> {
    /// The request's body.
    pub(crate) fn root(body: &'a Value) -> Result<Self, ApiError> {
        let object = body.as_object().ok_or_else(|| {
            ApiError::Body(format!(
                "the request body must be a JSON object, not {}",
                kind(body)
            ))
        })?;
        Ok(Self {
            object,
            place: String::new(),
        })
    }

    /// A nested object at the given path.
    pub(crate) fn nested(value: &'a Value, place: &str) -> Result<Self, ApiError> {
        let object = value
            .as_object()
            .ok_or_else(|| wrong_type(place, "an object", value))?;
        Ok(Self {
            object,
            place: format!("{place}."),
        })
    }

    /// The full path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// The value, unless absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The value of a field that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<&'a Value, ApiError> {
        self.get(name).ok_or_else(|| {
            let path = self.path(name);
            ApiError::field(&path, format!("the field `{path}` is required"))
        })
    }

    pub(crate) fn string(&self, name: &str) -> Result<&'a str, ApiError> {
        let value = self.required(name)?;
        value
            .as_str()
            .ok_or_else(|| wrong_type(&self.path(name), "a string", value))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.get(name)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| wrong_type(&self.path(name), "a boolean", value))
            })
            .transpose()
    }

    pub(crate) fn number(
        &self,
        name: &str,
        allowed: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .ok_or_else(|| wrong_type(&self.path(name), "a number", value))?;
        if !allowed.contains(&number) {
            let range = format!("{} to {}", allowed.start(), allowed.end());
            return Err(out_of_range(&self.path(name), value, &range));
        }
        Ok(Some(number))
    }

    pub(crate) fn integer(
        &self,
        name: &str,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value
            .as_i64()
            .ok_or_else(|| wrong_type(&self.path(name), "an integer of 64 bits", value))?;
        if !allowed.contains(&number) {
            let range = match (*allowed.start(), *allowed.end()) {
                (least, i64::MAX) => format!("{least} or more"),
                (least, most) => format!("{least} to {most}"),
            };
            return Err(out_of_range(&self.path(name), value, &range));
        }
        Ok(Some(number))
    }

    /// As `integer`, for counts: the range must not go below zero.
    pub(crate) fn count(
        &self,
        name: &str,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<usize>, ApiError> {
        let number = self.integer(name, allowed)?;
        Ok(number.map(|n| usize::try_from(n).unwrap_or(0)))
    }

    /// Refuses fields that change what is generated and that this server does not honour. Empty
    /// lists, empty objects, `false` and `"none"` ask for nothing and pass.
    pub(crate) fn refuse(&self, names: &[&str]) -> Result<(), ApiError> {
        for name in names {
            let asks = match self.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(Value::Object(fields)) => !fields.is_empty(),
                Some(Value::String(text)) => text != "none",
                Some(Value::Bool(true) | Value::Number(_)) => true,
            };
            if asks {
                return Err(ApiError::unsupported(self.path(name)));
            }
        }
        Ok(())
    }
}

/// A value of the wrong JSON type.
pub(crate) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::field(
        path,
        format!("`{path}` must be {expected}, not {}", kind(found)),
    )
}

fn out_of_range(path: &str, found: &Value, range: &str) -> ApiError {
    ApiError::field(path, format!("`{path}` is {found}; allowed: {range}"))
}

fn kind(value: &Value) -> &'static str {
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
