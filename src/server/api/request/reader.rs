//! A serde deserialiser for JSON values whose errors name the field, and which can tell what nothing
//! looked for.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::map::Iter;
use serde_json::{Map, Value};

use super::fault::{Fault, Step, unexpected};
use super::watch::Watch;

/// Prefix of the names of flattened fields, which are read from the object itself.
pub(crate) const FLATTEN_PREFIX: &str = "..";
/// Name of enums whose variant is selected by the JSON type of the value.
pub(crate) const ONE_OF: &str = "one of";

/// A value to be read; `None` stands for a field that is absent or `null`. The watch, if there is one,
/// is told which fields are looked for.
#[derive(Clone, Copy)]
pub(super) struct Reader<'de>(Option<&'de Value>, Option<&'de Watch>);

impl<'de> Reader<'de> {
    /// Reads a value that is present, possibly `null`.
    pub(super) fn of(value: &'de Value) -> Self {
        Self(Some(value), None)
    }

    /// Reads a request's body, or its field at `step`, under a watch, which then knows the fields that
    /// nothing looked for.
    pub(super) fn read_watched<T: Deserialize<'de>>(
        value: &'de Value,
        watch: &'de Watch,
        step: Option<Step>,
    ) -> Result<T, Fault> {
        watch.enter(step);
        let read = T::deserialize(Self(Some(value), Some(watch)));
        watch.leave(value);
        read
    }

    /// Reads a part of a value, of which `step` says where it is.
    fn read_inside<S: DeserializeSeed<'de>>(
        self,
        step: impl Fn() -> Step,
        seed: S,
    ) -> Result<S::Value, Fault> {
        let read = match self {
            Self(Some(value @ (Value::Array(_) | Value::Object(_))), Some(watch)) => {
                watch.enter(Some(step()));
                let read = seed.deserialize(self);
                watch.leave(value);
                read
            }
            _ => seed.deserialize(self),
        };
        read.map_err(|fault| fault.within(step()))
    }

    fn present(self) -> Result<&'de Value, Fault> {
        self.0.ok_or_else(Fault::missing)
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items {
                items,
                next: 0,
                watch: self.1,
            }),
            Value::Object(object) => visitor.visit_map(Entries {
                entries: object.iter(),
                current: None,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            None | Some(Value::Null) => visitor.visit_none(),
            Some(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let whole = self.present()?;
        let Value::Object(object) = whole else {
            return Err(Fault::invalid_type(unexpected(whole), &"an object"));
        };
        if let Some(watch) = self.1 {
            watch.look_for(fields);
        }
        visitor.visit_map(DeclaredFields {
            whole: self,
            object,
            fields: fields.iter(),
            current: "",
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let value = self.present()?;
        if name == ONE_OF {
            let name = json_type(value);
            if !variants.contains(&name) {
                return Err(Fault::invalid_type(unexpected(value), &visitor));
            }
            return visitor.visit_enum(OneOf { name, whole: self });
        }
        match value {
            Value::String(text) => visitor.visit_enum(BorrowedStrDeserializer::new(text)),
            other => Err(Fault::invalid_type(unexpected(other), &"a string")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

struct Items<'de> {
    items: &'de [Value],
    next: usize,
    watch: Option<&'de Watch>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.get(self.next) else {
            return Ok(None);
        };
        let index = self.next;
        self.next += 1;
        let item = Reader(Some(item), self.watch);
        item.read_inside(|| Step::Item(index), seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

/// All entries of an object, in its own order.
struct Entries<'de> {
    entries: Iter<'de>,
    current: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some((name, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.current = Some((name, value));
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (name, value) = self.current.take().ok_or_else(Fault::missing)?;
        Reader::of(value).read_inside(|| Step::Field(name.into()), seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// The fields that a struct declares, in order of declaration; the object's other fields are
/// skipped.
struct DeclaredFields<'de> {
    whole: Reader<'de>,
    object: &'de Map<String, Value>,
    fields: std::slice::Iter<'static, &'static str>,
    current: &'static str,
}

impl<'de> MapAccess<'de> for DeclaredFields<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some(name) = self.fields.next() else {
            return Ok(None);
        };
        self.current = name;
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let name = self.current;
        if name.starts_with(FLATTEN_PREFIX) {
            return seed.deserialize(self.whole);
        }
        let value = self.object.get(name).filter(|value| !value.is_null());
        Reader(value, self.whole.1).read_inside(|| Step::Field(name.into()), seed)
    }
}

/// A value as the enum variant named after its JSON type.
struct OneOf<'de> {
    name: &'static str,
    whole: Reader<'de>,
}

impl<'de> EnumAccess<'de> for OneOf<'de> {
    type Error = Fault;
    type Variant = Reader<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Reader<'de>), Fault> {
        let variant = seed.deserialize(BorrowedStrDeserializer::<Fault>::new(self.name))?;
        Ok((variant, self.whole))
    }
}

impl<'de> VariantAccess<'de> for Reader<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_struct("", fields, visitor)
    }
}
