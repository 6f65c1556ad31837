//! A serde deserialiser for JSON values whose errors name the field.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::map::Iter;
use serde_json::{Map, Value};

use super::fault::{Fault, Step, unexpected};

/// Prefix of the names of flattened fields, which are read from the object itself.
pub(crate) const FLATTEN_PREFIX: &str = "..";
/// Name of enums whose variant is selected by the JSON type of the value.
pub(crate) const ONE_OF: &str = "one of";

/// The names of the fields that were looked for in an object.
pub(super) type Declared = RefCell<BTreeSet<&'static str>>;

/// A value to be read; `None` stands for a field that is absent or `null`. The names of the fields
/// of the value itself, if it is an object, are added to the set.
#[derive(Clone, Copy)]
pub(super) struct Reader<'de>(Option<&'de Value>, Option<&'de Declared>);

impl<'de> Reader<'de> {
    /// Reads a value that is present, possibly `null`.
    pub(super) fn of(value: &'de Value) -> Self {
        Self(Some(value), None)
    }

    /// As [`Reader::of`], also telling which fields the value may have.
    pub(super) fn declaring(value: &'de Value, declared: &'de Declared) -> Self {
        Self(Some(value), Some(declared))
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
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
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
        if let Some(declared) = self.1 {
            declared.borrow_mut().extend(fields);
        }
        visitor.visit_map(DeclaredFields {
            whole: Reader(Some(whole), self.1),
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
            return visitor.visit_enum(OneOf { name, value });
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
        let read = seed.deserialize(Reader::of(item));
        read.map(Some)
            .map_err(|fault| fault.within(Step::Item(index)))
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
        let read = seed.deserialize(Reader::of(value));
        read.map_err(|fault| fault.within(Step::Field(name.into())))
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
        let read = seed.deserialize(Reader(value, None));
        read.map_err(|fault| fault.within(Step::Field(name.into())))
    }
}

/// A value as the enum variant named after its JSON type.
struct OneOf<'de> {
    name: &'static str,
    value: &'de Value,
}

impl<'de> EnumAccess<'de> for OneOf<'de> {
    type Error = Fault;
    type Variant = Reader<'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Reader<'de>), Fault> {
        let variant = seed.deserialize(BorrowedStrDeserializer::<Fault>::new(self.name))?;
        Ok((variant, Reader::of(self.value)))
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
