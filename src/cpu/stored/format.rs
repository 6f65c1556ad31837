//! What a file of packed weights holds: sections, a table of them as JSON, and a footer.
//!
//! The table comes last, as it is known last. The footer is magic, layout, place and length of the
//! table, and the table's SHA-256; the table has a checksum of every section. So a file that was cut
//! has no footer, and one byte that differs anywhere but in padding is noticed.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result as CandleResult, Tensor, bail};
use memmap2::Mmap;
use rayon::prelude::*;
use realign_model::ModelSpec;
use realign_model::assemble::{Parts, VectorKind, assemble};
use realign_model::blocks::Format;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LAYOUT;
use super::map::{Panels, map};
use crate::{Encoding, Model, PackedWeight};

const MAGIC: &[u8; 8] = b"realignW";
/// Bytes of the footer.
const FOOTER: usize = 64;
/// What sections begin at multiples of.
pub(super) const ALIGNMENT: u64 = 4096;
/// Bytes that one task sums up.
const PIECE: usize = 1 << 20;

/// The table of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    /// What the file was made from.
    pub(super) key: String,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    /// In the order of [`assemble`].
    pub(super) matrices: Vec<Matrix>,
    /// Widths of norms and biases, in that order.
    pub(super) widths: Vec<usize>,
    /// Their elements in f32, one after the other.
    pub(super) vectors: Section,
}

/// A part of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pub(super) at: u64,
    pub(super) bytes: u64,
    pub(super) sum: String,
}

/// A packed matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Matrix {
    pub(super) out: usize,
    pub(super) columns: usize,
    pub(super) encoding: Stored,
    /// The bits of the gain, an f32.
    pub(super) gain: u32,
    pub(super) section: Section,
}

/// An [`Encoding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stored {
    Integer {
        bits: usize,
        scales: usize,
        minimum: bool,
        zero: i32,
        factored: bool,
    },
    F32,
    Bf16,
    F16,
}

impl From<Encoding> for Stored {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Integer(f) => Stored::Integer {
                bits: f.bits,
                scales: f.scales,
                minimum: f.minimum,
                zero: f.zero,
                factored: f.factored,
            },
            Encoding::F32 => Stored::F32,
            Encoding::Bf16 => Stored::Bf16,
            Encoding::F16 => Stored::F16,
        }
    }
}

impl Stored {
    /// The encoding; `None` if kernels have no such.
    pub(super) fn encoding(self) -> Option<Encoding> {
        use GgmlDType::*;
        let formats = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
        let integers = formats.into_iter().filter_map(Format::of);
        let floats = [Encoding::F32, Encoding::Bf16, Encoding::F16];
        let mut known = integers.map(Encoding::Integer).chain(floats);
        known.find(|encoding| Stored::from(*encoding) == self)
    }
}

/// A checksum of many bytes, on all cores, as fast as memory is read. Against damage, not against
/// forgery: any one word that differs changes it, several do but for one case in 2⁶⁴.
pub(super) fn sum(bytes: &[u8]) -> String {
    let pieces: Vec<[u64; LANES]> = bytes.par_chunks(PIECE).map(lanes).collect();
    finish(bytes.len(), &pieces)
}

fn finish(length: usize, pieces: &[[u64; LANES]]) -> String {
    let mut hash = Sha256::new();
    hash.update((length as u64).to_le_bytes());
    for word in pieces.iter().flatten() {
        hash.update(word.to_le_bytes());
    }
    hex::encode(hash.finalize())
}

/// [`sum`] of bytes that come one after the other, on one core.
#[derive(Debug, Default)]
pub(super) struct Sum {
    length: usize,
    pieces: Vec<[u64; LANES]>,
    /// What is not yet a piece.
    rest: Vec<u8>,
}

impl Sum {
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        if !self.rest.is_empty() {
            let (first, others) = bytes.split_at(bytes.len().min(PIECE - self.rest.len()));
            self.rest.extend_from_slice(first);
            bytes = others;
            if self.rest.len() < PIECE {
                return;
            }
            self.pieces.push(lanes(&self.rest));
            self.rest.clear();
        }
        let pieces = bytes.chunks_exact(PIECE);
        self.rest.extend_from_slice(pieces.remainder());
        self.pieces.extend(pieces.map(lanes));
    }

    pub(super) fn finish(mut self) -> String {
        if !self.rest.is_empty() {
            self.pieces.push(lanes(&self.rest));
        }
        finish(self.length, &self.pieces)
    }
}

const LANES: usize = 8;

/// Eight words side by side; each step is a bijection of a lane's state for a given word, and of the
/// word for a given state.
fn lanes(bytes: &[u8]) -> [u64; LANES] {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state: [u64; LANES] = std::array::from_fn(|lane| lane as u64 + 1);
    let mut step = |line: &[u8; 8 * LANES]| {
        for (state, word) in state.iter_mut().zip(line.as_chunks::<8>().0) {
            *state = (*state ^ u64::from_le_bytes(*word))
                .wrapping_mul(FACTOR)
                .rotate_left(29);
        }
    };
    let (lines, rest) = bytes.as_chunks::<{ 8 * LANES }>();
    lines.iter().for_each(&mut step);
    let mut last = [0; 8 * LANES];
    last[..rest.len()].copy_from_slice(rest);
    step(&last);
    state
}

