//! Serialises an f64 as its bits. A stored probe must give exactly the verdicts of a fresh one, and
//! decimal JSON numbers may not round-trip.

use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.to_bits())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    u64::deserialize(deserializer).map(f64::from_bits)
}

/// Serialises f32 values as hex digits of their bytes: exact, and a third of the size of decimals.
pub(super) mod floats {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        values: &[f32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<f32>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let bytes = hex::decode(digits).map_err(D::Error::custom)?;
        let (whole, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(D::Error::custom("bytes that are no whole f32"));
        }
        Ok(whole.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}
