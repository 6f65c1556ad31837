//! Products with frozen packed weights, x Wᵀ and g W, without a copy of the weights: panels are
//! unpacked as they are used, once for all rows.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::limbs;
use super::tile::{self, Form, ROWS, Target};
use super::unpack::{WIDTH, Way, unpack};
use crate::packed::PackedWeight;
use realign_model::time_slices::TimeSlices;

/// Elements of the sum that one pass takes: a panel then stays in the second-level cache.
const DEPTH: usize = 512;

/// Some columns of a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The whole matrix.
    pub(crate) data: &'a [f32],
    /// Its columns.
    pub(crate) stride: usize,
    /// First column of the part.
    pub(crate) column: usize,
}

impl<'a> View<'a> {
    /// All columns of a matrix.
    pub(crate) fn whole(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            stride: columns,
            column: 0,
        }
    }

    /// # Panics
    /// If `rows` rows of so many columns do not lie inside.
    pub(super) fn check(&self, rows: usize, columns: usize) {
        inside((self.data.len(), self.stride, self.column), rows, columns);
    }
}

fn inside((len, stride, column): (usize, usize, usize), rows: usize, columns: usize) {
    assert!(column + columns <= stride && len >= (rows - 1) * stride + column + columns);
}

/// Some columns of a row-major matrix that a product writes.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    /// The whole matrix.
    pub(crate) data: &'a mut [f32],
    /// Its columns.
    pub(crate) stride: usize,
    /// First column of the part.
    pub(crate) column: usize,
    /// Whether the product is added to what is there.
    pub(crate) add: bool,
}

impl<'a> ViewMut<'a> {
    /// All columns of a matrix, overwritten.
    pub(crate) fn whole(data: &'a mut [f32], columns: usize) -> Self {
        Self {
            data,
            stride: columns,
            column: 0,
            add: false,
        }
    }

    /// # Panics
    /// As [`View::check`].
    pub(super) fn check(&self, rows: usize, columns: usize) {
        inside((self.data.len(), self.stride, self.column), rows, columns);
    }

    /// The same, added to.
    #[cfg(test)]
    pub(crate) fn adding(self) -> Self {
        Self { add: true, ..self }
    }
}

/// The start of what a product writes.
#[derive(Clone, Copy)]
pub(super) struct Pointer(pub *mut f32);
// SAFETY: every task writes only its own columns.
unsafe impl Send for Pointer {}
// SAFETY: as above; a task that adds to its columns reads only these, which no other writes.
unsafe impl Sync for Pointer {}

impl Pointer {
    /// So many elements further.
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// How a product runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Execution<'a> {
    /// Its arithmetic.
    pub(crate) form: Form,
    /// Whom it yields to.
    pub(crate) slices: &'a TimeSlices,
}

/// `rows` rows of `x` times the weight, in the given way.
///
/// # Panics
/// If a view is too small for the shapes.
pub(crate) fn product(
    execution: Execution,
    weight: &PackedWeight,
    way: Way,
    rows: usize,
    x: View,
    y: ViewMut,
) {
    let form = execution.form;
    let (inner, out) = way.extents(weight);
    if rows == 0 {
        return;
    }
    x.check(rows, inner);
    y.check(rows, out);
    #[cfg(target_arch = "x86_64")]
    match form {
        Form::Bf16 => return in_pairs(execution, weight, way, rows, x, y),
        Form::Limbs if way == Way::Forward && limbs::format_of(weight).is_some() => {
            return limbs::product(execution.slices, weight, rows, x, y);
        }
        _ => {}
    }
    let place = Place::new(y, out);
    (0..out.div_ceil(WIDTH)).into_par_iter().for_each_init(
        || vec![[0f32; WIDTH]; DEPTH],
        |floats, index| {
            let column = index * WIDTH;
            execution.slices.yield_to_serving();
            for from in (0..inner).step_by(DEPTH) {
                let panel = &mut floats[..DEPTH.min(inner - from)];
                unpack_as(form, weight, way, column, from, panel);
                for first in (0..rows).step_by(ROWS) {
                    let a = x.data[first * x.stride + x.column + from..].as_ptr();
                    let target = place.target(first, column, from > 0);
                    let rows = ROWS.min(rows - first);
                    // SAFETY: the checks above bound both; the form was detected.
                    unsafe { tile::floats(form, a, x.stride, rows, panel, target) };
                }
            }
        },
    );
}

