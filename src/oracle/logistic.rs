//! Logistic regression with an L2 penalty, by L-BFGS. Deterministic: sums run in row order.

use serde::{Deserialize, Serialize};

/// Steps of the optimiser; it usually stops far earlier, on the gradient.
const MAX_STEPS: usize = 200;
/// Gradient, largest component, at which the fit is done.
const TOLERANCE: f64 = 1e-4;
/// Remembered updates of L-BFGS.
const MEMORY: usize = 8;

/// Rows of features with their true classes.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    /// (rows, width)
    pub rows: Vec<&'a [f32]>,
    /// Whether each row is positive.
    pub positive: Vec<bool>,
}

/// A fitted model: z = w · (x − mean) / scale + b.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    mean: Vec<f32>,
    scale: Vec<f32>,
    weights: Vec<f32>,
    bias: f32,
}

impl Linear {
    /// The log-odds of a row, before calibration.
    pub fn logit(&self, row: &[f32]) -> f64 {
        let parts = row
            .iter()
            .zip(&self.mean)
            .zip(&self.scale)
            .zip(&self.weights);
        let sum: f64 = parts
            .map(|(((x, m), s), w)| f64::from((x - m) * s * w))
            .sum();
        sum + f64::from(self.bias)
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weights.len()
    }

    /// Fits `table`; `penalty` multiplies ½‖w‖² beside the mean log loss. The bias is free.
    pub fn fit(table: &Table<'_>, penalty: f64) -> Linear {
        let width = table.rows.first().map_or(0, |row| row.len());
        let (mean, scale) = moments(&table.rows, width);
        let mut x = Vec::with_capacity(table.rows.len() * width);
        for row in &table.rows {
            let standard = row.iter().zip(&mean).zip(&scale);
            x.extend(standard.map(|((v, m), s)| (v - m) * s));
        }
        let problem = Problem {
            x,
            width,
            positive: &table.positive,
            penalty,
        };
        let mut solution = minimise(&problem);
        let bias = solution.pop().unwrap_or_default();
        Linear {
            mean,
            scale,
            weights: solution,
            bias,
        }
    }
}

/// Per column: mean, and the reciprocal of the standard deviation (0 for a constant column).
pub(super) fn moments(rows: &[&[f32]], width: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len().max(1) as f64;
    let mut mean = vec![0.0f64; width];
    for row in rows {
        mean.iter_mut()
            .zip(*row)
            .for_each(|(m, v)| *m += f64::from(*v));
    }
    mean.iter_mut().for_each(|m| *m /= count);
    let mut square = vec![0.0f64; width];
    for row in rows {
        let parts = square.iter_mut().zip(*row).zip(&mean);
        parts.for_each(|((s, v), m)| *s += (f64::from(*v) - m).powi(2));
    }
    let scale = square.iter().map(|s| {
        let deviation = (s / count).sqrt();
        if deviation > 1e-8 {
            (1.0 / deviation) as f32
        } else {
            0.0
        }
    });
    (mean.iter().map(|m| *m as f32).collect(), scale.collect())
}

struct Problem<'a> {
    /// Standardised rows, (rows, width).
    x: Vec<f32>,
    width: usize,
    positive: &'a [bool],
    penalty: f64,
}

impl Problem<'_> {
    /// Loss and gradient at weights followed by the bias.
    fn at(&self, parameters: &[f32]) -> (f64, Vec<f32>) {
        let (weights, bias) = parameters.split_at(self.width);
        let count = self.positive.len().max(1) as f64;
        let mut loss = 0.0;
        let mut gradient = vec![0.0f32; self.width + 1];
        for (row, positive) in self.x.chunks_exact(self.width.max(1)).zip(self.positive) {
            let z = f64::from(dot(row, weights) + bias[0]);
            let sign = if *positive { 1.0 } else { -1.0 };
            loss += softplus(-sign * z) / count;
            let residual = ((sigmoid(z) - f64::from(u8::from(*positive))) / count) as f32;
            let parts = gradient.iter_mut().zip(row);
            parts.for_each(|(g, v)| *g += residual * v);
            gradient[self.width] += residual;
        }
        for (g, w) in gradient.iter_mut().zip(weights) {
            loss += 0.5 * self.penalty * f64::from(*w).powi(2);
            *g += (self.penalty * f64::from(*w)) as f32;
        }
        (loss, gradient)
    }
}

