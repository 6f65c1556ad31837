//! x Wᵀ for weights in GGUF's 4-bit and 8-bit blocks, without unpacking them to floats.
//!
//! Activations are quantised per 32-element block to 8 bits, as GGML's own kernels do, and the
//! dot products run on integers. Q4_1 and Q8_0 have AVX2 kernels here (candle computes Q4_1 in
//! scalar code); every other type, processor and device takes candle's path, which is also the
//! slow twin in the tests. Block layouts: the `ggml-common.h` of GGML.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Module, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels::quantize_block;
use super::{Ops, f32_slice, rows_columns};

/// Elements per block of both formats.
const BLOCK: usize = 32;

/// `x` (rows, in) times a quantised weight (out, in) transposed: (rows, out). No gradient.
pub fn quantized_linear(ops: Ops, x: &Tensor, weight: &Arc<QTensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    match (ops, Format::of(weight)) {
        (Ops::Fused, Some(format)) => x.apply_op1_no_bwd(&QuantizedLinear {
            weight: weight.clone(),
            format,
        }),
        _ => QMatMul::QTensor(weight.clone()).forward(&x),
    }
}

/// Formats with a kernel on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// f16 scale, f16 minimum, 16 bytes of nibbles: low ones are elements 0–15.
    Q4_1,
    /// f16 scale, 32 signed bytes.
    Q8_0,
}

impl Format {
    fn of(weight: &QTensor) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let has = std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("fma")
                && std::is_x86_feature_detected!("f16c");
            match weight.dtype() {
                GgmlDType::Q4_1 if has => return Some(Format::Q4_1),
                GgmlDType::Q8_0 if has => return Some(Format::Q8_0),
                _ => {}
            }
        }
        let _without_kernels = weight;
        None
    }

    fn block_bytes(self) -> usize {
        match self {
            Format::Q4_1 => 20,
            Format::Q8_0 => 34,
        }
    }
}

/// One block of 8-bit activations.
#[derive(Clone, Copy)]
struct ActivationBlock {
    values: [i8; BLOCK],
    scale: f32,
    /// scale · Σ values, which multiplies a weight block's minimum.
    sum: f32,
}

fn quantize(x: &[f32]) -> Vec<ActivationBlock> {
    let block = |x: &[f32]| {
        let mut values = [0i8; BLOCK];
        let (scale, total) = quantize_block(x, &mut values);
        ActivationBlock {
            values,
            scale,
            sum: scale * total as f32,
        }
    };
    // A decode step's few blocks are not worth handing to another thread.
    x.par_chunks_exact(BLOCK)
        .with_min_len(128)
        .map(block)
        .collect()
}

struct QuantizedLinear {
    weight: Arc<QTensor>,
    format: Format,
}

/// Output columns that one task computes.
const TASK_COLUMNS: usize = 32;
/// Activation rows that stay in the first-level cache while a task's weight rows pass.
const GROUP_ROWS: usize = 16;

impl CustomOp1 for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let (rows, inner) = rows_columns(layout)?;
        let (out, k) = self.weight.shape().dims2()?;
        let data = self.weight.data()?;
        let row_bytes = inner / BLOCK * self.format.block_bytes();
        if inner != k || !inner.is_multiple_of(BLOCK) || data.len() != out * row_bytes {
            bail!(
                "{}: x has {inner} columns, the weight is ({out}, {k}) in {} bytes",
                self.name(),
                data.len()
            );
        }
        let activations = quantize(x);
        let blocks = inner / BLOCK;
        // (out, rows): every task writes its own columns of the result in one piece.
        let mut transposed = vec![0f32; rows * out];
        transposed
            .par_chunks_mut(rows * TASK_COLUMNS)
            .zip(data.par_chunks(row_bytes * TASK_COLUMNS))
            .for_each(|(y, weights)| {
                for first in (0..rows).step_by(GROUP_ROWS) {
                    let group = first..rows.min(first + GROUP_ROWS);
                    let x = &activations[first * blocks..group.end * blocks];
                    for (y, weight_row) in y
                        .chunks_exact_mut(rows)
                        .zip(weights.chunks_exact(row_bytes))
                    {
                        dot_rows(self.format, weight_row, x, blocks, &mut y[group.clone()]);
                    }
                }
            });
        let y = if rows == 1 {
            transposed
        } else {
            transpose(&transposed, out, rows)
        };
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }
}

/// (n, m) row-major to (m, n), in tiles that fit the cache.
fn transpose(x: &[f32], n: usize, m: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut(n * TILE)
        .enumerate()
        .for_each(|(tile, rows)| {
            for columns in (0..n).step_by(TILE) {
                for (i, row) in rows.chunks_exact_mut(n).enumerate() {
                    for column in columns..n.min(columns + TILE) {
                        row[column] = x[column * m + tile * TILE + i];
                    }
                }
            }
        });
    y
}