/// Where the tiles of a product go.
struct Place {
    start: Pointer,
    stride: usize,
    columns: usize,
    add: bool,
}

impl Place {
    fn new(y: ViewMut, columns: usize) -> Self {
        Self {
            start: Pointer(y.data[y.column..].as_mut_ptr()),
            stride: y.stride,
            columns,
            add: y.add,
        }
    }

    /// From this row and column on; `add` where a part of the sum is there already.
    fn target(&self, row: usize, column: usize, add: bool) -> Target {
        Target {
            at: self.start.at(row * self.stride + column),
            stride: self.stride,
            width: WIDTH.min(self.columns - column),
            add: self.add || add,
        }
    }
}

/// [`product`] in pairs of bfloat16; the views were checked.
#[cfg(target_arch = "x86_64")]
fn in_pairs(
    execution: Execution,
    weight: &PackedWeight,
    way: Way,
    rows: usize,
    x: View,
    y: ViewMut,
) {
    let (inner, out) = way.extents(weight);
    let (rounded, stride) = (round(x, rows, inner), inner.div_ceil(2));
    let place = Place::new(y, out);
    (0..out.div_ceil(WIDTH)).into_par_iter().for_each_init(
        || (vec![[0f32; WIDTH]; DEPTH], vec![[0u32; WIDTH]; DEPTH / 2]),
        |(floats, pairs), index| {
            let column = index * WIDTH;
            execution.slices.yield_to_serving();
            for from in (0..inner).step_by(DEPTH) {
                let length = DEPTH.min(inner - from);
                let panel = &mut floats[..length];
                // SAFETY: `Form::Bf16` was detected; as in `unpack_as`.
                unsafe { unpack_avx512(weight, way, column, from, panel) };
                let pairs = &mut pairs[..length.div_ceil(2)];
                // SAFETY: `Form::Bf16` was detected.
                unsafe { pair(panel, pairs) };
                for first in (0..rows).step_by(ROWS) {
                    let a = rounded[first * stride + from / 2..].as_ptr();
                    let target = place.target(first, column, from > 0);
                    let rows = ROWS.min(rows - first);
                    // SAFETY: `rounded` has `rows` rows; the checks bound the target.
                    unsafe { tile::pairs(a, stride, rows, pairs, target) };
                }
            }
        },
    );
}

fn unpack_as(
    form: Form,
    weight: &PackedWeight,
    way: Way,
    first: usize,
    from: usize,
    panel: &mut [[f32; WIDTH]],
) {
    match form {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Form::floats` detected AVX-512 F and BW, which imply AVX2, FMA and F16C for the
        // compiler. VL was not asked for; every processor that has BW has it too.
        Form::Avx512 | Form::Bf16 | Form::Limbs => unsafe {
            unpack_avx512(weight, way, first, from, panel)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Form::floats` detected all three.
        Form::Avx2 => unsafe { unpack_avx2(weight, way, first, from, panel) },
        _ => unpack(weight, way, first, from, panel),
    }
}

/// [`unpack`] compiled for more instructions than every processor has.
#[cfg(target_arch = "x86_64")]
macro_rules! unpack_for {
    ($name:ident, $features:literal) => {
        #[target_feature(enable = $features)]
        fn $name(
            weight: &PackedWeight,
            way: Way,
            first: usize,
            from: usize,
            panel: &mut [[f32; WIDTH]],
        ) {
            unpack(weight, way, first, from, panel);
        }
    };
}
#[cfg(target_arch = "x86_64")]
unpack_for!(unpack_avx512, "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
unpack_for!(unpack_avx2, "avx2,fma,f16c");

/// A float's bfloat16 bits, rounded to nearest, ties to even.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

/// Two rows of a panel into one of pairs; an odd last row is paired with zeroes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn pair(panel: &[[f32; WIDTH]], pairs: &mut [[u32; WIDTH]]) {
    const NONE: [f32; WIDTH] = [0.0; WIDTH];
    for (two, pair) in panel.chunks(2).zip(pairs) {
        let second = two.get(1).unwrap_or(&NONE);
        for (c, pair) in pair.iter_mut().enumerate() {
            *pair = bits(two[0][c]) | bits(second[c]) << 16;
        }
    }
}

