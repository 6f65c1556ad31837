//! Small vector kernels on slices, compiled twice: for the baseline and for AVX2 + FMA, chosen at
//! run time, so that one binary serves every x86-64 and needs no compiler flags.

/// Defines `pub fn name(args)` that dispatches to an AVX2 + FMA compilation of the same body.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[inline]
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: both features were just detected on this processor.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

const LANES: usize = 8;
/// The bit of an f32's sign.
const SIGN: u32 = 1 << 31;
/// The bits of an f32's exponent; all are set only in infinities and NaN.
const EXPONENT: u32 = 0x7f80_0000;

vectorised! {
    /// Σ a·b over the shorter of the two.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
        for (x, y) in a_chunks.zip(b_chunks) {
            for l in 0..LANES {
                lanes[l] += x[l] * y[l];
            }
        }
        lanes.iter().sum::<f32>() + tail
    }
}

vectorised! {
    /// The largest element; −∞ for an empty slice.
    fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        for c in chunks {
            for l in 0..LANES {
                lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
            }
        }
        lanes.iter().fold(tail, |m, &v| if v > m { v } else { m })
    }
}

vectorised! {
    /// Whether every element is a finite number.
    fn all_finite(x: &[f32]) -> bool {
        let mut lanes = [0u32; LANES];
        let chunks = x.chunks_exact(LANES);
        let tail = chunks.remainder().iter().all(|v| v.is_finite());
        for c in chunks {
            for l in 0..LANES {
                lanes[l] = lanes[l].max(c[l].to_bits() & EXPONENT);
            }
        }
        tail && lanes.iter().all(|&bits| bits < EXPONENT)
    }
}

