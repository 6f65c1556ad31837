//! Products of what a prompt and a response are about.
//!
//! Whether a refusal is wrong depends on what was asked: a question that no sum of one part about
//! the prompt and one about the response can answer. Both halves are therefore reduced to their
//! leading principal directions, and every product of two of them is a further feature.

use serde::{Deserialize, Serialize};

use super::logistic::dot;

/// Principal directions of each half.
const DIRECTIONS: usize = 16;
/// Rounds of subspace iteration; the leading directions stand out after a few.
const ROUNDS: usize = 8;

/// A learnt map from a row of two halves to the row with products behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Products {
    halves: [Half; 2],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Half {
    mean: Vec<f32>,
    /// Reciprocals of the columns' standard deviations, 0 for a constant one.
    scale: Vec<f32>,
    /// (directions, width), each scaled to give coordinates of deviation 1.
    directions: Vec<Vec<f32>>,
}

impl Products {
    /// Learns the directions from rows of two halves of equal width; no labels are needed.
    pub fn fit(rows: &[&[f32]]) -> Products {
        let half = |which: usize| {
            let width = rows.first().map_or(0, |row| row.len() / 2);
            let part: Vec<&[f32]> = rows.iter().map(|r| &r[which * width..][..width]).collect();
            Half::fit(&part, width)
        };
        Products {
            halves: [half(0), half(1)],
        }
    }

    /// The row and its products.
    pub fn extend(&self, row: &[f32]) -> Vec<f32> {
        let (first, second) = row.split_at(row.len() / 2);
        let (a, b) = (
            self.halves[0].coordinates(first),
            self.halves[1].coordinates(second),
        );
        let mut out = row.to_vec();
        out.extend(a.iter().flat_map(|x| b.iter().map(move |y| x * y)));
        out
    }
}

impl Half {
    fn fit(rows: &[&[f32]], width: usize) -> Half {
        let (mean, scale) = super::logistic::moments(rows, width);
        let standard: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let parts = row.iter().zip(&mean).zip(&scale);
                parts.map(|((v, m), s)| (v - m) * s).collect()
            })
            .collect();
        let mut directions = start(width);
        for _ in 0..ROUNDS {
            let mut next = vec![vec![0.0f32; width]; directions.len()];
            for row in &standard {
                for (direction, sum) in directions.iter().zip(&mut next) {
                    let along = dot(row, direction);
                    sum.iter_mut().zip(row).for_each(|(s, v)| *s += along * v);
                }
            }
            directions = orthonormal(next);
        }
        for direction in &mut directions {
            let square: f32 = standard.iter().map(|row| dot(row, direction).powi(2)).sum();
            let deviation = (square / standard.len().max(1) as f32).sqrt();
            let by = if deviation > 1e-6 {
                1.0 / deviation
            } else {
                0.0
            };
            direction.iter_mut().for_each(|v| *v *= by);
        }
        Half {
            mean,
            scale,
            directions,
        }
    }

    fn coordinates(&self, row: &[f32]) -> Vec<f32> {
        let parts = row.iter().zip(&self.mean).zip(&self.scale);
        let standard: Vec<f32> = parts.map(|((v, m), s)| (v - m) * s).collect();
        self.directions.iter().map(|d| dot(&standard, d)).collect()
    }
}

/// Directions to begin with, the same every time.
fn start(width: usize) -> Vec<Vec<f32>> {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut row = || (0..width).map(|_| random.random::<f32>() - 0.5).collect();
    let rows = (0..DIRECTIONS.min(width)).map(|_| row()).collect();
    orthonormal(rows)
}

/// Gram and Schmidt; a row that the ones before it span becomes zero.
fn orthonormal(mut rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    for index in 0..rows.len() {
        let (before, rest) = rows.split_at_mut(index);
        let row = &mut rest[0];
        for other in before.iter() {
            let along = dot(row, other);
            row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
        }
        let length = dot(row, row).sqrt();
        let by = if length > 1e-12 { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|v| *v *= by);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sign of the first half's leading coordinate times the second's is a parity, which no
    /// linear function of the two is.
    #[test]
    fn products_show_a_parity() {
        let rows: Vec<Vec<f32>> = (0..64)
            .map(|i| {
                let (a, b) = ([-1.0, 1.0][i % 2], [-1.0, 1.0][i / 2 % 2]);
                let noise = (i as f32 * 0.7).sin() * 0.01;
                vec![a, a + noise, 0.0, b, b - noise, 1.0]
            })
            .collect();
        let views: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let products = Products::fit(&views);
        for row in &rows {
            let extended = products.extend(row);
            assert_eq!(extended[..6], row[..]);
            let parity = row[0] * row[3];
            // The directions' signs are arbitrary, so compare with the first row's.
            let first = products.extend(&rows[0])[6] * (rows[0][0] * rows[0][3]);
            assert!((extended[6] * parity - first).abs() < 0.1, "{row:?}");
        }
        assert_eq!(Products::fit(&views), products);
    }
}
