//! The protocol buffers of the Tinker API as an engine reads and writes them, apart from the client's code.

use serde_json::{Value, json};

/// A request for a pass as the JSON that says the same.
pub(super) fn request(body: &[u8]) -> Option<(Value, bool)> {
    let message = fields(body)?;
    let text = |number: u64| String::from_utf8(bytes_of(&message, number)?.to_vec()).ok();
    let data: Option<Vec<Value>> = all(&message, 3).map(datum).collect();
    let input = json!({ "data": data?, "loss_fn": text(4)? });
    let body = json!({ "model_id": text(1)?, "seq_id": number_of(&message, 2), "input": input });
    Some((body, number_of(&message, 6) == 1))
}

fn datum(bytes: &[u8]) -> Option<Value> {
    let datum = fields(bytes)?;
    let text = fields(bytes_of(&fields(bytes_of(&datum, 1)?)?, 1)?)?;
    let (tokens, _) = bytes_of(&text, 1)?.as_chunks::<4>();
    let tokens: Vec<i32> = tokens.iter().map(|t| i32::from_le_bytes(*t)).collect();
    let mut inputs = json!({});
    for entry in all(&datum, 2) {
        let entry = fields(entry)?;
        let name = std::str::from_utf8(bytes_of(&entry, 1)?).ok()?;
        let tensor = fields(bytes_of(&entry, 2)?)?;
        let dense = bytes_of(&tensor, 1)?;
        inputs[name] = match number_of(&tensor, 3) {
            1 => {
                let (floats, _) = dense.as_chunks::<4>();
                let floats = floats.iter().map(|f| f32::from_le_bytes(*f));
                json!({ "data": floats.collect::<Vec<_>>() })
            }
            2 => {
                let (ids, _) = dense.as_chunks::<8>();
                let ids = ids.iter().map(|i| i64::from_le_bytes(*i));
                json!({ "data": ids.collect::<Vec<_>>() })
            }
            _ => return None,
        };
    }
    let chunks = json!([{ "type": "encoded_text", "tokens": tokens }]);
    Some(json!({ "model_input": { "chunks": chunks }, "loss_fn_inputs": inputs }))
}

/// Log-probabilities, sequence by sequence, as the result of a pass.
pub(super) fn result(sequences: &[Value]) -> Vec<u8> {
    let (mut data, mut offsets) = (Vec::new(), vec![0i64]);
    for sequence in sequences {
        for value in sequence["logprobs"]["data"].as_array().unwrap() {
            let value = value.as_f64().unwrap_or(f64::NAN) as f32;
            data.extend(value.to_le_bytes());
        }
        offsets.push(data.len() as i64);
    }
    let offsets: Vec<u8> = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
    let mut tensor = [written(1, &data), written(2, &offsets)].concat();
    tensor.extend([3 << 3, 1]);
    let entry = [written(1, b"logprobs"), written(2, &tensor)].concat();
    let mut record = written(2, &entry);
    record.push(3 << 3);
    varint(&mut record, sequences.len() as u64);
    [written(1, b"scalar"), written(2, &record)].concat()
}

fn written(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![field << 3 | 2];
    varint(&mut message, bytes.len() as u64);
    message.extend(bytes);
    message
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = read(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Number(read(&mut bytes)?),
            2 => {
                let (taken, rest) = {
                    let length = read(&mut bytes)? as usize;
                    bytes.split_at_checked(length)?
                };
                bytes = rest;
                Field::Bytes(taken)
            }
            _ => return None,
        };
        found.push((tag >> 3, field));
    }
    Some(found)
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << (7 * at);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn all<'a>(fields: &[(u64, Field<'a>)], number: u64) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter_map(move |(at, field)| match field {
        Field::Bytes(bytes) if *at == number => Some(*bytes),
        _ => None,
    })
}

fn bytes_of<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Option<&'a [u8]> {
    all(fields, number).last()
}

/// 0, as the format has it, if there is none.
fn number_of(fields: &[(u64, Field<'_>)], number: u64) -> u64 {
    let value = |(at, field): &(u64, Field<'_>)| match field {
        Field::Number(value) if *at == number => Some(*value),
        _ => None,
    };
    fields.iter().rev().find_map(value).unwrap_or(0)
}
