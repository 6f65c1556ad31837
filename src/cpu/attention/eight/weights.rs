//! Weights of a segment's tokens, rounded to 16 bits.

use std::ops::Range;

use super::{BLOCKS, FEW, LINES, Limbs, Scores, TIMES};
use crate::attention::ahead::Ahead;
use crate::attention::lanes::{LANES, Lanes};
use crate::attention::state::State;
use crate::kv::Eight;

/// The largest rounded weight. With 127 as the largest value a segment's sum is just below 2³¹.
const WEIGHT: f32 = 65_535.0;

/// 2ˣ for |x| ≤ 1/2, the highest power first.
const POWERS: [f32; 5] = [0.009_656_711, 0.055_838_283, 0.240_225_3, 0.693_136_75, 1.0];

/// What weights are multiplied with before they are rounded, and their products' sums afterwards.
pub(super) struct Factors {
    /// Tokens of the segment that this is for.
    pub(super) tokens: (usize, usize),
    before: [[f32; LANES]; BLOCKS],
    pub(super) after: f32,
}

/// Weights from scores, rounded, and their sum, which is not.
#[inline(always)]
pub(super) fn weigh<V: Lanes>(
    strips: &Range<usize>,
    factors: &Factors,
    scores: &Scores,
    (state, limbs): (&mut State, &mut Limbs),
    ahead: &mut Ahead,
) {
    let shift = V::splat(-state.shift());
    let mut sum = V::splat(0.0);
    for strip in strips.clone() {
        let mut weights = [V::splat(0.0); FEW];
        for b in 0..FEW {
            let block = strip * FEW + b;
            let below = V::load(&scores[block]).plus(shift);
            let weight = power(below.times(V::splat(std::f32::consts::LOG2_E)));
            sum = sum.plus(weight);
            weights[b] = weight.times(V::load(&factors.before[block]));
        }
        for _ in 0..TIMES {
            ahead.bring::<V>(LINES);
        }
        let [high, low] = V::limbs(weights);
        (limbs[0][strip], limbs[1][strip]) = (high, low);
    }
    sum.store(&mut state.sums.0);
}

/// 2ˣ for x ≤ 0 with a relative error below 8e-6, about what rounding a weight does; zero below −126, and 1 for 0. The NaN
/// of an operation stays one.
#[inline(always)]
fn power<V: Lanes>(x: V) -> V {
    // Adding 1.5 · 2²³ rounds to the nearest integer.
    let (lowest, round) = (V::splat(-126.0), V::splat(12_582_912.0));
    let clamped = lowest.larger(x);
    let rounded = clamped.plus(round);
    let r = clamped.minus(rounded.minus(round));
    let mut p = V::splat(POWERS[0]);
    for coefficient in &POWERS[1..] {
        p = p.multiply_add(r, V::splat(*coefficient));
    }
    p.raised_by(rounded).zero_below(x, lowest)
}

impl Factors {
    /// For a query that sees nothing.
    pub(super) const NONE: Self = Self {
        tokens: (0, 0),
        before: [[0.0; LANES]; BLOCKS],
        after: 0.0,
    };

    /// For a query that sees these tokens of a segment: by the largest value among them, and nothing for the others. A value
    /// that is not finite has an infinite step, so that the sums are not finite either.
    #[inline(always)]
    pub(super) fn set<V: Lanes>(&mut self, blocks: &[Eight; BLOCKS], tokens: (usize, usize)) {
        self.tokens = tokens;
        let mut largest = V::splat(0.0);
        for block in 0..BLOCKS {
            let at = block * LANES;
            self.before[block] = blocks[block].value_scales();
            let steps = &mut self.before[block];
            if tokens.0 > at || tokens.1 < at + LANES {
                steps[..tokens.0.saturating_sub(at).min(LANES)].fill(0.0);
                steps[tokens.1.saturating_sub(at).min(LANES)..].fill(0.0);
            }
            largest = V::load(steps).larger(largest);
        }
        let largest = largest.largest();
        let factor = V::splat(if largest > 0.0 { WEIGHT / largest } else { 0.0 });
        for steps in &mut self.before {
            V::load(steps).times(factor).store(steps);
        }
        self.after = largest / WEIGHT;
    }
}
