//! Reading weights from GGUF and safetensors under one set of names (Hugging Face's).

mod experts;
pub(super) mod merge;
mod names;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};

use self::names::{EMBEDDING, FINAL_NORM, HEAD, LayerNorms, Names};
use super::decoder::{Decoder, Layer, Mlp, StoredMatrix};
use super::error::{ModelError, Result};
use super::linear::Linear;
use super::lora::Projection;
use super::mapped::{Blocks, MappedFile};
use super::quantise::Quantisation;
use super::shards::Shards;
use super::spec::ModelSpec;

/// Weights by their Hugging Face names.
pub(crate) struct WeightFile {
    /// The file, or the directory of several, for errors.
    path: PathBuf,
    source: Source,
    names: Names,
    quantisation: Option<Quantisation>,
}

/// Rows of a matrix that holds several maps.
struct Fused {
    /// The matrix.
    name: String,
    /// The first row of the map.
    first: usize,
    /// Rows of all maps.
    all: usize,
}

/// Where weights go: the matrices in the form that a backend keeps, the vectors to its device.
pub(crate) struct Target<'a, W> {
    /// Where norms and biases are put.
    pub(crate) device: &'a Device,
    /// Makes a matrix of the file one of the backend's.
    pub(crate) matrix: &'a mut dyn FnMut(StoredMatrix) -> candle_core::Result<W>,
}

enum Source {
    Gguf {
        content: gguf_file::Content,
        reader: File,
        map: Option<MappedFile>,
    },
    Safetensors(Shards),
}

impl WeightFile {
    /// A GGUF file with its header read.
    pub(crate) fn gguf(
        path: &Path,
        content: gguf_file::Content,
        reader: File,
        spec: &ModelSpec,
    ) -> Self {
        Self {
            path: path.into(),
            source: Source::Gguf {
                map: MappedFile::new(&reader)
                    .inspect_err(|error| {
                        tracing::debug!(%error, "the model's file is read instead of mapped");
                    })
                    .ok(),
                content,
                reader,
            },
            names: Names::gguf(spec.variant.output_norms),
            quantisation: None,
        }
    }

    /// One or more mapped safetensors files.
    pub(crate) fn safetensors(path: &Path, tensors: Shards) -> Self {
        let names = Names::safetensors(|name| tensors.contains(name));
        Self {
            path: path.into(),
            source: Source::Safetensors(tensors),
            names,
            quantisation: None,
        }
    }

    /// The same, matrices of floats quantised.
    pub(crate) fn quantised(self, quantisation: Option<Quantisation>) -> Self {
        Self {
            quantisation,
            ..self
        }
    }

    /// A matrix of floats as it is handed on. `table`: of embeddings, or the head.
    fn in_fewer_bits(&self, name: &str, floats: Tensor, table: bool) -> Result<StoredMatrix> {
        let Some(quantisation) = self.quantisation else {
            return Ok(StoredMatrix::Floats(floats));
        };
        let quantised = quantisation.of(&floats, table);
        Ok(match quantised.map_err(|e| self.wrong(name, e))? {
            Some(matrix) => StoredMatrix::Quantized(Arc::new(matrix)),
            None => StoredMatrix::Floats(floats),
        })
    }

    fn wrong(&self, name: &str, what: impl ToString) -> ModelError {
        ModelError::Tensor {
            path: self.path.clone(),
            tensor: self.names.stored(name),
            what: what.to_string(),
        }
    }

    fn is_gguf(&self) -> bool {
        matches!(self.source, Source::Gguf { .. })
    }

    fn contains(&self, name: &str) -> bool {
        let name = self.names.stored(name);
        match &self.source {
            Source::Gguf { content, .. } => content.tensor_infos.contains_key(&name),
            Source::Safetensors(tensors) => tensors.contains(&name),
        }
    }

