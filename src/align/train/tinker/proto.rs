//! The protocol buffers of the Tinker API: a request for a pass, and its result. Everything else of the
//! API is JSON.
//!
//! Field numbers are those of the messages `ForwardBackwardRequest` and `ForwardBackwardOutput` that
//! Tinker's SDK sends and reads since its version 0.25.

use serde_json::{Map, Value, json};

/// What a body of such a message calls itself.
pub(super) const CONTENT_TYPE: &str = "application/x-protobuf";

/// How the values of a tensor are written, by the number that says so.
const FLOAT32: u64 = 1;
const INT64: u64 = 2;
/// Kinds of fields: a number, eight bytes, bytes of a given length, four bytes.
const NUMBER: u64 = 0;
const EIGHT: u64 = 1;
const BYTES: u64 = 2;
const FOUR: u64 = 5;

/// A message that is being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(super) fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3 | NUMBER);
        self.varint(value);
        self
    }

    pub(super) fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn message(self, field: u64, inner: &Message) -> Self {
        self.bytes(field, &inner.0)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A `Chunk` with text.
pub(super) fn text_chunk(tokens: &[u32]) -> Message {
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    Message::default().message(1, &Message::default().bytes(1, &bytes))
}

/// An entry of a map to tensors, with a `Tensor` of floats.
pub(super) fn floats(name: &str, values: &[f32]) -> Message {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    entry(name, &bytes, FLOAT32, values.len())
}

/// An entry of a map to tensors, with a `Tensor` of token ids.
pub(super) fn ids(name: &str, values: &[u32]) -> Message {
    let wide = values.iter().map(|v| i64::from(*v));
    let bytes: Vec<u8> = wide.flat_map(i64::to_le_bytes).collect();
    entry(name, &bytes, INT64, values.len())
}

fn entry(name: &str, dense: &[u8], kind: u64, length: usize) -> Message {
    let mut shape = Message::default();
    shape.varint(length as u64);
    let tensor = Message::default()
        .bytes(1, dense)
        .number(3, kind)
        .message(4, &shape);
    Message::default()
        .bytes(1, name.as_bytes())
        .message(2, &tensor)
}

/// A field of a message that is being read.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Numbers of a fixed size, which no message here has any use for.
    Other,
}

/// The fields of a message, by their numbers.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Field<'_>)>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = match tag & 7 {
            NUMBER => Field::Number(varint(&mut bytes)?),
            EIGHT => take(&mut bytes, 8).map(|_| Field::Other)?,
            BYTES => {
                let length = varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            FOUR => take(&mut bytes, 4).map(|_| Field::Other)?,
            kind => return Err(format!("a field of kind {kind}")),
        };
        found.push((tag >> 3, field));
    }
    Ok(found)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for at in 0..10 {
        let Some((first, rest)) = bytes.split_first() else {
            break;
        };
        *bytes = rest;
        value |= u64::from(first & 0x7f) << (7 * at);
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number that does not end".into())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let cut = bytes.split_at_checked(length);
    let (taken, rest) = cut.ok_or("a field that ends early")?;
    *bytes = rest;
    Ok(taken)
}

/// All fields of this number that are bytes.
fn of<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Vec<&'a [u8]> {
    let bytes = |(at, field): &(u64, Field<'a>)| match field {
        Field::Bytes(bytes) if *at == number => Some(*bytes),
        _ => None,
    };
    fields.iter().filter_map(bytes).collect()
}

fn last<'a>(fields: &[(u64, Field<'a>)], number: u64) -> &'a [u8] {
    of(fields, number).last().copied().unwrap_or_default()
}

/// A `ForwardBackwardOutput` as the JSON of an engine that answers in that: the floats of each sequence.
///
/// # Errors
/// What is wrong with it.
pub(super) fn outputs(bytes: &[u8]) -> Result<Value, String> {
    let mut sequences: Vec<Map<String, Value>> = Vec::new();
    for record in of(&fields(bytes)?, 2) {
        let record = fields(record)?;
        let first = sequences.len();
        for entry in of(&record, 2) {
            let entry = fields(entry)?;
            let name = String::from_utf8_lossy(last(&entry, 1)).into_owned();
            let Some(values) = batched(last(&entry, 2))? else {
                continue;
            };
            for (at, data) in values.into_iter().enumerate() {
                if sequences.len() <= first + at {
                    sequences.push(Map::new());
                }
                sequences[first + at].insert(name.clone(), json!({ "data": data }));
            }
        }
    }
    Ok(json!({ "loss_fn_outputs": sequences }))
}

