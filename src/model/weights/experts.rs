//! Experts as files store them: a matrix each, or those of all experts of a layer as one tensor of
//! three dimensions.

use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use super::{Target, WeightFile};
use crate::decoder::StoredMatrix;
use crate::error::Result;
use crate::experts::Experts;
use crate::spec::Mixture;

/// Gate, up and down, as Hugging Face names them.
const MAPS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// Gate and up of all experts as one tensor.
const FUSED: &str = "gate_up_proj";

impl WeightFile {
    /// The experts of a layer of this width.
    pub(super) fn experts<W>(
        &mut self,
        hidden: usize,
        layer: usize,
        mixture: &Mixture,
        to: &mut Target<W>,
    ) -> Result<Experts<W>> {
        let place = format!("model.layers.{layer}.mlp");
        let router = self.router(&format!("{place}.gate.weight"), hidden, mixture, to)?;
        let place = format!("{place}.experts");
        let stored = if self.contains(&format!("{place}.{FUSED}")) {
            self.fused_experts(&place, hidden, mixture, to)?
        } else {
            self.experts_by_map(&place, hidden, mixture, to)?
        };
        let [gates, ups, downs] = stored;
        let triples = gates.into_iter().zip(ups).zip(downs);
        Ok(Experts {
            router,
            experts: triples.map(|((gate, up), down)| [gate, up, down]).collect(),
            used: mixture.used,
            normalised: mixture.normalised,
        })
    }

    /// The router, in f32 whatever the file has.
    fn router<W>(
        &mut self,
        name: &str,
        hidden: usize,
        mixture: &Mixture,
        to: &mut Target<W>,
    ) -> Result<W> {
        let tensor = match self.stored(name)? {
            Some(stored) => stored.dequantize(&Device::Cpu)?,
            None => self.floats(name)?.to_dtype(DType::F32)?,
        };
        self.check(name, tensor.dims(), &[mixture.experts, hidden])?;
        (to.matrix)(StoredMatrix::Floats(tensor)).map_err(|e| self.wrong(name, e))
    }

    /// Gates, ups and downs: a tensor of each for all experts (GGUF), or a matrix for each expert.
    fn experts_by_map<W>(
        &mut self,
        place: &str,
        hidden: usize,
        mixture: &Mixture,
        to: &mut Target<W>,
    ) -> Result<[Vec<W>; 3]> {
        let mut all = [vec![], vec![], vec![]];
        for (map, into) in MAPS.into_iter().zip(&mut all) {
            let (out, inner) = match map {
                "down_proj" => (hidden, mixture.inner),
                _ => (mixture.inner, hidden),
            };
            let together = format!("{place}.{map}.weight");
            if let Some(blocks) = self.mapped(&together) {
                self.check(&together, blocks.dims(), &[mixture.experts, out, inner])?;
                for expert in 0..mixture.experts {
                    let matrix = blocks
                        .rows(expert * out..(expert + 1) * out)
                        .and_then(|rows| (to.matrix)(StoredMatrix::Mapped(rows)));
                    into.push(matrix.map_err(|e| self.wrong(&together, e))?);
                }
                continue;
            }
            let stored = match self.is_gguf() {
                true => self.stored(&together)?,
                false => None,
            };
            let Some(stored) = stored else {
                for expert in 0..mixture.experts {
                    let name = format!("{place}.{expert}.{map}.weight");
                    let matrix = self.matrix(&name, (out, inner), None)?;
                    into.push((to.matrix)(matrix).map_err(|e| self.wrong(&name, e))?);
                }
                continue;
            };
            let expected = [mixture.experts, out, inner];
            self.check(&together, stored.shape().dims(), &expected)?;
            for expert in 0..mixture.experts {
                let matrix = part(&stored, expert, (out, inner))
                    .map(|part| StoredMatrix::Quantized(Arc::new(part)))
                    .and_then(|part| (to.matrix)(part));
                into.push(matrix.map_err(|e| self.wrong(&together, e))?);
            }
        }
        Ok(all)
    }

    /// As newer libraries keep them in memory: gate above up in one tensor, down in another.
    fn fused_experts<W>(
        &mut self,
        place: &str,
        hidden: usize,
        mixture: &Mixture,
        to: &mut Target<W>,
    ) -> Result<[Vec<W>; 3]> {
        let (count, inner) = (mixture.experts, mixture.inner);
        let names = [format!("{place}.{FUSED}"), format!("{place}.down_proj")];
        let shapes = [[count, 2 * inner, hidden], [count, hidden, inner]];
        let mut all = [vec![], vec![], vec![]];
        let [gates, ups, downs] = &mut all;
        for (name, shape) in names.iter().zip(shapes) {
            if !self.contains(name) {
                return Err(self.wrong(name, "is missing"));
            }
            let tensor = self.floats(name)?;
            self.check(name, tensor.dims(), &shape)?;
            for expert in 0..count {
                let whole = tensor.get(expert)?;
                match name.ends_with(FUSED) {
                    true => {
                        gates.push(self.part_of(name, &whole, 0..inner, to)?);
                        ups.push(self.part_of(name, &whole, inner..2 * inner, to)?);
                    }
                    false => downs.push(self.part_of(name, &whole, 0..hidden, to)?),
                }
            }
        }
        Ok(all)
    }

    /// Some rows of a matrix of floats, in a form of the target.
    fn part_of<W>(
        &self,
        name: &str,
        whole: &Tensor,
        rows: std::ops::Range<usize>,
        to: &mut Target<W>,
    ) -> Result<W> {
        let part = whole.narrow(0, rows.start, rows.len())?;
        let stored = self.in_fewer_bits(name, part.force_contiguous()?, false)?;
        (to.matrix)(stored).map_err(|e| self.wrong(name, e))
    }
}

/// The matrix of one expert of a tensor of all, as it is stored.
fn part(
    stored: &QTensor,
    expert: usize,
    (out, inner): (usize, usize),
) -> candle_core::Result<QTensor> {
    let block = stored.dtype().block_size();
    if !inner.is_multiple_of(block) {
        candle_core::bail!("rows of {inner} elements do not divide into blocks of {block}");
    }
    let bytes = out * inner / block * stored.dtype().type_size();
    let data = stored.data()?;
    let Some(data) = data.get(expert * bytes..(expert + 1) * bytes) else {
        candle_core::bail!("{} bytes do not hold expert {expert}", data.len());
    };
    let storage = QStorage::from_data(data.to_vec().into(), &Device::Cpu, stored.dtype())?;
    QTensor::new(storage, (out, inner))
}