    /// A tensor as a GGUF file stores it; `None` if this is no such file.
    fn stored(&mut self, name: &str) -> Result<Option<QTensor>> {
        if !self.contains(name) {
            return Err(self.wrong(name, "is missing"));
        }
        let Source::Gguf {
            content, reader, ..
        } = &mut self.source
        else {
            return Ok(None);
        };
        let tensor = content.tensor(reader, &self.names.stored(name), &Device::Cpu);
        tensor.map(Some).map_err(|e| self.wrong(name, e))
    }

    /// A tensor where its file is mapped; `None` if it has to be read, as floats that are to be
    /// quantised.
    fn mapped(&self, name: &str) -> Option<Blocks> {
        match &self.source {
            Source::Safetensors(tensors) if self.quantisation.is_none() => {
                tensors.matrix(&self.names.stored(name))
            }
            Source::Gguf {
                content,
                map: Some(map),
                ..
            } => map.blocks(content, &self.names.stored(name)),
            _ => None,
        }
    }

    /// A matrix of shape (out, in). `heads` un-permutes the rows of a llama GGUF's q and k.
    fn matrix(
        &mut self,
        name: &str,
        (out, inner): (usize, usize),
        heads: Option<usize>,
    ) -> Result<StoredMatrix> {
        if let Some(blocks) = self.mapped(name) {
            self.check(name, blocks.dims(), &[out, inner])?;
            let Some(heads) = heads else {
                return Ok(StoredMatrix::Mapped(blocks));
            };
            let ordered = blocks.in_order(row_order(out, heads));
            return ordered
                .map(StoredMatrix::Mapped)
                .map_err(|e| self.wrong(name, e));
        }
        let Some(mut stored) = self.stored(name)? else {
            let floats = self.floats(name)?;
            self.check(name, floats.dims(), &[out, inner])?;
            let table = [EMBEDDING, HEAD].contains(&name);
            return self.in_fewer_bits(name, floats, table);
        };
        self.check(name, stored.shape().dims(), &[out, inner])?;
        if let Some(heads) = heads {
            stored = unpermute(&stored, heads).map_err(|e| self.wrong(name, e))?;
        }
        Ok(StoredMatrix::Quantized(Arc::new(stored)))
    }

    /// A vector of `len` elements in f32.
    fn vector(&mut self, name: &str, len: usize, heads: Option<usize>) -> Result<Tensor> {
        let tensor = match self.stored(name)? {
            Some(stored) => stored.dequantize(&Device::Cpu)?,
            None => self.floats(name)?.to_dtype(DType::F32)?,
        };
        self.check(name, tensor.dims(), &[len])?;
        match heads {
            Some(heads) => {
                let order = Tensor::new(row_order(len, heads), &Device::Cpu)?;
                Ok(tensor.index_select(&order, 0)?)
            }
            None => Ok(tensor),
        }
    }

