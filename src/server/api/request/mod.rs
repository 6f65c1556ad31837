//! Reading requests: serde types say what a field is, [`read`] says which field is wrong.
//!
//! The types derive `Deserialize` and `JsonSchema`, so `/openapi.json` documents what is read. Three
//! conventions of the [`reader`] go beyond serde's:
//!
//! - `null` counts as absent. Fields that may be absent are `Option`s.
//! - A field whose name begins with [`SAME`] is read from the object itself, in its place among the
//!   other fields. (serde's `flatten` would buffer the object and lose the paths.)
//! - An enum named [`ONE_OF`](reader::ONE_OF) is chosen by the JSON type of the value; its variants are named
//!   `string`, `array`, `object`, `number`, `boolean`.

mod fault;
mod fields;
mod reader;
mod tagged;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;

pub(crate) use fault::{AT, kind, message, unexpected, unsupported, wrong_type};
pub(crate) use fields::{
    Count, Integer, JsonSchemaText, JsonText, List, Listed, ModelName, Name, Number, Refused,
    Unkept,
};
pub(crate) use reader::SAME;
pub(crate) use tagged::{Nothing, Word, tagged, tagged_schema, words};

/// Reads a request's body.
///
/// # Errors
/// [`ApiError::Body`] if it is no object, else the first faulty field in the order of declaration.
pub(crate) fn read<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    if !body.is_object() {
        return Err(ApiError::Body(format!(
            "the request body must be a JSON object, not {}",
            kind(body)
        )));
    }
    Ok(T::deserialize(reader::Reader::of(body))?)
}

/// Reads the value of the body's field `name`, which is not absent.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_field<T: DeserializeOwned>(value: &Value, name: &str) -> Result<T, ApiError> {
    let read = T::deserialize(reader::Reader::of(value));
    Ok(read.map_err(|fault| fault.within(fault::Step::Field(name.into())))?)
}
