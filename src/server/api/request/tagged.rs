//! Objects whose fields depend on one of them, and the words that such a field holds.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};

/// An object of which nothing is read but its tag.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Nothing {}

/// An enum of words.
pub(crate) trait Word {
    /// As requests spell it.
    fn word(self) -> &'static str;
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

/// Defines an enum of words. `else` is the error for any other word, unless it is the usual one, which
/// lists the words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? } $(else $error:expr)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $crate::api::request::Word for $name {
            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match String::deserialize(deserializer)?.as_str() {
                    $($word => Ok(Self::$variant),)+
                    other => {
                        // The last one is called: the usual error unless another one is given.
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

/// Defines an enum of objects that a field tells apart: `Name by "field": Words { [Word, …] =>
/// Variant(Fields), … }`. `or Word` says which word an absent field stands for.
macro_rules! tagged {
    (
        $(#[$doc:meta])*
        $name:ident by $tag:literal: $words:ident $(or $default:ident)? {
            $([$($word:ident),+] => $variant:ident($fields:ty)),+ $(,)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        // Not everything that reads one asks which word it was.
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

                let names = &[$tag, $crate::api::request::SAME];
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
                    &[$($crate::api::request::Word::word($words::$word)),+],
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

pub(crate) use {tagged, words};
