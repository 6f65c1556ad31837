//! Weights that a device keeps in their GGUF file's own integers.
//!
//! A row of the matrix is one stretch of bytes: the low bits of all its elements in order, then what
//! they have above four bits, then scales (each followed by its minimum where the format has minima)
//! as f16, then the row's factor as f32, padded to 32 bytes. w = factor · (scale · (q − zero) +
//! minimum). Packing loses nothing, but that K-quants derive scales from two factors and the product
//! is rounded to f16 (relative error 2⁻¹¹).
//!
//! What a warp reads of it: a lane takes the eight elements that it multiplies with one 16-byte load
//! of activations, so the 32 lanes take 256 elements in a row. Their low bits are 128 bytes side by
//! side (256 for eight bits), the bits above 32 or 64, the scales of eight or sixteen groups 16 to
//! 64, which consecutive steps finish to whole sectors. As rows begin at multiples of 32 bytes, no
//! sector is read for a part of it. Bytes per weight, without the factor and the padding, which are
//! below 2 % for a thousand columns:
//!
//! | Types | bits | scales and minima | bytes |
//! | --- | --- | --- | --- |
//! | Q4_0 | 4 | one scale of 32 | 0.5625 |
//! | Q4_1, Q4_K | 4 | and a minimum | 0.625 |
//! | Q3_K | 4 | one scale of 16 | 0.625 |
//! | Q2_K | 4 | and a minimum | 0.75 |
//! | Q5_0 | 5 | one scale of 32 | 0.6875 |
//! | Q5_1, Q5_K | 5 | and a minimum | 0.75 |
//! | Q6_K | 6 | one scale of 16 | 0.875 |
//! | Q8_0 | 8 | one scale of 32 | 1.0625 |
//! | bf16 | 16 | none | 2 |

mod rows;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Device, Result, Shape, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use realign_model::blocks::{Format, UNIT};

/// Elements that are unpacked to sixteen bits at a time for a large product: 32 MiB, most of which
/// the second-level cache of a data-centre card holds until the product has read it.
pub(crate) const STRIPE: usize = 1 << 24;

/// Rows begin at multiples of so many bytes: a sector, the least that a device fetches.
const SECTOR: usize = 32;

/// Bits of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// Two elements a byte.
    Four,
    /// As above, and a fifth bit of eight elements in a byte.
    Five,
    /// As above, and two more bits of four elements in a byte.
    Six,
    /// Bytes.
    Eight,
}

impl Bits {
    /// Bits of eight elements' lower part, in bytes.
    fn low(self) -> usize {
        match self {
            Bits::Eight => 8,
            Bits::Four | Bits::Five | Bits::Six => 4,
        }
    }

    /// As above, of what is left.
    fn high(self) -> usize {
        match self {
            Bits::Four | Bits::Eight => 0,
            Bits::Five => 1,
            Bits::Six => 2,
        }
    }
}

/// How a matrix's rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Of an element.
    pub(crate) bits: Bits,
    /// Elements that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// Whether a minimum follows each scale.
    pub(crate) minimum: bool,
    /// What is subtracted from q.
    pub(crate) zero: i32,
}

impl Layout {
    /// How a GGUF type is stored for a device; `None` for types that are not integers with scales.
    pub(crate) fn of(dtype: GgmlDType) -> Option<Self> {
        let format = Format::of(dtype)?;
        let bits = match format.bits {
            4 => Bits::Four,
            5 => Bits::Five,
            6 => Bits::Six,
            _ => Bits::Eight,
        };
        Some(Self {
            bits,
            group: UNIT / format.scales,
            minimum: format.minimum,
            zero: format.zero,
        })
    }

    /// Where a row's bits above the low ones, its scales and its factor begin, and its length.
    fn offsets(&self, columns: usize) -> [usize; 4] {
        let high = columns / 8 * self.bits.low();
        let scales = high + columns / 8 * self.bits.high();
        let vectors = 1 + usize::from(self.minimum);
        let factor = (scales + columns / self.group * vectors * 2).next_multiple_of(4);
        [high, scales, factor, (factor + 4).next_multiple_of(SECTOR)]
    }

    /// Bytes of a row of `columns` elements, a multiple of 32.
    pub(crate) fn row_bytes(&self, columns: usize) -> usize {
        self.offsets(columns)[3]
    }
}

/// Bytes that a device keeps of a matrix (out, columns) of this type, and whether as integers.
pub(crate) fn device_bytes(dtype: GgmlDType, (out, columns): (usize, usize)) -> (usize, bool) {
    match Layout::of(dtype).filter(|_| columns.is_multiple_of(UNIT)) {
        Some(layout) => (out.saturating_mul(layout.row_bytes(columns)), true),
        None => (out.saturating_mul(columns).saturating_mul(2), false),
    }
}

