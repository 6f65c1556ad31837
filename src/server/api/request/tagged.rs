//! Objects whose fields depend on a tag field, and string enums for such tags.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};

/// An object of which only the tag is read.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct TagOnly {}

/// An enum whose values are strings in requests.
pub(crate) trait StringEnum {
    /// The value as requests spell it.
    fn as_str(&self) -> &'static str;
}

/// The schema of `T`'s fields with a tag among them.
pub(crate) fn tagged_schema<T: JsonSchema>(
    generator: &mut SchemaGenerator,
    tag: &str,
    words: &[&str],
    required: bool,
) -> Schema {
    let mut schema = T::json_schema(generator);
    let word = match words {
        [word] => json!({"const": word}),
        words => json!({"enum": words}),
    };
    let object = schema.ensure_object();
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert(tag.into(), word);
    }
    let names = object.entry("required").or_insert_with(|| json!([]));
    if let (true, Some(names)) = (required, names.as_array_mut()) {
        names.insert(0, Value::from(tag));
    }
    schema
}

/// Defines a [`StringEnum`]. `else` is the error for any other string; by default the error lists
/// the allowed strings.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? } $(else $error:expr)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $crate::api::request::StringEnum for $name {
            fn as_str(&self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match String::deserialize(deserializer)?.as_str() {
                    $($word => Ok(Self::$variant),)+
                    other => {
                        // The last one is called: the default error unless another one is given.
                        let errors: &[fn(&str) -> D::Error] = &[
                            |word| serde::de::Error::unknown_variant(word, &[$($word),+]),
                            $($error)?
                        ];
                        Err(errors[errors.len() - 1](other))
                    }
                }
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "enum": [$($word),+]})
            }
        }
    };
}

/// Defines an enum of objects that are distinguished by a tag field: `Name by "field": Tags { [Tag,
/// …] => Variant(Fields), … }`. `or Tag` is the default for an absent tag field.
macro_rules! tagged {
    (
        $(#[$doc:meta])*
        $name:ident by $tag:literal: $words:ident $(or $default:ident)? {
            $([$($word:ident),+] => $variant:ident($fields:ty)),+ $(,)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        // Not every reader needs to know which tag it was.
        #[allow(dead_code)]
        pub(crate) enum $name { $($variant($words, $fields)),+ }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;

                impl<'de> serde::de::Visitor<'de> for Object {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut object: A,
                    ) -> Result<$name, A::Error> {
                        // The two names given below: the tag, then the object itself.
                        object.next_key::<serde::de::IgnoredAny>()?;
                        let word = $crate::api::request::tagged!(@word object $words $($default)?);
                        object.next_key::<serde::de::IgnoredAny>()?;
                        match word {
                            $($($words::$word)|+ => {
                                Ok($name::$variant(word, object.next_value::<$fields>()?))
                            })+
                        }
                    }
                }

                let names = &[$tag, $crate::api::request::FLATTEN_PREFIX];
                deserializer.deserialize_struct(stringify!($name), names, Object)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let defaults: &[&str] = &[$(stringify!($default))?];
                let forms = [$($crate::api::request::tagged_schema::<$fields>(
                    generator,
                    $tag,
                    &[$($crate::api::request::StringEnum::as_str(&$words::$word)),+],
                    defaults.is_empty(),
                )),+];
                schemars::json_schema!({"oneOf": forms})
            }
        }
    };
    (@word $object:ident $words:ident) => { $object.next_value::<$words>()? };
    (@word $object:ident $words:ident $default:ident) => {
        $object.next_value::<Option<$words>>()?.unwrap_or($words::$default)
    };
}

pub(crate) use {string_enum, tagged};
