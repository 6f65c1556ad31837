//! Copies of a model's files with an adapter merged into their weights: `W + scale · B A`.
//!
//! For engines that know nothing of adapters, or nothing of ours. What an adapter does not touch is
//! copied as it is. A quantised matrix that it does touch is stored as Q8_0: its own coarser type
//! would round a small difference away.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};

use super::names::{Names, is_permuted};
use super::row_order;
use crate::error::{ModelError, Result};
use crate::lora::{LoraPair, LoraSite, LoraWeights, Projection};
use crate::spec::ModelSpec;

/// Elements of a Q8_0 block: rows whose length is no multiple of it stay in f32.
const Q8_BLOCK: usize = 32;
/// candle aligns tensors to its default; a file that says otherwise would be read wrongly.
const ALIGNMENT: &str = "general.alignment";

/// The name of a site's matrix in Hugging Face's layout.
fn matrix_name(site: LoraSite) -> String {
    let (parent, name) = (site.projection.parent(), site.projection.name());
    format!("model.layers.{}.{parent}.{name}.weight", site.layer)
}

/// `scale · B A`, (out, in), f32.
fn difference(pair: &LoraPair) -> candle_core::Result<Tensor> {
    let f32_on_cpu = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
    f32_on_cpu(&pair.b)?.matmul(&f32_on_cpu(&pair.a)?)? * pair.scale
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    |source| ModelError::Io {
        path: path.into(),
        source,
    }
}

/// Sites by the name that their matrix has in the file.
fn by_stored_name<'a>(
    adapter: &'a LoraWeights,
    names: &Names,
) -> HashMap<String, (LoraSite, &'a LoraPair)> {
    let entry = |(site, pair): (&LoraSite, &'a LoraPair)| {
        (names.stored(&matrix_name(*site)), (*site, pair))
    };
    adapter.sites.iter().map(entry).collect()
}

/// Fails for a site whose matrix was in no file.
fn all_found(path: &Path, left: HashMap<String, (LoraSite, &LoraPair)>) -> Result<()> {
    match left.into_keys().min() {
        None => Ok(()),
        Some(tensor) => Err(ModelError::Tensor {
            path: path.into(),
            tensor,
            what: "is missing, so the adapter cannot be merged into it".into(),
        }),
    }
}

