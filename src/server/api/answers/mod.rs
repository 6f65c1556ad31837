//! The types that routes answer as JSON, whose schemas are in `/openapi.json`.

pub mod admin;
pub mod client;
pub mod completions;
pub mod reports;
pub mod responses;
pub mod retention;

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// Stored JSON, possibly written by an older version, that is passed on unchanged. `T` is the type
/// that this version writes.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    value: Value,
    form: PhantomData<fn() -> T>,
}

impl<T> From<Value> for Stored<T> {
    fn from(value: Value) -> Self {
        Self {
            value,
            form: PhantomData,
        }
    }
}

impl<T> Serialize for Stored<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for Stored<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
