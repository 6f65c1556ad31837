//! Keys and values in 8 bits: a head's columns of a token are multiples of one step, which is a float.
//!
//! Four columns of a key lie together for each of sixteen tokens, and four tokens of a value for each of sixteen columns: four
//! bytes are what one product takes. Keys have an offset, because one factor of such a product has no sign.

use realign_model::{BLOCK_TOKENS, KvType};

use super::{KvCache, Stored, columns, elements};

/// Bytes of a vector.
pub(super) const LINE: usize = 64;

/// What is added to keys.
pub(crate) const OFFSET: i32 = 128;

/// The largest multiple of a step.
const LARGEST: f32 = 127.0;

/// One head's part of a block.
#[derive(Clone, Copy)]
pub(crate) struct Eight<'a> {
    /// By four columns: four bytes for each token, with the offset.
    pub(crate) keys: &'a [[u8; LINE]],
    /// By four tokens and sixteen columns: four bytes for each column.
    pub(crate) values: &'a [[u8; LINE]],
    /// Steps of the keys, then of the values, by token.
    scales: &'a [[u8; LINE]; 2],
}

impl<'a> Eight<'a> {
    fn of(part: &'a [u8], head_dim: usize) -> Self {
        let (lines, _) = part.as_chunks();
        let (keys, values) = lines.split_at(head_dim.div_ceil(4));
        let Some((values, scales)) = values.split_last_chunk() else {
            unreachable!("a part ends with two lines of steps")
        };
        Self {
            keys,
            values,
            scales,
        }
    }

    /// Steps of the keys, by token.
    #[inline(always)]
    pub(crate) fn key_scales(self) -> [f32; BLOCK_TOKENS] {
        floats(&self.scales[0])
    }

    /// Steps of the values, by token.
    #[inline(always)]
    pub(crate) fn value_scales(self) -> [f32; BLOCK_TOKENS] {
        floats(&self.scales[1])
    }
}

#[inline(always)]
fn floats(bytes: &[u8; LINE]) -> [f32; BLOCK_TOKENS] {
    let (fours, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| f32::from_le_bytes(fours[i]))
}

impl KvCache {
    /// Keys and values of one head of one block.
    ///
    /// # Panics
    /// If the cache holds another type.
    pub(crate) fn eight(&self, layer: usize, block: u32, head: usize) -> Eight<'_> {
        let at = self.offset(layer, block, head);
        let part = &self.elements::<u8>()[at..at + elements(KvType::Q8, self.head_dim)];
        Eight::of(part, self.head_dim)
    }
}

/// Smaller steps are zero, so that their inverse is a number whatever it is multiplied with.
const SMALLEST: f32 = 1e-30;

/// What a row is rounded to multiples of.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Its size; not finite if the row is not.
    size: f32,
    inverse: f32,
}

/// The step for a row.
#[inline(always)]
fn step(row: &[f32]) -> Step {
    let bits = row.iter().map(|x| (x.to_bits() & 0x7fff_ffff) as i32);
    let largest = f32::from_bits(bits.fold(0, i32::max) as u32);
    let size = match largest / LARGEST {
        size if size.is_finite() => {
            if size < SMALLEST {
                0.0
            } else {
                size
            }
        }
        _ => f32::NAN,
    };
    let inverse = if size > 0.0 { size.recip() } else { 0.0 };
    Step { size, inverse }
}

/// A number as a multiple of the step, from −127 to 127.
#[inline(always)]
fn rounded(x: f32, step: Step) -> i8 {
    // Adding 1.5 · 2²³ rounds to the nearest integer, which the lowest bits hold then.
    let [lowest, ..] = (x * step.inverse + 12_582_912.0).to_bits().to_le_bytes();
    lowest as i8
}

/// Rounds a row to bytes with signs, whose number is at least that of its columns: the step's size, and their sum.
#[inline]
pub(crate) fn round(row: &[f32], to: &mut [u8]) -> (f32, i32) {
    let step = step(row);
    for (place, x) in to.iter_mut().zip(row) {
        *place = rounded(*x, step) as u8;
    }
    let sum = to[..row.len()].iter().map(|byte| i32::from(*byte as i8));
    (step.size, sum.sum())
}

impl Stored for u8 {
    fn write(part: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        let values = key.len().div_ceil(4) * LINE;
        let scales = part.len() - 2 * LINE;
        let (of_key, of_value) = (step(key), step(value));
        for (four, places) in key.chunks(4).zip(part.chunks_exact_mut(LINE)) {
            for (k, place) in four.iter().zip(&mut places[4 * slot..]) {
                *place = (rounded(*k, of_key) as u8).wrapping_add(OFFSET as u8);
            }
        }
        let first = values + slot / 4 * 4 * columns(key.len()) + slot % 4;
        for (v, place) in value.iter().zip(part[first..].iter_mut().step_by(4)) {
            *place = rounded(*v, of_value) as u8;
        }
        // A value that is not finite has an infinite step, which the largest one of a segment is then.
        let largest = if of_value.size.is_nan() {
            f32::INFINITY
        } else {
            of_value.size
        };
        for (at, size) in [(scales, of_key.size), (scales + LINE, largest)] {
            part[at + 4 * slot..][..4].copy_from_slice(&size.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::KvShape;
    use super::*;

    #[test]
    fn tokens_lie_where_they_are_read() {
        let shape = KvShape {
            layers: 2,
            heads: 2,
            head_dim: 20,
        };
        let mut cache = KvCache::new(shape, KvType::Q8, 2).unwrap();
        let key: Vec<f32> = (0..20).map(|i| i as f32 - 3.0).collect();
        let value: Vec<f32> = (0..20).map(|i| 0.5 - i as f32).collect();
        let shards = cache.shards::<u8>();
        // SAFETY: the only part.
        u8::write(unsafe { shards.head(1, 1, 1) }, 6, &key, &value);
        let part = cache.eight(1, 1, 1);
        let steps = (part.key_scales()[6], part.value_scales()[6]);
        assert_eq!(steps, (16.0 / 127.0, 18.5 / 127.0));
        for i in 0..20 {
            let k = i32::from(part.keys[i / 4][4 * 6 + i % 4]) - OFFSET;
            assert!(
                (k as f32 * steps.0 - key[i]).abs() <= steps.0 * 0.5001,
                "key {i}"
            );
            let v = part.values[2 + i / 16][4 * (i % 16) + 2] as i8;
            assert!(
                (f32::from(v) * steps.1 - value[i]).abs() <= steps.1 * 0.5001,
                "value {i}"
            );
        }
        let written = part.values.as_flattened().iter().filter(|v| **v != 0);
        assert_eq!(written.count(), 20);
        assert!(
            cache
                .eight(1, 0, 1)
                .keys
                .as_flattened()
                .iter()
                .all(|k| *k == 0)
        );
    }

    #[test]
    fn rows_of_zeros_of_tiny_numbers_and_of_none_have_steps() {
        assert_eq!(step(&[0.0, -0.0]).size, 0.0);
        assert_eq!(rounded(1e-38, step(&[1e-38])), 0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(step(&[1.0, bad, 2.0]).size.is_nan());
        }
        let ends = step(&[f32::MAX, f32::MIN]);
        assert_eq!([f32::MAX, f32::MIN].map(|x| rounded(x, ends)), [127, -127]);
    }
}