/// The floats of a `BatchedTensor`, sequence by sequence; `None` if its values are no floats.
fn batched(bytes: &[u8]) -> Result<Option<Vec<Vec<f32>>>, String> {
    let tensor = fields(bytes)?;
    let kind = |(at, field): &(u64, Field<'_>)| match field {
        Field::Number(kind) if *at == 3 => Some(*kind),
        _ => None,
    };
    if tensor.iter().rev().find_map(kind) != Some(FLOAT32) {
        return Ok(None);
    }
    let (data, offsets) = (last(&tensor, 1), last(&tensor, 2));
    let (offsets, _) = offsets.as_chunks::<8>();
    let offset = |bytes: &[u8; 8]| usize::try_from(i64::from_le_bytes(*bytes));
    let offsets: Result<Vec<usize>, _> = offsets.iter().map(offset).collect();
    let offsets = offsets.map_err(|_| "a negative offset")?;
    let part = |pair: &[usize]| {
        let part = data.get(pair[0]..pair[1]);
        let (floats, rest) = part.ok_or("offsets beyond the values")?.as_chunks::<4>();
        match rest {
            [] => Ok(floats.iter().map(|f| f32::from_le_bytes(*f)).collect()),
            _ => Err("a part of a value".to_owned()),
        }
    };
    offsets
        .windows(2)
        .map(part)
        .collect::<Result<_, _>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by Tinker's SDK 0.25.0: two sequences of two and one log-probabilities, ids beside them, and
    /// a metric.
    const WRITTEN: &[u8] = &[
        10, 6, 115, 99, 97, 108, 97, 114, 18, 113, 18, 53, 10, 3, 105, 100, 115, 18, 46, 10, 16, 7,
        0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 18, 24, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0,
        0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 24, 2, 18, 54, 10, 8, 108, 111, 103, 112, 114, 111, 98,
        115, 18, 42, 10, 12, 0, 0, 192, 191, 0, 0, 128, 190, 0, 0, 192, 127, 18, 24, 0, 0, 0, 0, 0,
        0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 24, 1, 24, 2, 26, 15, 10, 4, 108,
        111, 115, 115, 17, 0, 0, 0, 0, 0, 0, 224, 63,
    ];

    #[test]
    fn what_the_sdk_writes_is_read() {
        let outputs = outputs(WRITTEN).unwrap();
        let outputs = &outputs["loss_fn_outputs"];
        assert_eq!(outputs[0]["logprobs"]["data"], json!([-1.5, -0.25]));
        assert_eq!(outputs[1]["logprobs"]["data"], json!([null]));
        assert_eq!(outputs.as_array().unwrap().len(), 2);
        assert!(outputs[0].get("ids").is_none());
    }

    #[test]
    fn broken_messages_are_refused() {
        for end in 1..WRITTEN.len() {
            // Some beginnings are messages by themselves; none may be read beyond its end.
            let _read = outputs(&WRITTEN[..end]);
        }
        for broken in [&[0x12][..], &[0x12, 0x05, 1], &[0x13], &[0xff; 12]] {
            assert!(outputs(broken).is_err(), "{broken:?}");
        }
        let offsets: Vec<u8> = [0i64, 8].iter().flat_map(|o| o.to_le_bytes()).collect();
        let tensor = Message::default().bytes(1, &[0; 4]).bytes(2, &offsets);
        assert!(batched(&tensor.number(3, FLOAT32).into_bytes()).is_err());
    }

    #[test]
    fn numbers_are_as_the_format_has_them() {
        let written = Message::default()
            .number(2, 300)
            .bytes(1, b"ab")
            .into_bytes();
        assert_eq!(written, [0x10, 0xac, 0x02, 0x0a, 2, b'a', b'b']);
        assert_eq!(
            floats("w", &[1.0]).into_bytes(),
            [
                0x0a, 1, b'w', 0x12, 11, 0x0a, 4, 0, 0, 0x80, 0x3f, 0x18, 1, 0x22, 1, 1
            ]
        );
    }
}
