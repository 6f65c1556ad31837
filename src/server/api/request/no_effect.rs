//! Fields that clients send and that change no answer here. They are listed, so that what is not listed
//! can be refused.

use serde::de::{MapAccess, Visitor};

/// Takes an object whose fields were declared, without reading them.
pub(crate) struct Nothing;

impl<'de> Visitor<'de> for Nothing {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Ok(())
    }
}

/// Defines fields without effect, to be flattened into another struct.
macro_rules! without_effect {
    ($(#[$doc:meta])* $name:ident { $($field:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name;

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let nothing = $crate::api::request::Nothing;
                deserializer.deserialize_struct(stringify!($name), &[$($field),+], nothing)?;
                Ok(Self)
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
                schemars::json_schema!({"type": "object", "properties": {
                    $($field: {"description": "Has no effect."}),+
                }})
            }
        }
    };
}

pub(crate) use without_effect;