/// Products of one weight row with every activation row.
#[cfg(target_arch = "x86_64")]
fn dot_rows(
    format: Format,
    weight: &[u8],
    activations: &[ActivationBlock],
    blocks: usize,
    y: &mut [f32],
) {
    assert!(weight.len() >= blocks * format.block_bytes() && activations.len() >= blocks * y.len());
    for (group, y) in y.chunks_mut(4).enumerate() {
        let x = &activations[group * 4 * blocks..][..y.len() * blocks];
        // SAFETY: `Format::of` found AVX2, FMA and F16C; the assertion bounds every read.
        unsafe {
            match (format, y.len()) {
                (Format::Q4_1, 4) => avx2::q4_1::<4>(weight, x, blocks, y),
                (Format::Q4_1, 3) => avx2::q4_1::<3>(weight, x, blocks, y),
                (Format::Q4_1, 2) => avx2::q4_1::<2>(weight, x, blocks, y),
                (Format::Q4_1, _) => avx2::q4_1::<1>(weight, x, blocks, y),
                (Format::Q8_0, 4) => avx2::q8_0::<4>(weight, x, blocks, y),
                (Format::Q8_0, 3) => avx2::q8_0::<3>(weight, x, blocks, y),
                (Format::Q8_0, 2) => avx2::q8_0::<2>(weight, x, blocks, y),
                (Format::Q8_0, _) => avx2::q8_0::<1>(weight, x, blocks, y),
            }
        }
    }
}

/// No kernels: `Format::of` finds none, so this is never called.
#[cfg(not(target_arch = "x86_64"))]
fn dot_rows(_: Format, _: &[u8], _: &[ActivationBlock], _: usize, y: &mut [f32]) {
    y.fill(f32::NAN);
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop)] // one index walks several register arrays
mod avx2 {
    use std::arch::x86_64::*;

    use super::ActivationBlock;

    /// Σ of the eight lanes.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sum(v: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// # Safety
    /// The processor has AVX2, FMA and F16C; `weight` holds `blocks` Q4_1 blocks, `x` holds
    /// `ROWS · blocks` blocks, `y` has `ROWS` elements.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn q4_1<const ROWS: usize>(
        weight: &[u8],
        x: &[ActivationBlock],
        blocks: usize,
        y: &mut [f32],
    ) {
        let (mut sums, mut minima) = ([_mm256_setzero_ps(); ROWS], [0f32; ROWS]);
        let (ones, nibble) = (_mm256_set1_epi16(1), _mm256_set1_epi8(0x0f));
        for b in 0..blocks {
            // SAFETY: block b lies inside `weight`, and block (r, b) inside `x`.
            unsafe {
                let block = weight.as_ptr().add(b * 20);
                let halves = _mm_cvtph_ps(_mm_cvtsi32_si128(block.cast::<i32>().read_unaligned()));
                let scale = _mm_cvtss_f32(halves);
                let minimum = _mm_cvtss_f32(_mm_movehdup_ps(halves));
                let packed = _mm_loadu_si128(block.add(4).cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
                let q = _mm256_and_si256(both, nibble);
                for r in 0..ROWS {
                    let a = &*x.as_ptr().add(r * blocks + b);
                    let v = _mm256_loadu_si256(a.values.as_ptr().cast());
                    let products = _mm256_madd_epi16(_mm256_maddubs_epi16(q, v), ones);
                    sums[r] = _mm256_fmadd_ps(
                        _mm256_set1_ps(scale * a.scale),
                        _mm256_cvtepi32_ps(products),
                        sums[r],
                    );
                    minima[r] += minimum * a.sum;
                }
            }
        }
        for r in 0..ROWS {
            y[r] = sum(sums[r]) + minima[r];
        }
    }

    /// # Safety
    /// As [`q4_1`], with Q8_0 blocks.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn q8_0<const ROWS: usize>(
        weight: &[u8],
        x: &[ActivationBlock],
        blocks: usize,
        y: &mut [f32],
    ) {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        let ones = _mm256_set1_epi16(1);
        for b in 0..blocks {
            // SAFETY: block b lies inside `weight`, and block (r, b) inside `x`.
            unsafe {
                let block = weight.as_ptr().add(b * 34);
                let half = i32::from(block.cast::<u16>().read_unaligned());
                let scale = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
                let q = _mm256_loadu_si256(block.add(2).cast());
                // maddubs wants one unsigned factor: |w| times x with w's sign.
                let magnitude = _mm256_abs_epi8(q);
                for r in 0..ROWS {
                    let a = &*x.as_ptr().add(r * blocks + b);
                    let v = _mm256_sign_epi8(_mm256_loadu_si256(a.values.as_ptr().cast()), q);
                    let products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, v), ones);
                    sums[r] = _mm256_fmadd_ps(
                        _mm256_set1_ps(scale * a.scale),
                        _mm256_cvtepi32_ps(products),
                        sums[r],
                    );
                }
            }
        }
        for r in 0..ROWS {
            y[r] = sum(sums[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn kernels_agree_with_candle_for_every_row_count() -> Result<()> {
        let device = Device::Cpu;
        for dtype in [GgmlDType::Q4_1, GgmlDType::Q8_0] {
            let dense = Tensor::randn(0f32, 1.0, (70, 128), &device)?;
            let weight = Arc::new(QTensor::quantize(&dense, dtype)?);
            let exact = weight.dequantize(&device)?;
            for rows in [1, 2, 3, 4, 5, 9, 33, 64] {
                let x = Tensor::randn(0f32, 1.0, (rows, 128), &device)?;
                let ours = quantized_linear(Ops::Fused, &x, &weight)?;
                let candle = quantized_linear(Ops::Plain, &x, &weight)?;
                let float = x.matmul(&exact.t()?)?;
                let distance = |a: &Tensor, b: &Tensor| -> Result<f32> {
                    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
                };
                let (to_candle, to_float) = (distance(&ours, &candle)?, distance(&ours, &float)?);
                // Both round activations to 8 bits, so both lie this near to the float product,
                // whose elements are about 11.
                assert!(
                    to_float < 0.6 && to_candle < 0.6,
                    "{dtype:?}, {rows} rows: {to_float}, {to_candle}"
                );
            }
        }
        Ok(())
    }
}
