//! Register tiles: a few rows of x times one panel of 32 columns, in three forms.

use super::unpack::WIDTH;

/// Rows of a tile at most: 14 × 2 sums, two vectors of the panel and a broadcast fill the 32
/// registers of AVX-512.
pub(crate) const ROWS: usize = 14;

/// The arithmetic that a product runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Any processor.
    Portable,
    /// f32 in 128-bit vectors, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// f32 in 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// f32 in 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// As Avx512, and forward products with integer weights in 16-bit fixed point.
    #[cfg(target_arch = "x86_64")]
    Limbs,
    /// Pairs of bfloat16, summed in f32, in 512-bit vectors: twice as fast.
    #[cfg(target_arch = "x86_64")]
    Bf16,
}

impl Form {
    /// The best f32 here.
    pub(crate) fn floats() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                return Form::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Form::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Form::Neon;
        }
        Form::Portable
    }

    /// The best here for values and tangents, which are as good as f32's.
    pub(crate) fn values() -> Self {
        #[cfg(target_arch = "x86_64")]
        if super::limbs::detected() {
            return Form::Limbs;
        }
        Self::floats()
    }

    /// The best here for gradients, which are means over many tokens.
    pub(crate) fn gradients() -> Self {
        #[cfg(target_arch = "x86_64")]
        if Self::floats() == Form::Avx512 && is_x86_feature_detected!("avx512bf16") {
            return Form::Bf16;
        }
        Self::floats()
    }
}

/// Where a tile's results go.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// First element of the first row.
    pub(crate) at: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Columns that exist, at most 32.
    pub(crate) width: usize,
    /// Whether results are added to what is there.
    pub(crate) add: bool,
}

/// Calls `f` for tiles of the given numbers of rows, the first as often as it fits, then the others.
/// Each is compiled apart: all up to fourteen would take the compiler minutes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! in_tiles {
    ($f:path, $a:ident, $stride:ident, $rows:ident, $panel:ident, $target:ident, $($n:literal),+) => {{
        let mut done = 0;
        $(
            while $rows - done >= $n {
                let target = Target {
                    at: $target.at.wrapping_add(done * $target.stride),
                    ..$target
                };
                let row = |r: usize| $a.wrapping_add((done + r) * $stride);
                // SAFETY: passed on.
                unsafe { $f(std::array::from_fn::<_, $n, _>(row), $panel, target) };
                done += $n;
            }
        )+
    }};
}

/// `rows` rows of floats at `a`, `stride` apart, times a panel.
///
/// # Safety
/// The processor has what `form` says; `a` can be read at `rows` rows of `panel.len()` floats, and
/// `target` written at as many rows of its width.
pub(crate) unsafe fn floats(
    form: Form,
    a: *const f32,
    stride: usize,
    rows: usize,
    panel: &[[f32; WIDTH]],
    target: Target,
) {
    match form {
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 | Form::Limbs | Form::Bf16 => {
            in_tiles!(x86::avx512, a, stride, rows, panel, target, 14, 8, 4, 2, 1)
        }
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => in_tiles!(x86::avx2, a, stride, rows, panel, target, 3, 2, 1),
        #[cfg(target_arch = "aarch64")]
        Form::Neon => in_tiles!(neon::floats, a, stride, rows, panel, target, 3, 2, 1),
        _ => {
            for r in 0..rows {
                let target = Target {
                    at: target.at.wrapping_add(r * target.stride),
                    ..target
                };
                // SAFETY: passed on.
                unsafe { plain([a.wrapping_add(r * stride)], panel, target) };
            }
        }
    }
}

/// As [`floats`], for pairs of bfloat16: `a` has `panel.len()` pairs a row.
///
/// # Safety
/// As [`floats`], and the processor has AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn pairs(
    a: *const u32,
    stride: usize,
    rows: usize,
    panel: &[[u32; WIDTH]],
    target: Target,
) {
    in_tiles!(x86::bf16, a, stride, rows, panel, target, 14, 8, 4, 2, 1)
}