/// A matrix (out, columns) on a device. Immutable; clones share it.
#[derive(Clone, Debug)]
pub struct IntegerWeight {
    /// How its rows are stored.
    pub(crate) layout: Layout,
    /// Input columns.
    pub(crate) columns: usize,
    /// Element type of the activations that it meets, and of what it is unpacked to.
    pub(crate) dtype: DType,
    /// (out, bytes of a row), u8.
    data: Tensor,
}

impl IntegerWeight {
    /// Lays a quantised tensor on the CPU out and copies it to a device; `None` if its type is no
    /// integers with scales.
    ///
    /// # Errors
    /// If the tensor is no matrix, or the device has no room.
    pub fn new(weight: &QTensor, device: &Device, dtype: DType) -> Result<Option<Self>> {
        let (out, columns) = weight.shape().dims2()?;
        let stored = weight.dtype();
        let Some(layout) = Layout::of(stored).filter(|_| columns.is_multiple_of(UNIT)) else {
            return Ok(None);
        };
        let blocks = weight.data()?;
        let stored_row = columns / stored.block_size() * stored.type_size();
        if stored_row == 0 || blocks.len() != out * stored_row {
            bail!(
                "{} bytes do not hold ({out}, {columns}) of {stored:?}",
                blocks.len()
            );
        }
        let row_bytes = layout.row_bytes(columns);
        let mut data = vec![0u8; out * row_bytes];
        data.par_chunks_exact_mut(row_bytes)
            .zip(blocks.par_chunks_exact(stored_row))
            .for_each(|(into, from)| rows::pack(&layout, (stored, from), columns, into));
        Ok(Some(Self {
            layout,
            columns,
            dtype,
            data: Tensor::from_vec(data, (out, row_bytes), device)?,
        }))
    }

    /// (out, columns).
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        Ok((self.data.dim(0)?, self.columns))
    }

    /// Its bytes, (out, [`Layout::row_bytes`]).
    pub(crate) fn data(&self) -> &Tensor {
        &self.data
    }

    /// Bytes that one pass over the weight reads.
    pub fn bytes(&self) -> usize {
        self.data.elem_count()
    }

    /// The same matrices as rows of one, one behind the other; `None` where they are stored in
    /// different ways.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn stacked(parts: &[Self]) -> Result<Option<Vec<Self>>> {
        let like =
            |a: &Self, b: &Self| (a.layout, a.columns, a.dtype) == (b.layout, b.columns, b.dtype);
        if !parts.iter().all(|part| like(part, &parts[0])) {
            return Ok(None);
        }
        let all: Vec<&Tensor> = parts.iter().map(|part| &part.data).collect();
        let whole = Tensor::cat(&all, 0)?;
        let mut first = 0;
        let part = |part: &Self| {
            let rows = part.data.dim(0)?;
            let data = whole.narrow(0, first, rows)?;
            first += rows;
            Ok(Self {
                data,
                ..part.clone()
            })
        };
        parts.iter().map(part).collect::<Result<_>>().map(Some)
    }

    /// A matrix of `out` rows that repeats the rows of this one, for benchmarks.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn repeated(&self, out: usize) -> Result<Self> {
        let rows = self.data.dim(0)?;
        let ids: Vec<u32> = (0..out).map(|row| (row % rows.max(1)) as u32).collect();
        let ids = Tensor::from_vec(ids, out, self.data.device())?;
        Ok(Self {
            data: self.data.index_select(&ids, 0)?,
            ..self.clone()
        })
    }

    /// The matrix as floats of its own type, (out, columns). They live as long as the
    /// caller keeps them; the model keeps the integers.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn dense(&self) -> Result<Tensor> {
        self.data.apply_op1_no_bwd(&Unpack {
            layout: self.layout,
            columns: self.columns,
            dtype: self.dtype,
        })
    }

    /// Rows of the matrix as floats, (ids, columns).
    ///
    /// # Errors
    /// If there is no such row.
    pub(crate) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let chosen = Self {
            data: self.data.index_select(ids, 0)?,
            ..self.clone()
        };
        chosen.dense()
    }
}

/// Integers to floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unpack {
    /// How rows are stored.
    pub(crate) layout: Layout,
    /// Elements of a row.
    pub(crate) columns: usize,
    /// What comes out.
    pub(crate) dtype: DType,
}