/// exp(x) in f32 with a relative error below 3e-7, written so that loops over it vectorise.
///
/// Cody–Waite reduction to |r| ≤ ln2/2 and a degree-6 Taylor polynomial; 2ⁿ is built from its bits.
/// A NaN stays one: the polynomial is NaN, whatever the bits.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the two parts of ln 2 are exact on purpose
#[allow(clippy::manual_clamp)] // two selects vectorise; NaN passes through, as in clamp
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 {
        -87.0
    } else if x > 88.0 {
        88.0
    } else {
        x
    };
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without a library call.
    const ROUND: f32 = 12_582_912.0;
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0
        + r * (1.0
            + r * (0.5
                + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    // The last bits of `rounded` are n, which lies in [-126, 127]: no conversion, which would have
    // to look out for NaN and overflow.
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

vectorised! {
    /// x ← exp(x − shift); returns Σ x.
    fn exp_shifted_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for c in &mut chunks {
            for l in 0..LANES {
                c[l] = exp(c[l] - shift);
                lanes[l] += c[l];
            }
        }
        let mut tail = 0f32;
        for v in chunks.into_remainder() {
            *v = exp(*v - shift);
            tail += *v;
        }
        lanes.iter().sum::<f32>() + tail
    }
}

/// What exp(−30) is: a token of less than this, relative to the best one, is never drawn.
const NEGLIGIBLE: f32 = 9.357_623e-14;

vectorised! {
    /// out ← exp((x − best) / temperature), 0 where that is below exp(−30) or no number; returns Σ out.
    /// Both have the same length.
    fn softmax_weights(x: &[f32], best: f32, temperature: f32, out: &mut [f32]) -> f32 {
        let weight = |x: f32| {
            let weight = exp((x - best) / temperature);
            if weight > NEGLIGIBLE { weight } else { 0.0 }
        };
        let mut lanes = [0f32; LANES];
        let (rows, mut into) = (x.chunks_exact(LANES), out.chunks_exact_mut(LANES));
        let rest = rows.remainder();
        for (x, out) in rows.zip(&mut into) {
            for l in 0..LANES {
                out[l] = weight(x[l]);
                lanes[l] += out[l];
            }
        }
        let mut tail = 0f32;
        for (x, out) in rest.iter().zip(into.into_remainder()) {
            *out = weight(*x);
            tail += *out;
        }
        lanes.iter().sum::<f32>() + tail
    }
}

vectorised! {
    /// Σ exp(x − shift) without storing anything, accumulated in f64 over short runs.
    fn sum_exp_shifted(x: &[f32], shift: f32) -> f64 {
        let mut total = 0f64;
        for run in x.chunks(1024) {
            let mut lanes = [0f32; LANES];
            let chunks = run.chunks_exact(LANES);
            let tail: f32 = chunks.remainder().iter().map(|v| exp(v - shift)).sum();
            for c in chunks {
                for l in 0..LANES {
                    lanes[l] += exp(c[l] - shift);
                }
            }
            total += f64::from(lanes.iter().sum::<f32>() + tail);
        }
        total
    }
}

/// log Σ exp(x), stable.
pub fn logsumexp(x: &[f32]) -> f32 {
    let m = max(x);
    (f64::from(m) + sum_exp_shifted(x, m).ln()) as f32
}

vectorised! {
    /// out ← exp(x − shift) · factor, the softmax gradient's dense part.
    fn scaled_exp(x: &[f32], shift: f32, factor: f32, out: &mut [f32]) {
        for (o, v) in out.iter_mut().zip(x) {
            *o = exp(v - shift) * factor;
        }
    }
}

vectorised! {
    /// out ← g · (exp(p − zp) − exp(q − zq)), the gradient of KL(q ‖ p) in p's logits.
    fn kl_gradient(p: &[f32], zp: f32, q: &[f32], zq: f32, g: f32, out: &mut [f32]) {
        for i in 0..out.len().min(p.len()).min(q.len()) {
            out[i] = g * (exp(p[i] - zp) - exp(q[i] - zq));
        }
    }
}

vectorised! {
    /// Σ exp(q − zq) · ((q − zq) − (p − zp)): KL(q ‖ p) of two rows of logits.
    fn kl_sum(q: &[f32], zq: f32, p: &[f32], zp: f32) -> f64 {
        let mut total = 0f64;
        for (q_run, p_run) in q.chunks(1024).zip(p.chunks(1024)) {
            let mut lanes = [0f32; LANES];
            let (q_chunks, p_chunks) = (q_run.chunks_exact(LANES), p_run.chunks_exact(LANES));
            let mut tail = 0f32;
            for (a, b) in q_chunks.remainder().iter().zip(p_chunks.remainder()) {
                tail += exp(a - zq) * ((a - zq) - (b - zp));
            }
            for (a, b) in q_chunks.zip(p_chunks) {
                for l in 0..LANES {
                    lanes[l] += exp(a[l] - zq) * ((a[l] - zq) - (b[l] - zp));
                }
            }
            total += f64::from(lanes.iter().sum::<f32>() + tail);
        }
        total
    }
}

vectorised! {
    /// out ← silu(gate) · up.
    fn swiglu_forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for i in 0..out.len().min(gate.len()).min(up.len()) {
            out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
        }
    }
}

