//! Weights laid out for the kernels: panels of sixteen output rows side by side.
//!
//! A panel keeps the same four input elements of its sixteen rows in one cache line, so one
//! instruction multiplies them with four activations, and a panel is read from front to back. The
//! file's integers, scales and factors are kept, so packing loses nothing.

mod dense;
mod mapped;
mod unit;

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};

pub(crate) use self::mapped::Unpacked;
use super::aligned::AlignedBytes;
use super::stored::Panels;
use realign_model::blocks::{Format, UNIT, Unit, gain_for, read_unit, scale_bound};
pub(crate) use unit::{BlockLayout, UnitBytes, element, high_place};

/// Output rows in a panel.
pub(crate) const PANEL: usize = 16;

/// How the elements of a panel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Blocks of one unit of 32 input elements, or of eight: see `unit`.
    Integer(Format),
    /// For every input element, its sixteen weights.
    F32,
    /// bfloat16; the sixteen pairs of two input elements lie together.
    Bf16,
    /// As F32, in IEEE half precision.
    F16,
}

impl Encoding {
    /// Bytes of one panel of `columns` input elements.
    pub(crate) fn panel_bytes(self, columns: usize) -> usize {
        match self {
            Encoding::Integer(format) => {
                let block = BlockLayout::of(format);
                columns / UNIT / block.units * block.bytes
            }
            Encoding::F32 => columns * PANEL * 4,
            Encoding::Bf16 => columns.next_multiple_of(BF16_STEP) * PANEL * 2,
            Encoding::F16 => columns * PANEL * 2,
        }
    }
}

/// Input elements whose weights lie together in panels of bfloat16.
const BF16_STEP: usize = 2;

/// Bytes of one vector of sixteen scales.
pub(crate) const SCALE_BYTES: usize = 2 * PANEL;

/// A weight of shape (out, in), packed. Immutable; clones share it.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// Output rows.
    pub(crate) out: usize,
    /// Input columns.
    pub(crate) columns: usize,
    /// How a panel is stored.
    pub(crate) encoding: Encoding,
    /// Factor on every product: keeps the stored scales inside f16's normal range.
    pub(crate) gain: f32,
    data: Arc<Panels>,
}

/// Bytes past the last panel that a kernel may prefetch.
pub(crate) const SLACK: usize = 4096;

impl PackedWeight {
    /// Packs a quantised tensor on the CPU.
    ///
    /// # Errors
    /// If the tensor is not a matrix, or of a type that cannot be read.
    pub(crate) fn from_quantized(weight: &QTensor) -> Result<Self> {
        let (out, columns) = weight.shape().dims2()?;
        let dtype = weight.dtype();
        let Some(format) = Format::of(dtype).filter(|_| columns.is_multiple_of(UNIT)) else {
            return Self::from_plain(weight);
        };
        let data = weight.data()?;
        let row_bytes = columns / dtype.block_size() * dtype.type_size();
        if data.len() != out * row_bytes {
            bail!(
                "{} bytes do not hold ({out}, {columns}) of {dtype:?}",
                data.len()
            );
        }
        let unit = |row: usize, index: usize| {
            read_unit(dtype, &data[row * row_bytes..][..row_bytes], index)
        };
        let gain = match format.factored {
            true => 1.0,
            false => {
                use rayon::prelude::*;
                let blocks = data.par_chunks_exact(dtype.type_size());
                let bounds = blocks.map(|block| scale_bound(dtype, block));
                gain_for(bounds.reduce(|| 0f32, f32::max))
            }
        };
        Ok(Self::pack_units((out, columns), format, gain, unit))
    }

    /// Packs a tensor of a GGUF file that is not in integers: f32, bf16 and f16 as they are,
    /// what is left (integers in rows that are no multiple of a unit) as f32.
    fn from_plain(weight: &QTensor) -> Result<Self> {
        let shape = weight.shape().dims2()?;
        let (encoding, data) = match weight.dtype() {
            GgmlDType::BF16 => {
                let data = weight.data()?;
                let values = data.as_chunks().0;
                (
                    Encoding::Bf16,
                    dense::pack::<_, 2, BF16_STEP>(values, shape.1, |b| b),
                )
            }
            GgmlDType::F16 => {
                let data = weight.data()?;
                let values = data.as_chunks().0;
                (
                    Encoding::F16,
                    dense::pack::<_, 2, 1>(values, shape.1, |b| b),
                )
            }
            _ => return Self::from_dense(&weight.dequantize(&Device::Cpu)?),
        };
        Self::from_floats(shape, encoding, data)
    }