/// L-BFGS with a backtracking line search (Nocedal and Wright, algorithm 7.5).
fn minimise(problem: &Problem<'_>) -> Vec<f32> {
    let mut at = vec![0.0f32; problem.width + 1];
    let (mut loss, mut gradient) = problem.at(&at);
    let mut memory: std::collections::VecDeque<(Vec<f32>, Vec<f32>)> = Default::default();
    for _ in 0..MAX_STEPS {
        let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        if f64::from(largest) < TOLERANCE {
            break;
        }
        let mut direction = two_loops(&gradient, &memory);
        let mut slope = f64::from(dot(&direction, &gradient));
        if slope >= 0.0 {
            memory.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = f64::from(dot(&direction, &gradient));
        }
        let Some((step, next_loss, next_gradient, next)) =
            line_search(problem, &at, &direction, (loss, slope))
        else {
            break;
        };
        let s: Vec<f32> = direction.iter().map(|d| step * d).collect();
        let y: Vec<f32> = next_gradient
            .iter()
            .zip(&gradient)
            .map(|(a, b)| a - b)
            .collect();
        if dot(&s, &y) > 1e-12 {
            memory.push_back((s, y));
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        (at, loss, gradient) = (next, next_loss, next_gradient);
    }
    at
}

/// −H g from the remembered updates.
fn two_loops(
    gradient: &[f32],
    memory: &std::collections::VecDeque<(Vec<f32>, Vec<f32>)>,
) -> Vec<f32> {
    let mut q = gradient.to_vec();
    let mut alphas = Vec::with_capacity(memory.len());
    for (s, y) in memory.iter().rev() {
        let alpha = dot(s, &q) / dot(s, y);
        q.iter_mut().zip(y).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    if let Some((s, y)) = memory.back() {
        let gamma = dot(s, y) / dot(y, y);
        q.iter_mut().for_each(|q| *q *= gamma);
    }
    for ((s, y), alpha) in memory.iter().zip(alphas.iter().rev()) {
        let beta = dot(y, &q) / dot(s, y);
        q.iter_mut()
            .zip(s)
            .for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q.iter_mut().for_each(|q| *q = -*q);
    q
}

/// Halves the step until the loss falls enough (Armijo); `None` if no step helps.
fn line_search(
    problem: &Problem<'_>,
    at: &[f32],
    direction: &[f32],
    (loss, slope): (f64, f64),
) -> Option<(f32, f64, Vec<f32>, Vec<f32>)> {
    let mut step = 1.0f32;
    for _ in 0..30 {
        let next: Vec<f32> = at
            .iter()
            .zip(direction)
            .map(|(a, d)| a + step * d)
            .collect();
        let (next_loss, gradient) = problem.at(&next);
        if next_loss <= loss + 1e-4 * f64::from(step) * slope {
            return Some((step, next_loss, gradient, next));
        }
        step *= 0.5;
    }
    None
}

/// In sixteen lanes, which the compiler turns into vector code.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let (a_main, b_main) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_main.remainder().iter().zip(b_main.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (x, y) in a_main.zip(b_main) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// 1 / (1 + e^(−z)).
pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// log(1 + e^z), without overflow.
pub fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Platt's scaling: p = σ(slope · z + offset), fitted on log-odds of rows the model did not see.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Multiplies the log-odds.
    #[serde(with = "super::bits")]
    pub slope: f64,
    /// Is added.
    #[serde(with = "super::bits")]
    pub offset: f64,
}

impl Calibration {
    /// The calibrated probability.
    pub fn probability(self, logit: f64) -> f64 {
        sigmoid(self.slope * logit + self.offset)
    }

    /// Newton's method with Platt's smoothed targets (Platt 1999, section 2.2). A slope that is
    /// not positive means that the model knows nothing: then the base rate is all there is.
    pub fn fit(logits: &[f64], positive: &[bool]) -> Calibration {
        let count = positive.iter().filter(|p| **p).count() as f64;
        let other = positive.len() as f64 - count;
        let target = |p: bool| match p {
            true => (count + 1.0) / (count + 2.0),
            false => 1.0 / (other + 2.0),
        };
        let base = ((count + 1.0) / (other + 1.0)).ln();
        let mut at = Calibration {
            slope: 0.0,
            offset: base,
        };
        for _ in 0..50 {
            let (mut g, mut h) = ([0.0f64; 2], [1e-9f64, 0.0, 1e-9]);
            for (z, p) in logits.iter().zip(positive) {
                let probability = at.probability(*z);
                let (r, v) = (probability - target(*p), probability * (1.0 - probability));
                g = [g[0] + r * z, g[1] + r];
                h = [h[0] + v * z * z, h[1] + v * z, h[2] + v];
            }
            let determinant = h[0] * h[2] - h[1] * h[1];
            if determinant.abs() < 1e-12 {
                break;
            }
            let step = [
                (h[2] * g[0] - h[1] * g[1]) / determinant,
                (h[0] * g[1] - h[1] * g[0]) / determinant,
            ];
            at.slope -= step[0];
            at.offset -= step[1];
            if step[0].abs() + step[1].abs() < 1e-8 {
                break;
            }
        }
        match at.slope > 0.0 && at.slope.is_finite() && at.offset.is_finite() {
            true => at,
            false => Calibration {
                slope: 0.0,
                offset: base,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separable_table_is_separated_and_the_optimum_is_one() {
        let rows: Vec<[f32; 2]> = (0..40).map(|i| [(i % 7) as f32, i as f32]).collect();
        let positive: Vec<bool> = (0..40).map(|i| i >= 20).collect();
        let table = Table {
            rows: rows.iter().map(|r| &r[..]).collect(),
            positive: positive.clone(),
        };
        let model = Linear::fit(&table, 1e-4);
        for (row, positive) in rows.iter().zip(&positive) {
            assert_eq!(model.logit(row) > 0.0, *positive, "{row:?}");
        }
        // The gradient at the solution vanishes: no other point is better.
        let (mean, scale) = moments(&table.rows, 2);
        let x = rows
            .iter()
            .flat_map(|r| [(r[0] - mean[0]) * scale[0], (r[1] - mean[1]) * scale[1]]);
        let problem = Problem {
            x: x.collect(),
            width: 2,
            positive: &positive,
            penalty: 1e-4,
        };
        let mut at = model.weights.clone();
        at.push(model.bias);
        let (_, gradient) = problem.at(&at);
        assert!(gradient.iter().all(|g| g.abs() < 1e-3), "{gradient:?}");
        assert_eq!(
            Linear::fit(&table, 1e-4),
            model,
            "the same table gives the same bits"
        );
    }

    #[test]
    fn calibration_undoes_a_wrong_scale() {
        // True log-odds t in −2..2, shown three times as large.
        let mut logits = Vec::new();
        let mut positive = Vec::new();
        for step in -20..=20 {
            let t = f64::from(step) / 10.0;
            for k in 0..100 {
                logits.push(3.0 * t);
                positive.push(f64::from(k) < 100.0 * sigmoid(t));
            }
        }
        let fitted = Calibration::fit(&logits, &positive);
        assert!((fitted.slope - 1.0 / 3.0).abs() < 0.02, "{fitted:?}");
        assert!(fitted.offset.abs() < 0.05, "{fitted:?}");
        // Log-odds that point the wrong way are worth nothing.
        let wrong: Vec<f64> = logits.iter().map(|z| -z).collect();
        assert_eq!(Calibration::fit(&wrong, &positive).slope, 0.0);
    }
}