vectorised! {
    /// Gradients of silu(gate) · up for an upstream gradient g.
    fn swiglu_backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = g.len().min(gate.len()).min(up.len()).min(d_gate.len()).min(d_up.len());
        for i in 0..n {
            let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * sigmoid;
            d_up[i] = g[i] * silu;
            d_gate[i] = g[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// The gate of GELU in its tanh form, sigmoid(2u) with u = √(2/π) · (x + 0.044715 x³), and 2 du/dx.
///
/// (1 + tanh u) / 2 is that sigmoid, which loses no digits where tanh u nears −1.
#[inline(always)]
fn gelu_gate(x: f32) -> (f32, f32) {
    const TWICE_ROOT: f32 = 1.595_769; // 2 √(2/π)
    const CUBIC: f32 = 0.044_715;
    let square = x * x;
    let gate = 1.0 / (1.0 + exp(-TWICE_ROOT * x * (1.0 + CUBIC * square)));
    (gate, TWICE_ROOT * (1.0 + 3.0 * CUBIC * square))
}

vectorised! {
    /// out ← gelu(gate) · up.
    fn geglu_forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for i in 0..out.len().min(gate.len()).min(up.len()) {
            out[i] = gate[i] * gelu_gate(gate[i]).0 * up[i];
        }
    }
}

vectorised! {
    /// Gradients of gelu(gate) · up for an upstream gradient g.
    fn geglu_backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = g.len().min(gate.len()).min(up.len()).min(d_gate.len()).min(d_up.len());
        for i in 0..n {
            let (open, slope) = gelu_gate(gate[i]);
            d_up[i] = g[i] * gate[i] * open;
            d_gate[i] = g[i] * up[i] * (open + gate[i] * open * (1.0 - open) * slope);
        }
    }
}

vectorised! {
    /// x ← cap · tanh(x / cap), as cap · (1 − 2 / (1 + exp(2x / cap))). An infinity, which comes
    /// from an overflow, becomes NaN: capped it would look like a number.
    fn soft_cap_in_place(x: &mut [f32], cap: f32) {
        let twice = 2.0 / cap;
        for v in x.iter_mut() {
            *v = cap * (1.0 - 2.0 / (1.0 + exp(*v * twice))) + *v * 0.0;
        }
    }
}

vectorised! {
    /// g ← g · (1 − (y / cap)²), the gradient of a soft cap whose output is y.
    fn soft_cap_backward(y: &[f32], cap: f32, g: &mut [f32]) {
        let inverse = 1.0 / cap;
        for (g, y) in g.iter_mut().zip(y) {
            let t = y * inverse;
            *g *= 1.0 - t * t;
        }
    }
}

vectorised! {
    /// Rounds a block to 8 bits: values · scale ≈ x with |values| ≤ 127. Returns (scale, Σ values);
    /// the scale is not finite if an element is not.
    fn quantize_block(x: &[f32], values: &mut [i8]) -> (f32, i32) {
        // Magnitudes are in the order of their bits, NaN above infinity: a block that holds one gets
        // a scale that says so, and not a zero in its place.
        let mut lanes = [0u32; LANES];
        for c in x.chunks_exact(LANES) {
            for l in 0..LANES {
                lanes[l] = lanes[l].max(c[l].to_bits() & !SIGN);
            }
        }
        let scale = f32::from_bits(lanes.iter().fold(0, |m, &v| m.max(v))) / 127.0;
        // The inverse of what is smaller may be infinite.
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut sum = 0i32;
        for (q, v) in values.iter_mut().zip(x) {
            // 1.5·2²³ rounds to the nearest integer without a library call; NaN becomes 0, times a
            // scale that is NaN.
            let rounded = ((v * inverse + 12_582_912.0) - 12_582_912.0) as i32;
            *q = rounded as i8;
            sum += rounded;
        }
        (scale, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_ulp_of_the_library() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours - exact).abs() <= 4e-7 * exact + 1e-37,
                "exp({x}): {ours} is not {exact}"
            );
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn reductions_handle_every_tail_length() {
        for n in 0..40usize {
            let a: Vec<f32> = (0..n).map(|i| i as f32 - 3.5).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            assert!((dot(&a, &a) - expected).abs() < 1e-2, "dot of {n}");
            assert_eq!(
                max(&a),
                a.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                "max of {n}"
            );
            if n > 0 {
                let exact = a.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                assert!(
                    (f64::from(logsumexp(&a)) - exact).abs() < 1e-5,
                    "logsumexp of {n}"
                );
            }
        }
    }
    #[test]
    fn what_is_not_finite_is_seen_wherever_it_stands() {
        for n in 0..40usize {
            let mut row = vec![-1.5f32; n];
            assert!(all_finite(&row), "{n}");
            for at in 0..n {
                for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    row[at] = value;
                    assert!(!all_finite(&row), "{value} at {at} of {n}");
                }
                row[at] = f32::MAX;
            }
        }
    }

    #[test]
    fn rounding_and_capping_do_not_hide_what_is_not_finite() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut block = [0.25f32; 32];
            block[19] = value;
            let (scale, _) = quantize_block(&block, &mut [0; 32]);
            assert!(!scale.is_finite(), "{value}: {scale}");
            soft_cap_in_place(&mut block, 30.0);
            assert!(block[19].is_nan() && block[18].is_finite(), "{value}");
        }
        let (scale, sum) = quantize_block(&[-2.0f32; 32], &mut [0; 32]);
        assert_eq!((scale, sum), (2.0 / 127.0, -127 * 32));
    }
}
