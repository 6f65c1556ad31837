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

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;

pub(crate) use fault::{FIELD, kind, message, unexpected, unsupported, wrong_type};
pub(crate) use fields::{
    Count, Integer, JsonSchemaText, JsonText, List, ListItem, ModelName, Name, NotStored, Number,
    Refused,
};
pub(crate) use reader::FLATTEN_PREFIX;
pub(crate) use tagged::{StringEnum, TagOnly, string_enum, tagged, tagged_schema};

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

/// Reads the value of the body's field `name`, which must be present.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_field<T: DeserializeOwned>(value: &Value, name: &str) -> Result<T, ApiError> {
    let read = T::deserialize(reader::Reader::of(value));
    Ok(read.map_err(|fault| fault.within(fault::Step::Field(name.into())))?)
}