impl CustomOp1 for Unpack {
    fn name(&self) -> &'static str {
        "unpack-integers"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &candle_core::Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, row_bytes) = layout.shape().dims2()?;
        let (CpuStorage::U8(bytes), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("{}: takes contiguous bytes", self.name());
        };
        let mut values = vec![0f32; out * self.columns];
        values
            .par_chunks_exact_mut(self.columns)
            .zip(bytes[start..end].par_chunks_exact(row_bytes))
            .for_each(|(into, row)| rows::unpack(&self.layout, row, into));
        let storage = match self.dtype {
            DType::F16 => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::BF16 => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
            _ => CpuStorage::F32(values),
        };
        Ok((storage, Shape::from((out, self.columns))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &candle_core::Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::driver::unpack(self, storage, layout)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _storage: &CudaStorage,
        _layout: &candle_core::Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType::{self, *};

    use super::*;

    /// Largest error of a K format, of the width of the values' range: its scales become one f16
    /// each, half a unit in the last place of a step that is taken up to that width, and half as
    /// much again of the minimum.
    const K: f64 = 1.5 / 2048.0;

    /// What the file's own blocks say, and what is left of that.
    const TYPES: [(GgmlDType, f64, f64); 10] = [
        (Q4_0, 0.0, 0.5625),
        (Q4_1, 0.0, 0.625),
        (Q5_0, 0.0, 0.6875),
        (Q5_1, 0.0, 0.75),
        (Q8_0, 0.0, 1.0625),
        (Q2K, K, 0.75),
        (Q3K, K, 0.625),
        (Q4K, K, 0.625),
        (Q5K, K, 0.75),
        (Q6K, K, 0.875),
    ];

    fn furthest(a: &Tensor, b: &Tensor) -> Result<f64> {
        let off = (a.to_dtype(DType::F32)? - b)?.abs()?.flatten_all()?;
        Ok(f64::from(off.max(0)?.to_scalar::<f32>()?))
    }

    #[test]
    fn every_format_keeps_its_values_in_the_bytes_that_are_promised() -> Result<()> {
        for scale in [1.0, 1e-6, 1e4] {
            let values = (Tensor::randn(0f32, 1.0, (37, 1024), &Device::Cpu)? * scale)?;
            let range = 2.0 * furthest(&values, &values.zeros_like()?)? / scale;
            for (dtype, relative, bytes) in TYPES {
                let stored = QTensor::quantize(&values, dtype)?;
                let exact = stored.dequantize(&Device::Cpu)?;
                let kept = IntegerWeight::new(&stored, &Device::Cpu, DType::F32)?.unwrap();
                let off = furthest(&kept.dense()?, &exact)? / scale;
                assert!(
                    off <= range * relative + 1e-6,
                    "{dtype:?} at {scale}: {off}"
                );
                let each = kept.bytes() as f64 / (37.0 * 1024.0);
                assert!(each >= bytes && each < bytes + 0.04, "{dtype:?}: {each}");
                let ids = Tensor::new(&[36u32, 0, 5], &Device::Cpu)?;
                let rows = furthest(&kept.rows(&ids)?, &exact.index_select(&ids, 0)?)? / scale;
                assert!(rows <= range * relative + 1e-6, "{dtype:?} rows: {rows}");
            }
        }
        Ok(())
    }

    #[test]
    fn matrices_of_one_form_stack_and_others_do_not() -> Result<()> {
        let make = |rows: usize, dtype| -> Result<IntegerWeight> {
            let values = Tensor::randn(0f32, 1.0, (rows, 64), &Device::Cpu)?;
            let stored = QTensor::quantize(&values, dtype)?;
            Ok(IntegerWeight::new(&stored, &Device::Cpu, DType::F16)?.unwrap())
        };
        let parts = [make(3, Q4_0)?, make(5, Q4_0)?];
        let stacked = IntegerWeight::stacked(&parts)?.unwrap();
        for (part, moved) in parts.iter().zip(&stacked) {
            assert_eq!(moved.shape()?, part.shape()?);
            let before = part.dense()?.to_dtype(DType::F32)?;
            assert_eq!(furthest(&moved.dense()?, &before)?, 0.0);
        }
        let mixed = [make(3, Q4_0)?, make(3, Q8_0)?];
        assert!(IntegerWeight::stacked(&mixed)?.is_none());
        let floats = QTensor::quantize(&Tensor::zeros((2, 64), DType::F32, &Device::Cpu)?, F16)?;
        assert!(IntegerWeight::new(&floats, &Device::Cpu, DType::F16)?.is_none());
        Ok(())
    }
}