    /// A tensor of a safetensors file in its own type.
    fn floats(&self, name: &str) -> Result<Tensor> {
        let Source::Safetensors(tensors) = &self.source else {
            return Err(self.wrong(name, "not a safetensors file"));
        };
        let stored = self.names.stored(name);
        let tensor = tensors.load(&stored).map_err(|e| self.wrong(name, e))?;
        if !tensor.dtype().is_float() {
            return Err(self.wrong(
                name,
                format!(
                    "has type {:?}; f32, f16 and bf16 are supported",
                    tensor.dtype()
                ),
            ));
        }
        Ok(tensor)
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

    /// Loads every tensor that the spec asks for and checks its shape. Matrices are handed to the
    /// target one by one, the two tables first: they are the largest, and for a moment such a matrix
    /// is there both as the file has it and as the target keeps it.
    pub(crate) fn load<W: Clone>(
        mut self,
        spec: ModelSpec,
        to: &mut Target<W>,
    ) -> Result<Decoder<W>> {
        let hidden = spec.hidden_size;
        let table = (spec.vocab_size, hidden);
        let embedding = self.table(EMBEDDING, table, to)?;
        let tied = spec.tied_embeddings || !self.contains(HEAD);
        let head = match tied {
            true => embedding.clone(),
            false => self.table(HEAD, table, to)?,
        };
        let layers = (0..spec.layers)
            .map(|i| self.layer(&spec, i, to))
            .collect::<Result<_>>()?;
        let final_norm = self.norm(&spec, FINAL_NORM, hidden, to.device)?;
        let spec = ModelSpec {
            tied_embeddings: tied,
            ..spec
        };
        Ok(Decoder {
            spec,
            embedding,
            layers,
            final_norm,
            head,
        })
    }

    fn table<W>(&mut self, name: &str, shape: (usize, usize), to: &mut Target<W>) -> Result<W> {
        let stored = self.matrix(name, shape, None)?;
        (to.matrix)(stored).map_err(|e| self.wrong(name, e))
    }

    fn layer<W>(&mut self, spec: &ModelSpec, layer: usize, to: &mut Target<W>) -> Result<Layer<W>> {
        let norms = LayerNorms::of(spec);
        let mut norm = |name: &str, width: usize| {
            let name = format!("model.layers.{layer}.{name}.weight");
            self.norm(spec, &name, width, to.device)
        };
        let hidden = spec.hidden_size;
        let (attention_norm, mlp_norm) = (norm(norms.attention, hidden)?, norm(norms.mlp, hidden)?);
        let output_norms = match norms.outputs {
            Some([attention, mlp]) => Some([norm(attention, hidden)?, norm(mlp, hidden)?]),
            None => None,
        };
        let qk_norms = match spec.variant.qk_norm {
            true => Some([
                norm("self_attn.q_norm", spec.head_dim)?,
                norm("self_attn.k_norm", spec.head_dim)?,
            ]),
            false => None,
        };
        let mut linear = |projection| self.linear(spec, layer, projection, to);
        let attention = [
            linear(Projection::Q)?,
            linear(Projection::K)?,
            linear(Projection::V)?,
            linear(Projection::O)?,
        ];
        let mlp = match spec.mixture(layer) {
            None => Mlp::Dense([
                linear(Projection::Gate)?,
                linear(Projection::Up)?,
                linear(Projection::Down)?,
            ]),
            Some(mixture) => Mlp::Experts(self.experts(hidden, layer, mixture, to)?),
        };
        Ok(Layer {
            attention_norm,
            attention,
            qk_norms,
            mlp_norm,
            mlp,
            output_norms,
        })
    }

    fn linear<W>(
        &mut self,
        spec: &ModelSpec,
        layer: usize,
        projection: Projection,
        to: &mut Target<W>,
    ) -> Result<Linear<W>> {
        let (inner, out) = spec.projection_shape(projection);
        let name = format!(
            "model.layers.{layer}.{}.{}",
            projection.parent(),
            projection.name()
        );
        let heads = self.permuted_heads(spec, projection);
        let weight = format!("{name}.weight");
        let stored = match self.fused(spec, layer, projection) {
            Some(fused) => self.rows(&fused, out, inner)?,
            None => self.matrix(&weight, (out, inner), heads)?,
        };
        let matrix = (to.matrix)(stored).map_err(|e| self.wrong(&weight, e))?;
        let bias = match spec.has_bias(projection) {
            true => {
                let bias = self.vector(&format!("{name}.bias"), out, heads)?;
                Some(bias.to_device(to.device)?)
            }
            false => None,
        };
        Ok(Linear::new(layer, projection, matrix, bias))
    }

    /// The matrix of several maps of which this one is a part, if the file stores it so (Phi).
    fn fused(&self, spec: &ModelSpec, layer: usize, projection: Projection) -> Option<Fused> {
        let (group, members): (&str, &[Projection]) = match projection {
            Projection::Q | Projection::K | Projection::V => {
                ("qkv_proj", &[Projection::Q, Projection::K, Projection::V])
            }
            Projection::Gate | Projection::Up => {
                ("gate_up_proj", &[Projection::Gate, Projection::Up])
            }
            Projection::O | Projection::Down => return None,
        };
        let place = format!("model.layers.{layer}.{}", projection.parent());
        let whole = format!("{place}.{group}.weight");
        let alone = format!("{place}.{}.weight", members[0].name());
        if self.contains(&alone) || !self.contains(&whole) {
            return None;
        }
        let rows = |members: &[Projection]| {
            let widths = members
                .iter()
                .map(|member| spec.projection_shape(*member).1);
            widths.sum::<usize>()
        };
        let before = members.iter().position(|member| *member == projection);
        Some(Fused {
            name: whole,
            first: rows(&members[..before.unwrap_or(0)]),
            all: rows(members),
        })
    }

    /// `out` rows of a matrix of several maps.
    fn rows(&mut self, fused: &Fused, out: usize, inner: usize) -> Result<StoredMatrix> {
        let whole = self.matrix(&fused.name, (fused.all, inner), None)?;
        let part = match whole {
            StoredMatrix::Floats(floats) => floats
                .narrow(0, fused.first, out)
                .and_then(|part| part.contiguous())
                .map(StoredMatrix::Floats),
            StoredMatrix::Mapped(whole) => whole
                .rows(fused.first..fused.first + out)
                .map(StoredMatrix::Mapped),
            StoredMatrix::Quantized(whole) => {
                let rows = (fused.first..fused.first + out).map(|row| row as u32);
                select_rows(&whole, rows).map(|part| StoredMatrix::Quantized(Arc::new(part)))
            }
        };
        part.map_err(|e| self.wrong(&fused.name, e))
    }

    /// The scale of a norm, with the family's offset.
    fn norm(
        &mut self,
        spec: &ModelSpec,
        name: &str,
        width: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let scale = self.vector(name, width, None)?;
        let scale = match spec.variant.norm_offset {
            true => (scale + 1.0)?,
            false => scale,
        };
        // Logits are linear in what the last norm gives.
        let scale = match spec.variant.logit_divisor {
            Some(divisor) if name == FINAL_NORM => (scale / divisor)?,
            _ => scale,
        };
        Ok(scale.to_device(device)?)
    }

    /// Heads of q and k in a GGUF of the llama family, whose rows are permuted; `None` elsewhere.
    fn permuted_heads(&self, spec: &ModelSpec, projection: Projection) -> Option<usize> {
        let permuted = self.is_gguf() && names::is_permuted(&spec.architecture);
        match projection {
            Projection::Q if permuted => Some(spec.heads),
            Projection::K if permuted => Some(spec.kv_heads),
            _ => None,
        }
    }
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
fn unpermute(stored: &QTensor, heads: usize) -> candle_core::Result<QTensor> {
    let (rows, _) = stored.shape().dims2()?;
    select_rows(stored, row_order(rows, heads).into_iter())
}

/// These rows of a stored matrix, in this order, as they are stored.
fn select_rows(
    stored: &QTensor,
    wanted: impl ExactSizeIterator<Item = u32>,
) -> candle_core::Result<QTensor> {
    let (rows, inner) = stored.shape().dims2()?;
    let data = stored.data()?;
    let (row_bytes, count) = (data.len() / rows, wanted.len());
    let mut reordered = Vec::with_capacity(count * row_bytes);
    for source in wanted {
        reordered.extend_from_slice(&data[source as usize * row_bytes..][..row_bytes]);
    }
    let storage = candle_core::quantized::QStorage::from_data(
        reordered.into(),
        &Device::Cpu,
        stored.dtype(),
    )?;
    QTensor::new(storage, (count, inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_order_separates_the_interleaved_halves_of_each_head() {
        assert_eq!(row_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(row_order(6, 1), [0, 2, 4, 1, 3, 5]);
    }
}