/// Rows of `x` as pairs of bfloat16, an odd last element paired with zero.
#[cfg(target_arch = "x86_64")]
fn round(x: View, rows: usize, inner: usize) -> Vec<u32> {
    let stride = inner.div_ceil(2);
    let mut rounded = vec![0u32; rows * stride];
    rounded
        .par_chunks_mut(stride)
        .enumerate()
        .with_min_len(16)
        .for_each(|(row, into)| {
            let from = &x.data[row * x.stride + x.column..][..inner];
            // SAFETY: rounding runs only where `Form::Bf16` was detected.
            unsafe { round_row(from, into) };
        });
    rounded
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn round_row(from: &[f32], into: &mut [u32]) {
    let (twos, rest) = from.as_chunks::<2>();
    for (into, [a, b]) in into.iter_mut().zip(twos) {
        *into = bits(*a) | bits(*b) << 16;
    }
    if let ([last], Some(into)) = (rest, into.last_mut()) {
        *into = bits(*last);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Result, Tensor};

    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::Isa;

    fn largest(x: &Tensor) -> Result<f32> {
        x.abs()?.flatten_all()?.max(0)?.to_scalar()
    }

    #[test]
    fn every_form_agrees_with_candle_both_ways() -> Result<()> {
        let slices = TimeSlices::undivided();
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut forms = vec![
            (Form::Portable, 1e-5),
            (Form::floats(), 1e-5),
            (Form::values(), 5e-5),
            (Form::gradients(), 2e-2),
        ];
        // Where there is AVX-512 this one is not the best.
        #[cfg(target_arch = "x86_64")]
        if Isa::available().any(|isa| isa == Isa::Avx2) {
            forms.push((Form::Avx2, 1e-5));
        }
        let shapes = [
            (1, 32, 32),
            (15, 70, 96),
            (40, 96, 640),
            (29, 640, 64),
            (5, 70, 512),
        ];
        use GgmlDType::{F32, Q4_1, Q5_0, Q5K, Q6K, Q8_0};
        for (rows, out, columns) in shapes {
            let dense = Tensor::randn(0f32, 1.0, (out, columns), &Device::Cpu)?;
            let all = [F32, Q4_1, Q5_0, Q5K, Q6K, Q8_0].into_iter();
            for dtype in all.filter(|dtype| columns.is_multiple_of(dtype.block_size())) {
                let weight = PackedWeight::from_quantized(&QTensor::quantize(&dense, dtype)?)?;
                let exact = weight.dequantize()?;
                for way in [Way::Forward, Way::Backward] {
                    let (inner, width) = way.extents(&weight);
                    let x = Tensor::randn(0f32, 1.0, (rows, inner), &Device::Cpu)?;
                    let expected = match way {
                        Way::Forward => x.matmul(&exact.t()?)?,
                        Way::Backward => x.matmul(&exact)?,
                    };
                    let values = x.flatten_all()?.to_vec1::<f32>()?;
                    for &(form, tolerance) in &forms {
                        let mut y = vec![1f32; rows * width];
                        let into = ViewMut::whole(&mut y, width).adding();
                        let execution = Execution {
                            form,
                            slices: &slices,
                        };
                        let x = View::whole(&values, inner);
                        product(execution, &weight, way, rows, x, into);
                        let got = (Tensor::from_vec(y, (rows, width), &Device::Cpu)? - 1.0)?;
                        let off = largest(&(got - &expected)?)? / largest(&expected)?;
                        assert!(
                            off < tolerance,
                            "{form:?} {way:?} {rows} {out} {columns}: off by {off}"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
