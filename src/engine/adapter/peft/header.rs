//! What a file of tensors says about itself, checked before its tensors are read: a file of which the
//! header is damaged, or that belongs to something else, costs the header's bytes alone.

use std::io::Read;
use std::path::Path;

use candle_core::DType;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::error::PeftError;
use super::{AdapterError, Factor, PeftConfig, module_path, parse_name};
use realign_core::files::{self, Limit};
use realign_model::lora::LoraSite;

/// The length of the header, in front of it.
const PREFIX: usize = 8;
/// An adapter of every module of a hundred layers has a header of a tenth of it.
const MAX_HEADER: usize = 4 << 20;

/// Reads a file of tensors, its header first. The file has exactly the bytes that its header says.
///
/// # Errors
/// [`AdapterError::Io`], also for a file beyond `limit`; [`AdapterError::Format`], before any tensor
/// is read.
pub(super) fn read(
    path: &Path,
    config: &PeftConfig,
    limit: Limit,
) -> Result<Vec<u8>, AdapterError> {
    let damaged = |problem: PeftError| AdapterError::format(path, problem.to_string());
    let mut file = files::open_at_most(path, limit).map_err(AdapterError::io(path))?;
    let size = file.size();
    let mut bytes = Vec::new();
    let mut take = |count: u64, bytes: &mut Vec<u8>| {
        let taken = file.by_ref().take(count).read_to_end(bytes);
        taken.map_err(AdapterError::io(path))
    };
    take(PREFIX as u64, &mut bytes)?;
    let header = length(&bytes, size).map_err(damaged)?;
    take(header as u64, &mut bytes)?;
    let whole = check(&bytes, size, config).map_err(damaged)?;
    bytes.reserve_exact(whole.saturating_sub(bytes.len()));
    // One byte more shows that the file grew.
    let rest = (whole - bytes.len()) as u64 + 1;
    take(rest, &mut bytes)?;
    if bytes.len() != whole {
        let size = bytes.len() as u64;
        return Err(damaged(PeftError::Size { whole, size }));
    }
    Ok(bytes)
}

/// The header's length, from the first bytes of a file of `size` bytes.
fn length(bytes: &[u8], size: u64) -> Result<usize, PeftError> {
    let prefix = bytes.first_chunk::<PREFIX>().ok_or(PeftError::Empty)?;
    let length = u64::from_le_bytes(*prefix);
    match usize::try_from(length) {
        Ok(header) if header <= MAX_HEADER && (PREFIX + header) as u64 <= size => Ok(header),
        _ => Err(PeftError::Header { length, size }),
    }
}

/// The bytes of the whole file by the header that `bytes` begin with, each of whose tensors is a
/// factor that can be read. `size`: of the file.
pub(super) fn check(bytes: &[u8], size: u64, config: &PeftConfig) -> Result<usize, PeftError> {
    let header = length(bytes, size)?;
    let end = PREFIX + header;
    let text = bytes.get(PREFIX..end).ok_or(PeftError::Header {
        length: header as u64,
        size: bytes.len() as u64,
    })?;
    // Offsets without gaps and overlaps, and shapes that agree with them, are part of this.
    let metadata: Metadata = serde_json::from_slice(text).map_err(PeftError::Metadata)?;
    let whole = end.saturating_add(metadata.data_len());
    if whole as u64 != size {
        return Err(PeftError::Size { whole, size });
    }
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else {
            continue;
        };
        let (site, factor) = parse_name(&name)?;
        dtype(&name, info.dtype)?;
        rank(&name, info, (site, factor), config)?;
    }
    Ok(whole)
}

/// The type of a factor's numbers.
pub(super) fn dtype(name: &str, dtype: Dtype) -> Result<DType, PeftError> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        dtype => {
            let name = name.into();
            Err(PeftError::Dtype { name, dtype })
        }
    }
}

fn rank(
    name: &str,
    info: &TensorInfo,
    (site, factor): (LoraSite, Factor),
    config: &PeftConfig,
) -> Result<(), PeftError> {
    let &[rows, columns] = info.shape.as_slice() else {
        return Err(shape(name, info));
    };
    if rows == 0 || columns == 0 {
        return Err(shape(name, info));
    }
    let got = match factor {
        Factor::A => rows,
        Factor::B => columns,
    };
    let path = module_path(site);
    let rank = config.rank(&path);
    if got == rank {
        return Ok(());
    }
    let name = name.into();
    Err(PeftError::Ranks { name, got, rank })
}

fn shape(name: &str, info: &TensorInfo) -> PeftError {
    PeftError::Shape {
        name: name.into(),
        shape: info.shape.clone(),
    }
}
