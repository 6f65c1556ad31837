//! Checkpoints: a training run's state on disk, from which an interrupted run resumes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::curve::{Curve, StepRecord};
use super::optimizer::Optimizer;
use super::trainable::TrainableLora;

/// Name of the tensor of step records, (steps, [`StepRecord::FIELDS`]).
const CURVE: &str = "curve";

/// Writes `step-<n>.safetensors` (variables, the optimiser's state, the steps' records) atomically
/// and removes older ones. Returns its path.
///
/// # Errors
/// If the directory or the file cannot be written.
pub(crate) fn save(
    dir: &Path,
    lora: &TrainableLora,
    optimizer: &Optimizer,
    curve: &Curve,
) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (i, var) in lora.vars().enumerate() {
        tensors.insert(format!("{i}.value"), var.as_detached_tensor());
        for (name, tensor) in optimizer.state(i) {
            tensors.insert(format!("{i}.{name}"), tensor.clone());
        }
    }
    let values: Vec<f64> = curve.0.iter().flat_map(|r| r.to_values()).collect();
    let shape = (curve.0.len(), StepRecord::FIELDS);
    let records = Tensor::from_vec(values, shape, &Device::Cpu).map_err(io::Error::other)?;
    tensors.insert(CURVE.into(), records);
    let steps = optimizer.steps();
    let path = dir.join(format!("step-{steps}.safetensors"));
    let temporary = path.with_extension("tmp");
    candle_core::safetensors::save(&tensors, &temporary).map_err(io::Error::other)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    for (step, old) in list(dir) {
        if step != steps {
            fs::remove_file(old)?;
        }
    }
    Ok(path)
}

/// Restores the newest usable checkpoint and returns the records of its steps; empty if there is
/// none. Damaged checkpoints and those of other models are skipped, so a run can only resume too
/// early, never from a wrong state.
pub(crate) fn restore(dir: &Path, lora: &TrainableLora, optimizer: &mut Optimizer) -> Curve {
    let mut found = list(dir);
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (step, path) in found {
        match load(&path, step, lora, optimizer) {
            Ok(curve) => return curve,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring an unusable checkpoint");
            }
        }
    }
    Curve::default()
}

fn load(
    path: &Path,
    step: usize,
    lora: &TrainableLora,
    optimizer: &mut Optimizer,
) -> candle_core::Result<Curve> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let get = |name: String, like: &Tensor| -> candle_core::Result<Tensor> {
        match tensors.get(&name) {
            Some(t) if t.shape() == like.shape() => t.to_device(like.device()),
            _ => candle_core::bail!("tensor {name} is missing or has another shape"),
        }
    };
    let mut values = Vec::new();
    let mut state = Vec::new();
    for (i, var) in lora.vars().enumerate() {
        values.push(get(format!("{i}.value"), var)?);
        let tensors_of_variable = optimizer
            .state(i)
            .into_iter()
            .map(|(name, like)| get(format!("{i}.{name}"), like))
            .collect::<candle_core::Result<Vec<_>>>()?;
        state.push(tensors_of_variable);
    }
    let curve = records(tensors.get(CURVE), step)?;
    // Nothing is modified until every tensor has been found.
    for (var, value) in lora.vars().zip(values) {
        var.set(&value)?;
    }
    optimizer.restore(step, state);
    Ok(curve)
}

fn records(tensor: Option<&Tensor>, step: usize) -> candle_core::Result<Curve> {
    let fits = |t: &&Tensor| t.dims() == [step, StepRecord::FIELDS] && t.dtype() == DType::F64;
    let Some(tensor) = tensor.filter(fits) else {
        candle_core::bail!("the records of its {step} steps are missing");
    };
    let rows = tensor.to_vec2::<f64>()?;
    let records = rows.into_iter().map(|row| {
        <[f64; StepRecord::FIELDS]>::try_from(row)
            .map(StepRecord::from_values)
            .unwrap_or_default()
    });
    Ok(Curve(records.collect()))
}

fn list(dir: &Path) -> Vec<(usize, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path
                .file_name()?
                .to_str()?
                .strip_prefix("step-")?
                .strip_suffix(".safetensors")?
                .parse()
                .ok()?;
            Some((step, path))
        })
        .collect()
}
