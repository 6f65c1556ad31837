//! Opening GGUF files.
//!
//! The header is checked here, value by value, before candle reads it: candle divides by the
//! alignment that a file declares, keeps each element of an array as an enum of 32 bytes, and
//! multiplies dimensions without looking.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use realign_core::files;

use super::error::{ModelError, Result};

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
/// Most metadata entries, and most tensors. Large models have a few thousand tensors.
const MAX_ENTRIES: u64 = 1 << 17;
/// Most array elements of the whole header. The largest vocabularies need a few million.
const MAX_ELEMENTS: u64 = 1 << 24;
const MAX_STRING: u64 = 1 << 24;
const MAX_DIMENSIONS: u32 = 4;
/// Arrays of arrays are allowed by the format, and no known file nests them deeply.
const MAX_DEPTH: usize = 4;

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
enum HeaderError {
    #[error("the file ends in the middle of its header")]
    Ends,
    #[error(transparent)]
    Io(io::Error),
    #[error("it does not begin with the letters GGUF")]
    Magic,
    #[error("version {0} is not supported; 1 to 3 are")]
    Version(u32),
    #[error("{what} is {found}, more than {limit}, the limit of this reader")]
    TooMany {
        what: String,
        found: u64,
        limit: u64,
    },
    #[error("{what} needs {needs} bytes, but the file has only {left} left")]
    TooLong { what: String, needs: u64, left: u64 },
    #[error("`{key}` has the value type {kind}, which the format does not have")]
    Type { key: String, kind: u32 },
    #[error("the {what} `{name}` is there twice")]
    Twice { what: &'static str, name: String },
    #[error("`{ALIGNMENT}` must be a power of two, written as a 32-bit integer; {0}")]
    Alignment(String),
    #[error("tensor `{tensor}` has the dimensions {dims:?}, whose product is no size")]
    Dimensions { tensor: String, dims: Vec<u64> },
    #[error(
        "tensor `{tensor}` begins at {offset}, which is no multiple of the alignment {alignment}"
    )]
    Offset {
        tensor: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor `{tensor}` has {elements} elements, which is no multiple of its block of {block}"
    )]
    Block {
        tensor: String,
        elements: usize,
        block: usize,
    },
    #[error("is truncated: tensor `{tensor}` ends at byte {end}, the file at {length}")]
    Truncated {
        tensor: String,
        end: u64,
        length: u64,
    },
    #[error("the tensors `{0}` and `{1}` overlap")]
    Overlap(String, String),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => HeaderError::Ends,
            _ => HeaderError::Io(error),
        }
    }
}

