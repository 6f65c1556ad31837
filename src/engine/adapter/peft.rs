//! PEFT adapter directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensor names and scales follow Hugging Face PEFT's LoRA format, so adapters interchange with
//! PEFT and with servers that read its directories.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::AdapterError;
use realign_core::files::{self, Limit};
use realign_model::lora::{LoraPair, LoraSite, LoraWeights, Projection};

mod config;
mod error;
mod fields;
mod header;
mod targets;
#[cfg(test)]
mod tests;

pub use config::PeftConfig;
use error::PeftError;

/// File name of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the tensors.
pub const MODEL_FILE: &str = "adapter_model.safetensors";

const MAX_CONFIG: Limit = Limit::mib(1);
/// More than any adapter of rank 512 on a model that fits this engine.
const MAX_MODEL: Limit = Limit::mib(4096);
const PREFIX: &str = "base_model.model.model.layers.";

/// The two files of an adapter directory, ready to write. Equal weights give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeftFiles {
    /// Content of [`CONFIG_FILE`].
    pub config: Vec<u8>,
    /// Content of [`MODEL_FILE`].
    pub model: Vec<u8>,
}

/// An adapter read from a directory.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// The parsed content of [`CONFIG_FILE`].
    pub config: PeftConfig,
    /// Its weights, f32 on the CPU.
    pub weights: LoraWeights,
    /// The bytes of [`MODEL_FILE`], for hashing.
    pub(crate) model: Vec<u8>,
}

/// Which of the two LoRA factors a tensor holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    A,
    B,
}

/// Reads an adapter directory.
///
/// # Errors
/// [`AdapterError::Io`] and [`AdapterError::Format`], naming the file and the field or tensor.
pub fn read_dir(dir: &Path) -> Result<PeftAdapter, AdapterError> {
    let config_path = dir.join(CONFIG_FILE);
    let text = files::read(&config_path, MAX_CONFIG).map_err(AdapterError::io(&config_path))?;
    let config = PeftConfig::parse(&text)
        .map_err(|problem| AdapterError::format(&config_path, problem.to_string()))?;
    let model_path = dir.join(MODEL_FILE);
    let model = header::read(&model_path, &config, MAX_MODEL)?;
    let weights = decode(&model, &config)
        .map_err(|problem| AdapterError::format(&model_path, problem.to_string()))?;
    Ok(PeftAdapter {
        config,
        weights,
        model,
    })
}

/// Reads an adapter's two files from memory, as [`read_dir`] does from a directory.
///
/// # Errors
/// What is wrong with one of them.
pub fn read_bytes(config: &[u8], model: &[u8]) -> Result<LoraWeights, String> {
    let config = PeftConfig::parse(config).map_err(|e| e.to_string())?;
    let checked = header::check(model, model.len() as u64, &config);
    let weights = checked.and_then(|_| decode(model, &config));
    weights.map_err(|e| e.to_string())
}

/// Encodes an adapter. `base_name` is what `base_model_name_or_path` will say.
///
/// # Errors
/// [`AdapterError::Tensor`] if weights cannot be copied to the CPU, [`AdapterError::Shape`] for an
/// adapter without sites.
pub fn encode(weights: &LoraWeights, base_name: &str) -> Result<PeftFiles, AdapterError> {
    if weights.sites.is_empty() {
        return Err(AdapterError::Shape(
            "it adapts no module; the base model needs no file".into(),
        ));
    }
    let config = PeftConfig::describe(weights, base_name)?;
    let mut buffers: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (site, pair) in &weights.sites {
        for (factor, tensor) in [(Factor::A, &pair.a), (Factor::B, &pair.b)] {
            let bytes = f32_bytes(tensor)?;
            buffers.insert(tensor_name(*site, factor), (tensor.dims().to_vec(), bytes));
        }
    }
    let views = buffers
        .iter()
        .map(|(name, (shape, bytes))| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| AdapterError::Shape(e.to_string()))?;
    // One entry only: a map of several would be written in random order.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let model = safetensors::serialize(views, Some(metadata))
        .map_err(|e| AdapterError::Shape(e.to_string()))?;
    Ok(PeftFiles { config, model })
}

