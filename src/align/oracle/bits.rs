//! An f64 as its bits: JSON's decimals come back a bit off, and a stored probe must give the same
//! verdicts as a fresh one.

use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.to_bits())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    u64::deserialize(deserializer).map(f64::from_bits)
}

/// Many f32 as hex digits of their bytes: a third of what decimals take, and exact.
pub(super) mod floats {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let bytes = hex::decode(digits).map_err(D::Error::custom)?;
        let (whole, rest) = bytes.as_chunks::<4>();
        match rest.is_empty() {
            true => Ok(whole.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            false => Err(D::Error::custom("bytes that are no whole f32")),
        }
    }
}
