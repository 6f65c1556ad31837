//! Reading weights from GGUF and safetensors under one set of names (Hugging Face's).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use super::decoder::{Layer, Model};
use super::error::{ModelError, Result};
use super::linear::{Linear, Weight};
use super::lora::Projection;
use super::spec::ModelSpec;

/// Weights by their Hugging Face names.
pub enum WeightFile {
    /// A GGUF file.
    Gguf {
        /// The file, for errors.
        path: PathBuf,
        /// Its header.
        content: gguf_file::Content,
        /// The open file.
        reader: File,
    },
    /// One or more safetensors files.
    Safetensors {
        /// The directory or file, for errors.
        path: PathBuf,
        /// The mapped files.
        tensors: MmapedSafetensors,
    },
}

impl WeightFile {
    fn path(&self) -> &Path {
        match self {
            WeightFile::Gguf { path, .. } | WeightFile::Safetensors { path, .. } => path,
        }
    }

    fn wrong(&self, tensor: &str, what: impl ToString) -> ModelError {
        ModelError::Tensor {
            path: self.path().into(),
            tensor: tensor.into(),
            what: what.to_string(),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            WeightFile::Gguf { content, .. } => content.tensor_infos.contains_key(&gguf_name(name)),
            WeightFile::Safetensors { tensors, .. } => tensors.get(name).is_ok(),
        }
    }

    /// A matrix of shape (out, in). `heads` un-permutes the rows of a llama GGUF's q and k.
    fn matrix(
        &mut self,
        name: &str,
        shape: (usize, usize),
        heads: Option<usize>,
        device: &Device,
    ) -> Result<Weight> {
        let weight = match self {
            WeightFile::Gguf {
                content, reader, ..
            } => {
                let stored = content.tensor(reader, &gguf_name(name), device);
                let stored = stored.map_err(|e| self.wrong(&gguf_name(name), e))?;
                self.check(name, stored.shape().dims(), &[shape.0, shape.1])?;
                let stored = match heads {
                    Some(heads) => {
                        unpermute(&stored, heads, device).map_err(|e| self.wrong(name, e))?
                    }
                    None => stored,
                };
                match stored.dtype() {
                    GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
                        Weight::Dense(stored.dequantize(device)?)
                    }
                    _ => Weight::Quantized(Arc::new(stored)),
                }
            }
            WeightFile::Safetensors { .. } => Weight::Dense(self.dense(name, device)?),
        };
        let (out, inner) = weight.shape()?;
        self.check(name, &[out, inner], &[shape.0, shape.1])?;
        Ok(weight)
    }

    /// A vector of `len` elements in f32.
    fn vector(
        &mut self,
        name: &str,
        len: usize,
        heads: Option<usize>,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = match self {
            WeightFile::Gguf {
                content, reader, ..
            } => {
                let stored = content.tensor(reader, &gguf_name(name), device);
                let dense = stored
                    .map_err(|e| self.wrong(&gguf_name(name), e))?
                    .dequantize(device)?;
                match heads {
                    Some(heads) => {
                        dense.index_select(&Tensor::new(row_order(len, heads), device)?, 0)?
                    }
                    None => dense,
                }
            }
            WeightFile::Safetensors { .. } => self.dense(name, device)?,
        };
        self.check(name, tensor.dims(), &[len])?;
        Ok(tensor)
    }

    fn dense(&self, name: &str, device: &Device) -> Result<Tensor> {
        let WeightFile::Safetensors { tensors, .. } = self else {
            return Err(self.wrong(name, "not a safetensors file"));
        };
        let tensor = tensors
            .load(name, device)
            .map_err(|e| self.wrong(name, e))?;
        if !tensor.dtype().is_float() {
            return Err(self.wrong(
                name,
                format!(
                    "has type {:?}; f32, f16 and bf16 are supported",
                    tensor.dtype()
                ),
            ));
        }
        Ok(tensor.to_dtype(DType::F32)?)
    }

    fn check(&self, name: &str, got: &[usize], expected: &[usize]) -> Result<()> {
        if got == expected {
            return Ok(());
        }
        Err(self.wrong(
            name,
            format!("has shape {got:?}, the configuration asks for {expected:?}"),
        ))
    }

    /// Loads every tensor that the spec asks for and checks its shape.
    pub fn load(mut self, spec: ModelSpec, device: &Device) -> Result<Model> {
        let hidden = spec.hidden_size;
        let embedding = self.matrix(
            "model.embed_tokens.weight",
            (spec.vocab_size, hidden),
            None,
            device,
        )?;
        let layers = (0..spec.layers)
            .map(|i| self.layer(&spec, i, device))
            .collect::<Result<_>>()?;
        let final_norm = self.vector("model.norm.weight", hidden, None, device)?;
        let tied = spec.tied_embeddings || !self.contains("lm_head.weight");
        let head = match tied {
            true => embedding.clone(),
            false => self.matrix("lm_head.weight", (spec.vocab_size, hidden), None, device)?,
        };
        let spec = ModelSpec {
            tied_embeddings: tied,
            ..spec
        };
        Ok(Model {
            spec,
            embedding,
            layers,
            final_norm,
            head,
            device: device.clone(),
        })
    }

    fn layer(&mut self, spec: &ModelSpec, layer: usize, device: &Device) -> Result<Layer> {
        let norm = |file: &mut Self, name: &str| {
            file.vector(
                &format!("model.layers.{layer}.{name}.weight"),
                spec.hidden_size,
                None,
                device,
            )
        };
        let (input_norm, post_attention_norm) = (
            norm(self, "input_layernorm")?,
            norm(self, "post_attention_layernorm")?,
        );
        let mut linear = |projection: Projection| -> Result<Linear> {
            let (inner, out) = spec.projection_shape(projection);
            let name = format!(
                "model.layers.{layer}.{}.{}",
                projection.parent(),
                projection.name()
            );
            let heads = self.permuted_heads(spec, projection);
            let weight = self.matrix(&format!("{name}.weight"), (out, inner), heads, device)?;
            let has_bias = spec.qkv_bias
                && matches!(projection, Projection::Q | Projection::K | Projection::V);
            let bias = has_bias
                .then(|| self.vector(&format!("{name}.bias"), out, heads, device))
                .transpose()?;
            Ok(Linear::new(layer, projection, weight, bias))
        };
        let attention = [
            linear(Projection::Q)?,
            linear(Projection::K)?,
            linear(Projection::V)?,
            linear(Projection::O)?,
        ];
        let mlp = [
            linear(Projection::Gate)?,
            linear(Projection::Up)?,
            linear(Projection::Down)?,
        ];
        Ok(Layer {
            input_norm,
            attention,
            post_attention_norm,
            mlp,
        })
    }

    /// Heads of q and k in a llama-architecture GGUF, whose rows are permuted; `None` elsewhere.
    fn permuted_heads(&self, spec: &ModelSpec, projection: Projection) -> Option<usize> {
        let permuted = matches!(self, WeightFile::Gguf { .. }) && spec.architecture == "llama";
        match projection {
            Projection::Q if permuted => Some(spec.heads),
            Projection::K if permuted => Some(spec.kv_heads),
            _ => None,
        }
    }
}