    fn from_floats(
        (out, columns): (usize, usize),
        encoding: Encoding,
        data: AlignedBytes,
    ) -> Result<Self> {
        let panels = out.div_ceil(PANEL);
        if data.len() != panels * encoding.panel_bytes(columns) + SLACK {
            bail!(
                "{} bytes do not hold ({out}, {columns}) in {encoding:?}",
                data.len()
            );
        }
        Ok(Self {
            out,
            columns,
            encoding,
            gain: 1.0,
            data: Arc::new(Panels::Own(data)),
        })
    }

    fn pack_units(
        (out, columns): (usize, usize),
        format: Format,
        gain: f32,
        unit: impl Fn(usize, usize) -> Unit + Sync,
    ) -> Self {
        use rayon::prelude::*;
        let encoding = Encoding::Integer(format);
        let panel_bytes = encoding.panel_bytes(columns);
        let panels = out.div_ceil(PANEL);
        let block = BlockLayout::of(format);
        let mut data = AlignedBytes::zeroed(panels * panel_bytes + SLACK);
        data[..panels * panel_bytes]
            .par_chunks_exact_mut(panel_bytes.max(1))
            .enumerate()
            .for_each(|(panel, bytes)| {
                for lane in 0..PANEL.min(out - panel * PANEL) {
                    for (first, bytes) in bytes.chunks_exact_mut(block.bytes).enumerate() {
                        for index in 0..block.units {
                            let u = unit(panel * PANEL + lane, first * block.units + index);
                            unit::write(format, (&u, index), gain, lane, bytes);
                        }
                    }
                }
            });
        Self {
            out,
            columns,
            encoding,
            gain,
            data: Arc::new(Panels::Own(data)),
        }
    }

    /// Packs an f32, bf16 or f16 matrix as it is; other types as f32.
    ///
    /// # Errors
    /// If the tensor is not a matrix on the CPU.
    pub fn from_dense(weight: &Tensor) -> Result<Self> {
        let (out, columns) = weight.dims2()?;
        let weight = match weight.dtype() {
            DType::F32 | DType::BF16 | DType::F16 => weight.contiguous()?,
            _ => weight.to_dtype(DType::F32)?.contiguous()?,
        };
        let (storage, layout) = weight.storage_and_layout();
        let start = layout.start_offset();
        let (encoding, data) = match &*storage {
            Storage::Cpu(CpuStorage::F32(v)) => {
                let v = &v[start..start + out * columns];
                (
                    Encoding::F32,
                    dense::pack::<_, 4, 1>(v, columns, f32::to_le_bytes),
                )
            }
            Storage::Cpu(CpuStorage::BF16(v)) => {
                let v = &v[start..start + out * columns];
                (
                    Encoding::Bf16,
                    dense::pack::<_, 2, BF16_STEP>(v, columns, bf16::to_le_bytes),
                )
            }
            Storage::Cpu(CpuStorage::F16(v)) => {
                let v = &v[start..start + out * columns];
                (
                    Encoding::F16,
                    dense::pack::<_, 2, 1>(v, columns, f16::to_le_bytes),
                )
            }
            _ => bail!("only matrices on the CPU can be packed"),
        };
        Self::from_floats((out, columns), encoding, data)
    }

    /// Packs a factor of an adapter as f32, or as f16 with its largest element near 2¹⁴: small
    /// factors then keep f16's precision.
    ///
    /// # Errors
    /// If the tensor is not a matrix on the CPU.
    pub(crate) fn from_factor(factor: &Tensor, dtype: DType) -> Result<Self> {
        if dtype != DType::F16 {
            return Self::from_dense(&factor.to_dtype(dtype)?);
        }
        let largest = factor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        let gain = gain_for(largest);
        let scaled = (factor / f64::from(gain))?.to_dtype(DType::F16)?;
        Ok(Self {
            gain,
            ..Self::from_dense(&scaled)?
        })
    }