/// Opens a file and reads its header; the file is good for reading tensors.
///
/// # Errors
/// [`ModelError::Io`], also if it is not a regular file; [`ModelError::Malformed`] if the header
/// cannot be used or the file is shorter than its header says.
pub(crate) fn open(path: &Path) -> Result<(Content, File)> {
    let io = |source| ModelError::Io {
        path: path.into(),
        source,
    };
    let malformed = |why: String| ModelError::Malformed {
        path: path.into(),
        what: format!("not a readable GGUF file: {why}"),
    };
    let file = files::open_regular(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    // A header is a million small values: unbuffered, each is a system call.
    let mut header = BufReader::with_capacity(1 << 20, &file);
    let alignment = check_header(&mut header, length).map_err(|e| malformed(e.to_string()))?;
    io::Seek::rewind(&mut header).map_err(io)?;
    let content = Content::read(&mut header).map_err(|e| malformed(e.to_string()))?;
    check_tensors(&content, alignment, length).map_err(|e| malformed(e.to_string()))?;
    Ok((content, file))
}

/// A header, read in order.
struct Header<R> {
    input: R,
    /// Bytes of the file that were not read yet.
    left: u64,
    version: u32,
    /// Array elements so far.
    elements: u64,
}

/// Checks everything up to the tensors' data, and returns the alignment.
fn check_header(input: impl Read, length: u64) -> Result<u64, HeaderError> {
    let mut header = Header {
        input,
        left: length,
        version: 0,
        elements: 0,
    };
    let magic: [u8; 4] = header.bytes()?;
    if magic != *MAGIC {
        return Err(HeaderError::Magic);
    }
    header.version = header.u32()?;
    if !(1..=3).contains(&header.version) {
        return Err(HeaderError::Version(header.version));
    }
    let tensors = header.count("the number of tensors", MAX_ENTRIES)?;
    let entries = header.count("the number of metadata entries", MAX_ENTRIES)?;
    let mut alignment = 32;
    let mut seen = HashSet::new();
    for _ in 0..entries {
        let key = header.string("a metadata key")?;
        let kind = header.u32()?;
        match key == ALIGNMENT {
            true => alignment = header.alignment(kind)?,
            false => header.skip_value(&key, kind, 0)?,
        }
        distinct("metadata key", key, &mut seen)?;
    }
    let mut seen = HashSet::new();
    for _ in 0..tensors {
        let name = header.tensor()?;
        distinct("tensor", name, &mut seen)?;
    }
    Ok(alignment)
}

fn distinct(
    what: &'static str,
    name: String,
    seen: &mut HashSet<String>,
) -> Result<(), HeaderError> {
    match seen.insert(name.clone()) {
        true => Ok(()),
        false => Err(HeaderError::Twice { what, name }),
    }
}

impl<R: Read> Header<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.left = self.left.saturating_sub(N as u64);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A length or a number of things: 32 bits in version 1, 64 later.
    fn length(&mut self) -> Result<u64, HeaderError> {
        match self.version {
            1 => self.u32().map(u64::from),
            _ => self.u64(),
        }
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, HeaderError> {
        let found = self.length()?;
        let what = || what.to_owned();
        if found > limit {
            let what = what();
            return Err(HeaderError::TooMany { what, found, limit });
        }
        // Whatever is counted takes a byte at least.
        self.fits(what, found)?;
        Ok(found)
    }

    fn fits(&self, what: impl FnOnce() -> String, needs: u64) -> Result<(), HeaderError> {
        match needs > self.left {
            true => Err(HeaderError::TooLong {
                what: what(),
                needs,
                left: self.left,
            }),
            false => Ok(()),
        }
    }

    fn string(&mut self, what: &str) -> Result<String, HeaderError> {
        let length = self.count(&format!("the length of {what}"), MAX_STRING)?;
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(length).read_to_end(&mut bytes)?;
        self.left = self.left.saturating_sub(length);
        if (read as u64) < length {
            return Err(HeaderError::Ends);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, length: u64) -> Result<(), HeaderError> {
        let skipped = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
        self.left = self.left.saturating_sub(length);
        match skipped < length {
            true => Err(HeaderError::Ends),
            false => Ok(()),
        }
    }

    fn skip_value(&mut self, key: &str, kind: u32, depth: usize) -> Result<(), HeaderError> {
        if let Some(width) = width(kind) {
            return self.skip(width);
        }
        match kind {
            8 => {
                let length = self.count(&format!("the length of `{key}`"), MAX_STRING)?;
                self.skip(length)
            }
            9 => self.skip_array(key, depth),
            _ => Err(HeaderError::Type {
                key: key.into(),
                kind,
            }),
        }
    }

    fn skip_array(&mut self, key: &str, depth: usize) -> Result<(), HeaderError> {
        let too_many = |what: &str, found, limit| HeaderError::TooMany {
            what: format!("the {what} of `{key}`"),
            found,
            limit,
        };
        if depth >= MAX_DEPTH {
            let depth = depth as u64 + 1;
            return Err(too_many("nesting", depth, MAX_DEPTH as u64));
        }
        let kind = self.u32()?;
        let length = self.length()?;
        self.elements = self.elements.saturating_add(length);
        if self.elements > MAX_ELEMENTS {
            return Err(too_many(
                "length, with all arrays before it,",
                self.elements,
                MAX_ELEMENTS,
            ));
        }
        let needs = length.saturating_mul(width(kind).unwrap_or(1));
        self.fits(|| format!("the array `{key}`"), needs)?;
        if width(kind).is_some() {
            return self.skip(needs);
        }
        for _ in 0..length {
            self.skip_value(key, kind, depth + 1)?;
        }
        Ok(())
    }

    fn alignment(&mut self, kind: u32) -> Result<u64, HeaderError> {
        let value = match kind {
            4 | 5 => self.u32()?,
            other => {
                let what = format!("its value type is {other}");
                return Err(HeaderError::Alignment(what));
            }
        };
        // As a signed integer, too.
        match value.is_power_of_two() && value <= 1 << 30 {
            true => Ok(value.into()),
            false => Err(HeaderError::Alignment(format!("it is {value}"))),
        }
    }

    /// Checks a tensor's entry and returns its name.
    fn tensor(&mut self) -> Result<String, HeaderError> {
        let tensor = self.string("a tensor's name")?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(HeaderError::TooMany {
                what: format!("the number of dimensions of `{tensor}`"),
                found: dimensions.into(),
                limit: MAX_DIMENSIONS.into(),
            });
        }
        let dims = (0..dimensions).map(|_| self.length());
        let dims = dims.collect::<Result<Vec<u64>, _>>()?;
        let elements = dims.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
        // A weight takes a bit at least, and sizes in bytes must not overflow either.
        if elements.is_none_or(|n| n == 0 || n > 1 << 48) {
            return Err(HeaderError::Dimensions { tensor, dims });
        }
        let (_dtype, _offset) = (self.u32()?, self.u64()?);
        Ok(tensor)
    }
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Every tensor lies in the file, and none in another. A download that broke off has its whole
/// header and a part of its tensors.
fn check_tensors(content: &Content, alignment: u64, length: u64) -> Result<(), HeaderError> {
    let mut places = Vec::with_capacity(content.tensor_infos.len());
    for (name, info) in &content.tensor_infos {
        let tensor = || name.clone();
        let (elements, block) = (info.shape.elem_count(), info.ggml_dtype.block_size());
        if !elements.is_multiple_of(block) {
            return Err(HeaderError::Block {
                tensor: tensor(),
                elements,
                block,
            });
        }
        if !info.offset.is_multiple_of(alignment) {
            return Err(HeaderError::Offset {
                tensor: tensor(),
                offset: info.offset,
                alignment,
            });
        }
        let bytes = (elements / block).saturating_mul(info.ggml_dtype.type_size()) as u64;
        let start = content.tensor_data_offset.saturating_add(info.offset);
        let end = start.saturating_add(bytes);
        if end > length {
            return Err(HeaderError::Truncated {
                tensor: tensor(),
                end,
                length,
            });
        }
        places.push((start, end, name));
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        None => Ok(()),
        Some(pair) => Err(HeaderError::Overlap(pair[0].2.clone(), pair[1].2.clone())),
    }
}
