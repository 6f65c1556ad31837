//! A training run's state on disk, so that a killed run goes on where it was.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::adamw::AdamW;
use super::trainable::TrainableLora;

/// Writes `step-<n>.safetensors` (variables and moments) atomically and removes older ones.
pub fn save(dir: &Path, lora: &TrainableLora, optimizer: &AdamW) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (i, (var, (m, v))) in lora.vars().zip(&optimizer.moments).enumerate() {
        tensors.insert(format!("{i}.value"), var.as_detached_tensor());
        tensors.insert(format!("{i}.m"), m.clone());
        tensors.insert(format!("{i}.v"), v.clone());
    }
    let path = dir.join(format!("step-{}.safetensors", optimizer.steps));
    let temporary = path.with_extension("tmp");
    candle_core::safetensors::save(&tensors, &temporary).map_err(io::Error::other)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    for (step, old) in list(dir) {
        if step != optimizer.steps {
            fs::remove_file(old)?;
        }
    }
    Ok(path)
}

/// Restores the newest checkpoint that fits; returns whether one was found. A damaged or foreign
/// checkpoint is passed over: the run then starts earlier, never wrong.
pub fn restore(dir: &Path, lora: &TrainableLora, optimizer: &mut AdamW) -> bool {
    let mut found = list(dir);
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    found
        .into_iter()
        .any(|(step, path)| match load(&path, lora, optimizer) {
            Ok(()) => {
                optimizer.steps = step;
                true
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring an unusable checkpoint");
                false
            }
        })
}

fn load(path: &Path, lora: &TrainableLora, optimizer: &mut AdamW) -> candle_core::Result<()> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let get = |name: String, like: &Tensor| -> candle_core::Result<Tensor> {
        match tensors.get(&name) {
            Some(t) if t.shape() == like.shape() => t.to_device(like.device()),
            _ => candle_core::bail!("tensor {name} is missing or has another shape"),
        }
    };
    let mut restored = Vec::with_capacity(optimizer.moments.len());
    for (i, var) in lora.vars().enumerate() {
        restored.push((
            get(format!("{i}.value"), var)?,
            get(format!("{i}.m"), var)?,
            get(format!("{i}.v"), var)?,
        ));
    }
    for ((var, moments), (value, m, v)) in lora.vars().zip(&mut optimizer.moments).zip(restored) {
        var.set(&value)?;
        *moments = (m, v);
    }
    Ok(())
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
