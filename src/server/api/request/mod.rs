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

mod fault;
mod fields;
mod reader;
mod tagged;
#[cfg(test)]
mod tests;
mod unknown;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

pub(crate) use fault::{FIELD, kind, message, unexpected, unsupported, wrong_type};
pub(crate) use fields::{
    Arguments, CompiledText, Count, Integer, JsonSchemaText, List, ListItem, ModelName, Name,
    NotFilledIn, NotInBackground, NotKept, NotStored, Number, Refused, SchemaOrText,
};
pub(crate) use reader::FLATTEN_PREFIX;
pub(crate) use tagged::{StringEnum, TagOnly, string_enum, tagged, tagged_schema};
pub(crate) use unknown::Unknown;

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

/// As [`read`], also telling which fields `T` does not declare: they may ask for something. Those
/// that are `null` ask for nothing.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_all<T: DeserializeOwned>(body: &Value) -> Result<(T, Unknown), ApiError> {
    let Some(fields) = body.as_object() else {
        return Ok((read(body)?, Unknown::default()));
    };
    let declared = reader::Declared::default();
    let read = T::deserialize(reader::Reader::declaring(body, &declared))?;
    Ok((read, Unknown(undeclared(fields, &declared))))
}

/// Reads the object in the body's field `name`, whose undeclared fields are added to `unknown`.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_inside<T: DeserializeOwned>(
    value: &Value,
    name: &str,
    unknown: &mut Unknown,
) -> Result<T, ApiError> {
    let declared = reader::Declared::default();
    let read = T::deserialize(reader::Reader::declaring(value, &declared))
        .map_err(|fault| fault.within(fault::Step::Field(name.into())))?;
    let fields = value.as_object().into_iter();
    let inside = fields.flat_map(|fields| undeclared(fields, &declared));
    unknown
        .0
        .extend(inside.map(|field| format!("{name}.{field}")));
    Ok(read)
}

/// The fields of an object that were not looked for and ask for something.
fn undeclared(fields: &Map<String, Value>, declared: &reader::Declared) -> Vec<String> {
    let declared = declared.borrow();
    let unknown =
        |(name, value): &(&String, &Value)| !value.is_null() && !declared.contains(name.as_str());
    let unknown = fields.iter().filter(unknown);
    unknown.map(|(name, _)| fault::shortened(name)).collect()
}

/// Reads the value of the body's field `name`, which must be present.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_field<T: DeserializeOwned>(value: &Value, name: &str) -> Result<T, ApiError> {
    let read = T::deserialize(reader::Reader::of(value));
    Ok(read.map_err(|fault| fault.within(fault::Step::Field(name.into())))?)
}