    /// Panels, the last one padded with zero rows.
    pub(crate) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL)
    }

    /// The bytes of panel `index`.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        let bytes = self.encoding.panel_bytes(self.columns);
        &self.data[index * bytes..(index + 1) * bytes]
    }

    /// All bytes, the slack after the last panel among them.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.data
    }

    /// A weight of which `data` is what [`PackedWeight::raw`] gave.
    ///
    /// # Errors
    /// If it is not as long as such a weight.
    pub(crate) fn from_raw(
        (out, columns): (usize, usize),
        (encoding, gain): (Encoding, f32),
        data: Panels,
    ) -> Result<Self> {
        let panels = out.div_ceil(PANEL);
        let bytes = panels.checked_mul(encoding.panel_bytes(columns));
        if bytes.and_then(|bytes| bytes.checked_add(SLACK)) != Some(data.len()) {
            bail!(
                "{} bytes do not hold ({out}, {columns}) in {encoding:?}",
                data.len()
            );
        }
        Ok(Self {
            out,
            columns,
            encoding,
            gain,
            data: Arc::new(data),
        })
    }

    /// Bytes that one pass over the weight reads.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() - SLACK
    }

    /// Writes row `index` to `into` (in) as floats.
    pub(crate) fn read_row(&self, index: usize, into: &mut [f32]) {
        let (panel, lane) = (self.panel(index / PANEL), index % PANEL);
        match self.encoding {
            Encoding::Integer(format) => {
                let block = BlockLayout::of(format);
                for (index, into) in into.chunks_exact_mut(UNIT).enumerate() {
                    unit::read(format, block.unit(panel, index), self.gain, lane, into);
                }
            }
            Encoding::F32 => dense::read::<4, 1>(panel, lane, into, f32::from_le_bytes),
            Encoding::Bf16 => {
                let value = |b| bf16::from_le_bytes(b).to_f32();
                dense::read::<2, BF16_STEP>(panel, lane, into, value);
            }
            Encoding::F16 => {
                let value = |b| f16::from_le_bytes(b).to_f32() * self.gain;
                dense::read::<2, 1>(panel, lane, into, value);
            }
        }
    }

    /// `x` (rows, in) times the transposed weight, (rows, out), as a candle tensor: for the paths
    /// that run a packed model outside the executor. No gradient.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.dequantize()?.t()?)
    }

    /// The weight as an f32 tensor, (out, in).
    pub(crate) fn dequantize(&self) -> Result<Tensor> {
        use rayon::prelude::*;
        let mut values = vec![0f32; self.out * self.columns];
        values
            .par_chunks_exact_mut(self.columns.max(1))
            .enumerate()
            .for_each(|(row, into)| self.read_row(row, into));
        Tensor::from_vec(values, (self.out, self.columns), &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType::*;

    use super::*;

    /// Largest difference between a packed weight's floats and the original's.
    fn distance(packed: &PackedWeight, expected: &Tensor) -> Result<f32> {
        (packed.dequantize()? - expected)?
            .abs()?
            .flatten_all()?
            .max(0)?
            .to_scalar()
    }

    #[test]
    fn packing_keeps_every_quantised_value() -> Result<()> {
        for scale in [1.0, 1e-6, 1e4] {
            let dense = (Tensor::randn(0f32, 1.0, (37, 512), &Device::Cpu)? * scale)?;
            for (dtype, bytes) in [
                (Q4_0, 18.0),
                (Q4_1, 20.0),
                (Q5_0, 22.0),
                (Q5_1, 24.0),
                (Q8_0, 34.0),
                (Q2K, 20.5),
                (Q3K, 18.5),
                (Q4K, 18.5),
                (Q5K, 22.5),
                (Q6K, 26.5),
            ] {
                let weight = QTensor::quantize(&dense, dtype)?;
                let exact = weight.dequantize(&Device::Cpu)?;
                let packed = PackedWeight::from_quantized(&weight)?;
                let unit = (48 * 512 / UNIT) as f64 * bytes;
                assert_eq!(packed.bytes() as f64, unit, "{dtype:?}");
                let off = f64::from(distance(&packed, &exact)?) / scale;
                assert!(off <= 1e-6, "{dtype:?} at {scale}: off by {off}");
            }
        }
        Ok(())
    }

    #[test]
    fn floats_are_packed_as_they_are_and_in_no_more_bytes() -> Result<()> {
        for (out, columns) in [(21, 50), (16, 33), (1, 1), (40, 70)] {
            let dense = Tensor::randn(0f32, 1.0, (out, columns), &Device::Cpu)?;
            for (dtype, of_file, size) in [
                (DType::F32, F32, 4),
                (DType::BF16, BF16, 2),
                (DType::F16, F16, 2),
            ] {
                let stored = dense.to_dtype(dtype)?;
                let exact = stored.to_dtype(DType::F32)?;
                for packed in [
                    PackedWeight::from_dense(&stored)?,
                    PackedWeight::from_quantized(&QTensor::quantize(&dense, of_file)?)?,
                ] {
                    assert_eq!(
                        distance(&packed, &exact)?,
                        0.0,
                        "{dtype:?}, ({out}, {columns})"
                    );
                    let whole = packed.panels() * PANEL * columns.next_multiple_of(2) * size;
                    assert!(
                        packed.bytes() <= whole,
                        "{dtype:?}: {} bytes",
                        packed.bytes()
                    );
                }
            }
        }
        Ok(())
    }
}
