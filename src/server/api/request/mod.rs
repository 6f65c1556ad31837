//! Reading requests: serde types describe the fields, [`read`] reports which field is wrong.
//!
//! The types derive `Deserialize` and `JsonSchema`, so `/openapi.json` documents what is read.
//! Three conventions of the [`reader`] go beyond serde's:
//!
//! - `null` counts as absent. Fields that may be absent are `Option`s.
//! - A field whose name begins with [`FLATTEN_PREFIX`] is read from the object itself, in its
//!   position among the other fields. (serde's `flatten` would buffer the object and lose the
//!   paths.)
//! - The variant of an enum named [`ONE_OF`](reader::ONE_OF) is selected by the JSON type of the
//!   value; its variants are named `string`, `array`, `object`, `number`, `boolean`.

mod close;
mod fault;
mod fields;
mod no_effect;
mod reader;
mod refused;
mod tagged;
#[cfg(test)]
mod tests;
mod unknown;
mod watch;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;
use crate::config::UnknownFields;

pub(crate) use fault::{FIELD, kind, message, shortened, unexpected, unsupported, wrong_type};
pub(crate) use fields::{
    Arguments, CompiledText, Count, Integer, JsonSchemaText, Limit, List, ListItem, ModelName,
    Name, Number, SchemaOrText,
};
pub(crate) use no_effect::{Nothing, without_effect};
pub(crate) use reader::FLATTEN_PREFIX;
pub(crate) use refused::{NotFilledIn, NotInBackground, NotKept, NotSearched, NotStored, Refused};
pub(crate) use tagged::{StringEnum, TagOnly, string_enum, tagged, tagged_schema};
pub(crate) use unknown::{Field, Unknown};

/// Reads a request's body.
///
/// # Errors
/// [`ApiError::Body`] if it is not an object, otherwise the first faulty field in order of
/// declaration.
pub(crate) fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    if !body.is_object() {
        return Err(ApiError::Body(format!(
            "the request body must be a JSON object, not {}",
            kind(body)
        )));
    }
    Ok(T::deserialize(reader::Reader::of(body))?)
}

/// As [`read`], also telling which fields `T` and the structs inside it do not declare: they may ask
/// for something. Those that are `null` ask for nothing.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_all<T: DeserializeOwned>(body: &Value) -> Result<(T, Unknown), ApiError> {
    if !body.is_object() {
        return Ok((read(body)?, Unknown::default()));
    }
    let watch = watch::Watch::default();
    let read = reader::Reader::read_watched(body, &watch, None)?;
    Ok((read, Unknown(watch.found())))
}

/// As [`read`], for operators: a field that `T` does not declare is refused, whatever is done with those
/// of clients. A misspelled `dry_run` must not remove anything.
///
/// # Errors
/// As [`read`], or [`ApiError::Unsupported`].
pub(crate) fn read_known<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    let (read, unknown) = read_all(body)?;
    unknown.check(UnknownFields::Refuse)?;
    Ok(read)
}

/// The value of fields that mean the same, by their names.
///
/// # Errors
/// If two of them differ; the error names both.
pub(crate) fn same<T: PartialEq + std::fmt::Display, const N: usize>(
    fields: [(&str, Option<T>); N],
) -> Result<Option<T>, ApiError> {
    let mut given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let Some((first, value)) = given.next() else {
        return Ok(None);
    };
    match given.find(|(_, other)| *other != value) {
        None => Ok(Some(value)),
        Some((second, other)) => {
            let message = format!(
                "`{second}` is {other} and `{first}` is {value}, and both mean the same; send one of them"
            );
            Err(ApiError::field(second, message))
        }
    }
}

/// Reads the value of the body's field `name`, which must be present, and tells what nothing looked for.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_field<T: DeserializeOwned>(
    value: &Value,
    name: &str,
) -> Result<(T, Unknown), ApiError> {
    let step = || fault::Step::Field(name.into());
    let watch = watch::Watch::default();
    let read = reader::Reader::read_watched(value, &watch, Some(step()));
    let read = read.map_err(|fault| fault.within(step()))?;
    Ok((read, Unknown(watch.found())))
}