/// Writes a GGUF file with the adapter merged in.
///
/// # Errors
/// If the file cannot be read, lacks a matrix of the adapter, or the copy cannot be written.
pub(crate) fn gguf(
    path: &Path,
    content: &gguf_file::Content,
    spec: &ModelSpec,
    adapter: &LoraWeights,
    into: &Path,
) -> Result<()> {
    let mut reader = realign_core::files::open_regular(path).map_err(io(path))?;
    let mut sites = by_stored_name(adapter, &Names::gguf(spec.variant.output_norms));
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    let mut tensors: Vec<(&str, QTensor)> = Vec::with_capacity(names.len());
    for name in names {
        let stored = content.tensor(&mut reader, name, &Device::Cpu)?;
        let merged = match sites.remove(name) {
            Some((site, pair)) => {
                let (inputs, outputs) = spec.projection_shape(site.projection);
                if stored.shape().dims() != [outputs, inputs] {
                    return Err(ModelError::Tensor {
                        path: path.into(),
                        tensor: name.clone(),
                        what: "holds several projections: adapters are merged into single ones"
                            .into(),
                    });
                }
                let order = permuted_heads(spec, site.projection);
                merged_quantized(&stored, pair, order)?
            }
            None => stored,
        };
        tensors.push((name, merged));
    }
    all_found(path, sites)?;
    let mut metadata: Vec<(&str, &gguf_file::Value)> = content
        .metadata
        .iter()
        .filter(|(key, _)| *key != ALIGNMENT)
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    metadata.sort_by_key(|(key, _)| *key);
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
    let mut file = BufWriter::new(File::create(into).map_err(io(into))?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    std::io::Write::flush(&mut file).map_err(io(into))
}

/// Heads of q and k where a llama GGUF has permuted their rows.
fn permuted_heads(spec: &ModelSpec, projection: Projection) -> Option<usize> {
    match projection {
        Projection::Q if is_permuted(&spec.architecture) => Some(spec.heads),
        Projection::K if is_permuted(&spec.architecture) => Some(spec.kv_heads),
        _ => None,
    }
}

fn merged_quantized(
    stored: &QTensor,
    pair: &LoraPair,
    heads: Option<usize>,
) -> candle_core::Result<QTensor> {
    let mut difference = difference(pair)?;
    let (rows, columns) = difference.dims2()?;
    if let Some(heads) = heads {
        difference = difference.index_select(&file_order(rows, heads)?, 0)?;
    }
    let merged = (stored.dequantize(&Device::Cpu)? + difference)?;
    let dtype = match stored.dtype() {
        plain @ (GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) => plain,
        _ if columns % Q8_BLOCK == 0 => GgmlDType::Q8_0,
        _ => GgmlDType::F32,
    };
    QTensor::quantize(&merged, dtype)
}

/// For each row of a llama GGUF, the row of the Hugging Face layout that it holds.
fn file_order(rows: usize, heads: usize) -> candle_core::Result<Tensor> {
    let mut order = vec![0u32; rows];
    for (row, at) in (0u32..).zip(row_order(rows, heads)) {
        order[at as usize] = row;
    }
    Tensor::new(order, &Device::Cpu)
}

/// Writes copies of safetensors files with the adapter merged in, into a directory, named
/// `model-00001-of-0000N.safetensors` and so on. Files that the adapter does not touch are linked.
/// One file at a time is in memory.
///
/// # Errors
/// As [`gguf`].
pub(crate) fn safetensors(
    paths: &[std::path::PathBuf],
    adapter: &LoraWeights,
    into: &Path,
) -> Result<()> {
    let mut stored = std::collections::HashSet::new();
    for path in paths {
        // SAFETY: nothing here changes the file while it is mapped. If another process does, tensors
        // may be torn, or SIGBUS ends this one (docs/unsafe.md).
        let mapped = unsafe { candle_core::safetensors::MmapedSafetensors::new(path)? };
        stored.extend(mapped.tensors().into_iter().map(|(name, _)| name));
    }
    let names = Names::safetensors(|name| stored.contains(name));
    let mut sites = by_stored_name(adapter, &names);
    for (i, path) in paths.iter().enumerate() {
        let to = into.join(format!(
            "model-{:05}-of-{:05}.safetensors",
            i + 1,
            paths.len()
        ));
        merge_file(path, &mut sites, &to)?;
    }
    let first = paths.first().map_or(into, |p| p.as_path());
    all_found(first, sites)
}

fn merge_file(
    path: &Path,
    sites: &mut HashMap<String, (LoraSite, &LoraPair)>,
    to: &Path,
) -> Result<()> {
    // SAFETY: as above.
    let mapped = unsafe { candle_core::safetensors::MmapedSafetensors::new(path)? };
    let names: Vec<String> = mapped.tensors().into_iter().map(|(name, _)| name).collect();
    if !names.iter().any(|name| sites.contains_key(name)) {
        let whole = std::fs::canonicalize(path).map_err(io(path))?;
        return std::os::unix::fs::symlink(whole, to).map_err(io(to));
    }
    let mut tensors = HashMap::new();
    for name in names {
        let stored = mapped.load(&name, &Device::Cpu)?;
        let merged = match sites.remove(&name) {
            Some((_, pair)) => {
                let sum = (stored.to_dtype(DType::F32)? + difference(pair)?)?;
                sum.to_dtype(stored.dtype())?
            }
            None => stored,
        };
        tensors.insert(name, merged);
    }
    Ok(candle_core::safetensors::save(&tensors, to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_order_undoes_the_row_order() {
        for (rows, heads) in [(8, 2), (6, 1), (64, 4)] {
            let back: Vec<u32> = file_order(rows, heads).unwrap().to_vec1().unwrap();
            let there = row_order(rows, heads);
            for (row, at) in (0u32..).zip(&there) {
                assert_eq!(back[*at as usize], row);
            }
        }
    }
}