/// The GGUF name of a Hugging Face tensor name.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    const PARTS: [(&str, &str); 10] = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ];
    PARTS
        .iter()
        .fold(name.to_string(), |name, (hf, gguf)| name.replace(hf, gguf))
}

/// For each row of the Hugging Face layout, the row of a llama GGUF that holds it.
///
/// The converter interleaves the two halves of every head (2i, 2i+1) for GGML's rotary layout;
/// adapters and rotate-half want them apart (i, i + head_dim/2).
fn row_order(rows: usize, heads: usize) -> Vec<u32> {
    let d = rows / heads;
    (0..rows)
        .map(|row| {
            let (head, within) = (row / d, row % d);
            let (half, i) = (within / (d / 2), within % (d / 2));
            (head * d + 2 * i + half) as u32
        })
        .collect()
}

/// Undoes the row permutation on the stored blocks themselves: nothing is requantised.
fn unpermute(stored: &QTensor, heads: usize, device: &Device) -> candle_core::Result<QTensor> {
    let (rows, _) = stored.shape().dims2()?;
    let data = stored.data()?;
    let row_bytes = data.len() / rows;
    let mut reordered = Vec::with_capacity(data.len());
    for source in row_order(rows, heads) {
        reordered.extend_from_slice(&data[source as usize * row_bytes..][..row_bytes]);
    }
    let storage =
        candle_core::quantized::QStorage::from_data(reordered.into(), device, stored.dtype())?;
    QTensor::new(storage, stored.shape().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_names_follow_the_converter() {
        for (hf, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.7.self_attn.q_proj.bias", "blk.7.attn_q.bias"),
            (
                "model.layers.0.mlp.down_proj.weight",
                "blk.0.ffn_down.weight",
            ),
            (
                "model.layers.0.post_attention_layernorm.weight",
                "blk.0.ffn_norm.weight",
            ),
            (
                "model.layers.0.input_layernorm.weight",
                "blk.0.attn_norm.weight",
            ),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(gguf_name(hf), gguf);
        }
    }

    #[test]
    fn row_order_separates_the_interleaved_halves_of_each_head() {
        assert_eq!(row_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(row_order(6, 1), [0, 2, 4, 1, 3, 5]);
    }
}