/// A site's module path as PEFT patterns match it: `model.layers.3.self_attn.q_proj`.
fn module_path(site: LoraSite) -> String {
    let projection = site.projection;
    format!(
        "model.layers.{}.{}.{}",
        site.layer,
        projection.parent(),
        projection.name()
    )
}

/// The name that PEFT gives a factor's tensor in the file.
pub(super) fn tensor_name(site: LoraSite, factor: Factor) -> String {
    let factor = match factor {
        Factor::A => "lora_A",
        Factor::B => "lora_B",
    };
    format!("base_model.model.{}.{factor}.weight", module_path(site))
}

/// A tensor's values as little-endian f32, row by row.
pub(super) fn f32_bytes(tensor: &Tensor) -> Result<Vec<u8>, AdapterError> {
    let values = tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?;
    Ok(values
        .to_vec1::<f32>()?
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect())
}

/// The factors in a file whose header was checked.
fn decode(model: &[u8], config: &PeftConfig) -> Result<LoraWeights, PeftError> {
    let file = SafeTensors::deserialize(model)?;
    let mut halves: BTreeMap<LoraSite, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
    for (name, view) in file.iter() {
        let (site, factor) = parse_name(name)?;
        let tensor = read_tensor(name, &view)?;
        let pair = halves.entry(site).or_default();
        let slot = if factor == Factor::A {
            &mut pair.0
        } else {
            &mut pair.1
        };
        if slot.replace(tensor).is_some() {
            return Err(PeftError::Twice(name.into()));
        }
    }
    if halves.is_empty() {
        return Err(PeftError::NoTensors);
    }
    let sites: Vec<LoraSite> = halves.keys().copied().collect();
    config.targets.check(&sites)?;
    let mut weights = LoraWeights::default();
    for (site, factors) in halves {
        weights.sites.insert(site, join(site, factors, config)?);
    }
    Ok(weights)
}

fn join(
    site: LoraSite,
    factors: (Option<Tensor>, Option<Tensor>),
    config: &PeftConfig,
) -> Result<LoraPair, PeftError> {
    let path = module_path(site);
    let half = |missing, present, path| PeftError::Half {
        path,
        missing,
        present,
    };
    let (a, b) = match factors {
        (Some(a), Some(b)) => (a, b),
        (None, _) => return Err(half("lora_A", "lora_B", path)),
        (_, None) => return Err(half("lora_B", "lora_A", path)),
    };
    Ok(LoraPair {
        a,
        b,
        scale: config.scale(&path),
    })
}

fn parse_name(name: &str) -> Result<(LoraSite, Factor), PeftError> {
    parse_parts(name).ok_or_else(|| PeftError::Module { name: name.into() })
}

fn parse_parts(name: &str) -> Option<(LoraSite, Factor)> {
    let parts: Vec<&str> = name.strip_prefix(PREFIX)?.split('.').collect();
    // PEFT drops the adapter's name when it saves; some exporters keep it.
    let (layer, parent, module, factor) = match parts.as_slice() {
        [layer, parent, module, factor, "weight"]
        | [layer, parent, module, factor, "default", "weight"] => (layer, parent, module, factor),
        _ => return None,
    };
    let projection = Projection::from_name(module).filter(|p| p.parent() == *parent)?;
    let factor = match *factor {
        "lora_A" => Factor::A,
        "lora_B" => Factor::B,
        _ => return None,
    };
    Some((
        LoraSite {
            layer: layer.parse().ok()?,
            projection,
        },
        factor,
    ))
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, PeftError> {
    let dtype = header::dtype(name, view.dtype())?;
    let read = || -> candle_core::Result<(Tensor, Option<f32>)> {
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?
            .to_dtype(DType::F32)?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let broken = values.into_iter().find(|v| !v.is_finite());
        Ok((tensor, broken))
    };
    let name = name.to_string();
    match read() {
        Ok((tensor, None)) => Ok(tensor),
        Ok((_, Some(value))) => Err(PeftError::NotFinite { name, value }),
        Err(source) => Err(PeftError::Tensor { name, source }),
    }
}