/// The table and the footer, which belongs at `at`.
pub(super) fn ending(contents: &Contents, at: u64) -> Result<Vec<u8>, String> {
    let mut bytes = serde_json::to_vec(contents).map_err(|e| e.to_string())?;
    let sum = Sha256::digest(&bytes);
    let length = bytes.len() as u64;
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&u64::from(LAYOUT).to_le_bytes());
    bytes.extend_from_slice(&at.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&sum);
    Ok(bytes)
}

/// The model in a file, every part of which is verified.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(file: &File, key: &str, spec: &ModelSpec) -> Result<Model, String> {
    let map = map(file).map_err(|e| format!("it cannot be mapped: {e}"))?;
    let contents = contents(&map)?;
    if contents.key != key {
        return Err("it was made from something else".into());
    }
    let mut whole = contents.matrices.iter().map(|matrix| &matrix.section);
    let damaged = whole
        .by_ref()
        .chain([&contents.vectors])
        .any(|section| part(&map, section).is_none_or(|range| sum(&map[range]) != section.sum));
    if damaged {
        return Err("a checksum differs".into());
    }
    let spec = contents.spec(spec);
    let vectors = part(&map, &contents.vectors).unwrap_or_default();
    let mut parts = MappedParts {
        floats: map[vectors].as_chunks::<4>().0,
        matrices: contents.matrices.iter(),
        widths: contents.widths.iter(),
        map: &map,
    };
    let model = assemble(spec, &mut parts).map_err(|e| e.to_string())?;
    match parts.is_empty() {
        true => Ok(model),
        false => Err("it holds more than the model".into()),
    }
}

fn contents(map: &Mmap) -> Result<Contents, String> {
    let cut = || "it was cut short".to_string();
    let end = map.len().checked_sub(FOOTER).ok_or_else(cut)?;
    let footer = &map[end..];
    let number = |at: usize| {
        let bytes = footer[at..].first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    if !footer.starts_with(MAGIC) {
        return Err(cut());
    }
    if number(8) != u64::from(LAYOUT) {
        return Err(format!("its layout is {}, not {LAYOUT}", number(8)));
    }
    let start = usize::try_from(number(16)).map_err(|_| cut())?;
    let table = map.get(start..end).ok_or_else(cut)?;
    if table.len() as u64 != number(24) || Sha256::digest(table).as_slice() != &footer[32..] {
        return Err("the checksum of its table differs".into());
    }
    serde_json::from_slice(table).map_err(|e| format!("its table cannot be read: {e}"))
}

/// Where a section lies in the file; `None` if it does not.
fn part(map: &Mmap, section: &Section) -> Option<Range<usize>> {
    let start = usize::try_from(section.at).ok()?;
    let end = start.checked_add(usize::try_from(section.bytes).ok()?)?;
    let aligned = section.at.is_multiple_of(ALIGNMENT);
    (aligned && end <= map.len()).then_some(start..end)
}

/// The parts of a model in a mapped file.
struct MappedParts<'a> {
    map: &'a Arc<Mmap>,
    matrices: std::slice::Iter<'a, Matrix>,
    widths: std::slice::Iter<'a, usize>,
    floats: &'a [[u8; 4]],
}

impl MappedParts<'_> {
    fn is_empty(&self) -> bool {
        self.matrices.len() == 0 && self.widths.len() == 0 && self.floats.is_empty()
    }
}

impl Parts<PackedWeight> for MappedParts<'_> {
    fn matrix(&mut self, shape: (usize, usize)) -> CandleResult<PackedWeight> {
        let Some(matrix) = self.matrices.next() else {
            bail!("it lacks a matrix");
        };
        let found = (matrix.out, matrix.columns);
        let range = part(self.map, &matrix.section);
        let (Some(encoding), Some(range), true) =
            (matrix.encoding.encoding(), range, found == shape)
        else {
            bail!("a matrix has shape {found:?} in {:?}", matrix.encoding);
        };
        let panels = Panels::Mapped(self.map.clone(), range);
        PackedWeight::from_raw(shape, (encoding, f32::from_bits(matrix.gain)), panels)
    }

    fn vector(&mut self, width: usize, _kind: VectorKind) -> CandleResult<Tensor> {
        let found = self.widths.next();
        let Some((values, rest)) = self.floats.split_at_checked(width) else {
            bail!("it lacks norms");
        };
        if found != Some(&width) {
            bail!("a norm or bias has {found:?} elements, not {width}");
        }
        self.floats = rest;
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_vec(values, width, &Device::Cpu)
    }
}