/// # Safety
/// As [`floats`], for the N rows that begin at `a`.
#[inline(always)]
unsafe fn plain<const N: usize>(a: [*const f32; N], panel: &[[f32; WIDTH]], target: Target) {
    let mut sums = [[0f32; WIDTH]; N];
    for (i, weights) in panel.iter().enumerate() {
        for r in 0..N {
            // SAFETY: by the contract of `floats`.
            let value = unsafe { *a[r].add(i) };
            for (sum, w) in sums[r].iter_mut().zip(weights) {
                *sum += value * w;
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        // SAFETY: by the contract of `floats`.
        unsafe { put(sum, r, target) };
    }
}

/// Writes row `r` of a tile.
///
/// # Safety
/// The target can be written at its width in row `r`.
#[inline(always)]
unsafe fn put(sum: &[f32; WIDTH], r: usize, target: Target) {
    // SAFETY: by the contract.
    let row =
        unsafe { std::slice::from_raw_parts_mut(target.at.add(r * target.stride), target.width) };
    for (y, sum) in row.iter_mut().zip(sum) {
        *y = if target.add { *y + sum } else { *sum };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Target, WIDTH};

    /// Writes a tile's sums. Not a function: a call that takes their address would keep them in
    /// memory all through the loop before it, at a third of the speed.
    macro_rules! store {
        ($sums:ident, $target:ident) => {
            let bits = |first: usize| (1u32 << $target.width.saturating_sub(first).min(16)) - 1;
            let masks = [bits(0) as __mmask16, bits(16) as __mmask16];
            for (r, sum) in $sums.into_iter().enumerate() {
                for half in 0..2 {
                    let at = $target.at.wrapping_add(r * $target.stride + 16 * half);
                    // SAFETY: the mask leaves out what is beyond the target's width.
                    unsafe {
                        let before = match $target.add {
                            true => _mm512_maskz_loadu_ps(masks[half], at),
                            false => _mm512_setzero_ps(),
                        };
                        let value = _mm512_add_ps(before, sum[half]);
                        _mm512_mask_storeu_ps(at, masks[half], value);
                    }
                }
            }
        };
    }

    /// Vectors of a panel's row.
    const VECTORS: usize = WIDTH / 8;

    /// Three rows of four sums, their values and a vector of the panel fill the sixteen registers.
    ///
    /// # Safety
    /// As [`super::plain`], and the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn avx2<const N: usize>(
        a: [*const f32; N],
        panel: &[[f32; WIDTH]],
        target: Target,
    ) {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; N];
        for (i, weights) in panel.iter().enumerate() {
            // SAFETY: a row of the panel is four vectors; `a` by the contract of `floats`.
            unsafe {
                let values: [__m256; N] = std::array::from_fn(|r| _mm256_set1_ps(*a[r].add(i)));
                for v in 0..VECTORS {
                    let w = _mm256_loadu_ps(weights.as_ptr().add(8 * v));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        sum[v] = _mm256_fmadd_ps(value, w, sum[v]);
                    }
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let mut whole = [0f32; WIDTH];
            for (v, eight) in sum.into_iter().enumerate() {
                // SAFETY: `whole` is four vectors.
                unsafe { _mm256_storeu_ps(whole.as_mut_ptr().add(8 * v), eight) };
            }
            // SAFETY: the target has its width in every row.
            unsafe { super::put(&whole, r, target) };
        }
    }

    /// # Safety
    /// As [`plain`], and the processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) unsafe fn avx512<const N: usize>(
        a: [*const f32; N],
        panel: &[[f32; WIDTH]],
        target: Target,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        for (i, weights) in panel.iter().enumerate() {
            // SAFETY: a row of the panel is two vectors; `a` by the contract of `floats`.
            unsafe {
                let low = _mm512_loadu_ps(weights.as_ptr());
                let high = _mm512_loadu_ps(weights.as_ptr().add(16));
                for (sum, a) in sums.iter_mut().zip(a) {
                    let value = _mm512_set1_ps(*a.add(i));
                    sum[0] = _mm512_fmadd_ps(value, low, sum[0]);
                    sum[1] = _mm512_fmadd_ps(value, high, sum[1]);
                }
            }
        }
        store!(sums, target);
    }

    /// # Safety
    /// As [`super::pairs`], for the N rows that begin at `a`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) unsafe fn bf16<const N: usize>(
        a: [*const u32; N],
        panel: &[[u32; WIDTH]],
        target: Target,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        // SAFETY: both types are 64 bytes of any content.
        let pairs = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
        for (i, weights) in panel.iter().enumerate() {
            // SAFETY: a row of the panel is two vectors; `a` by the contract of `pairs`.
            unsafe {
                let low = pairs(_mm512_loadu_si512(weights.as_ptr().cast()));
                let high = pairs(_mm512_loadu_si512(weights.as_ptr().add(16).cast()));
                for (sum, a) in sums.iter_mut().zip(a) {
                    let value = pairs(_mm512_set1_epi32(*a.add(i) as i32));
                    sum[0] = _mm512_dpbf16_ps(sum[0], value, low);
                    sum[1] = _mm512_dpbf16_ps(sum[1], value, high);
                }
            }
        }
        store!(sums, target);
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{Target, WIDTH};

    /// Vectors of a panel's row.
    const VECTORS: usize = WIDTH / 4;

    /// Three rows of eight sums, and a panel's row with a broadcast, fill the 32 registers.
    ///
    /// # Safety
    /// As [`super::plain`].
    pub(crate) unsafe fn floats<const N: usize>(
        a: [*const f32; N],
        panel: &[[f32; WIDTH]],
        target: Target,
    ) {
        // SAFETY: a row of the panel is eight vectors; `a` and the target by the contract.
        unsafe {
            let mut sums = [[vdupq_n_f32(0.0); VECTORS]; N];
            for (i, weights) in panel.iter().enumerate() {
                let x: [f32; N] = std::array::from_fn(|r| *a[r].add(i));
                for v in 0..VECTORS {
                    let w = vld1q_f32(weights.as_ptr().add(4 * v));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        sum[v] = vfmaq_n_f32(sum[v], w, x);
                    }
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let mut whole = [0f32; WIDTH];
                for (v, four) in sum.into_iter().enumerate() {
                    vst1q_f32(whole.as_mut_ptr().add(4 * v), four);
                }
                super::put(&whole, r, target);
            }
        }
    }
}
