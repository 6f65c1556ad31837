//! The function that a probe computes: linear in the response's hidden states and n-grams, to which
//! cross-validation may add the prompt's hidden states and products of both.
//!
//! Whether a refusal is wrong depends on the request, which no sum of a term for the prompt and a
//! term for the response can express, but their products can. There are as many products as the
//! square of the hidden size, so the fit uses similarities between rows (the kernel trick): the
//! product of two similarities is the similarity of all products ([`super::kernel`]).

use serde::{Deserialize, Serialize};

use super::kernel::{Gram, RidgeFit, dot};
use super::text::{self, SparseVector, Vocabulary};

/// The terms that are summed, besides the response's hidden states and n-grams, which always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// The prompt's hidden states.
    pub prompt: bool,
    /// Products of the prompt's and the response's hidden states.
    pub(crate) products: bool,
}

impl Form {
    /// All forms, simplest first.
    pub(crate) const ALL: [Form; 4] = [
        Form {
            prompt: false,
            products: false,
        },
        Form {
            prompt: true,
            products: false,
        },
        Form {
            prompt: false,
            products: true,
        },
        Form {
            prompt: true,
            products: true,
        },
    ];
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.prompt, self.products) {
            (false, false) => "response",
            (true, false) => "response + prompt",
            (false, true) => "response + products",
            (true, true) => "response + prompt + products",
        })
    }
}

/// Standardises the columns of one half (prompt or response) to mean 0 and deviation 1, then scales
/// every row to length 1, so that similarities are between −1 and 1 for every hidden size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scale {
    #[serde(with = "super::bits::floats")]
    mean: Vec<f32>,
    /// Reciprocals of the columns' standard deviations; 0 for a constant column.
    #[serde(with = "super::bits::floats")]
    #[serde(rename = "by")]
    inverse_deviation: Vec<f32>,
}

impl Scale {
    fn fit(rows: &[&[f32]]) -> Scale {
        let width = rows.first().map_or(0, |row| row.len());
        let count = rows.len().max(1) as f64;
        let mut mean = vec![0.0f64; width];
        for row in rows {
            let parts = mean.iter_mut().zip(*row);
            parts.for_each(|(m, v)| *m += f64::from(*v) / count);
        }
        let mut square = vec![0.0f64; width];
        for row in rows {
            let parts = square.iter_mut().zip(*row).zip(&mean);
            parts.for_each(|((s, v), m)| *s += (f64::from(*v) - m).powi(2) / count);
        }
        let inverse = |variance: &f64| match variance.sqrt() {
            deviation if deviation > 1e-8 => (1.0 / deviation) as f32,
            _ => 0.0,
        };
        Scale {
            inverse_deviation: square.iter().map(inverse).collect(),
            mean: mean.iter().map(|m| *m as f32).collect(),
        }
    }

    fn apply(&self, row: &[f32]) -> Vec<f32> {
        let parts = row.iter().zip(&self.mean).zip(&self.inverse_deviation);
        let mut out: Vec<f32> = parts.map(|((v, m), s)| (v - m) * s).collect();
        normalise(&mut out);
        out
    }
}

/// Turns hidden states and n-grams into vectors; fitted on the rows without their verdicts. Each
/// layer's vector is scaled to length 1, and so is their sum: the layers share one residual stream,
/// and their mean predicts verdicts better than a single layer chosen by cross-validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowEncoder {
    /// Per layer, for the prompt and for the response.
    layers: Vec<[Scale; 2]>,
    #[serde(rename = "words")]
    vocabulary: Vocabulary,
}

/// Rows as vectors, one per row: prompt and response (hidden size each), and n-grams of the
/// response.
#[derive(Clone, Debug, Default)]
pub(crate) struct EncodedRows {
    prompt: Vec<Vec<f32>>,
    response: Vec<Vec<f32>>,
    ngrams: Vec<SparseVector>,
}

impl RowEncoder {
    /// Fits the scales. `hidden` has one vector per row and layer, the prompt's half followed by
    /// the response's; `vocabulary` was fitted on the responses.
    pub(crate) fn fit(hidden: &[Vec<Vec<f32>>], vocabulary: Vocabulary) -> RowEncoder {
        let layers = hidden.first().map_or(0, Vec::len);
        let scales = |layer: usize| {
            let rows = hidden.iter().map(|row| halves(&row[layer]));
            let (prompts, responses): (Vec<&[f32]>, Vec<&[f32]>) = rows.unzip();
            [Scale::fit(&prompts), Scale::fit(&responses)]
        };
        RowEncoder {
            layers: (0..layers).map(scales).collect(),
            vocabulary,
        }
    }

    /// Encodes rows, given the vectors of their responses' n-grams.
    pub(crate) fn encode(&self, hidden: &[Vec<Vec<f32>>], ngrams: &[SparseVector]) -> EncodedRows {
        let mut out = EncodedRows {
            ngrams: ngrams.to_vec(),
            ..EncodedRows::default()
        };
        for row in hidden {
            let [prompt, response] = self.states(row);
            out.prompt.push(prompt);
            out.response.push(response);
        }
        out
    }

    /// One vector for the prompt and one for the response.
    fn states(&self, row: &[Vec<f32>]) -> [Vec<f32>; 2] {
        let width = row.first().map_or(0, |layer| layer.len() / 2);
        let mut sums = [vec![0.0f32; width], vec![0.0f32; width]];
        for (layer, scales) in row.iter().zip(&self.layers) {
            let (prompt, response) = halves(layer);
            for ((sum, scale), half) in sums.iter_mut().zip(scales).zip([prompt, response]) {
                let unit = scale.apply(half);
                sum.iter_mut().zip(unit).for_each(|(s, v)| *s += v);
            }
        }
        sums.iter_mut().for_each(|sum| normalise(sum));
        sums
    }
}

/// Scales a vector to length 1; zero stays zero.
fn normalise(row: &mut [f32]) {
    let length = dot(row, row).sqrt();
    let scale = if length > 1e-12 { 1.0 / length } else { 0.0 };
    row.iter_mut().for_each(|v| *v *= scale);
}

fn halves(row: &[f32]) -> (&[f32], &[f32]) {
    row.split_at(row.len() / 2)
}

/// Similarities between rows, one matrix per term.
#[derive(Clone, Debug)]
pub(crate) struct Similarities {
    prompt: Gram,
    response: Gram,
    ngrams: Gram,
}

impl Similarities {
    /// The similarities of all rows with each other.
    pub(crate) fn new(rows: &EncodedRows) -> Similarities {
        Similarities {
            prompt: Gram::dense(&rows.prompt),
            response: Gram::dense(&rows.response),
            ngrams: Gram::sparse(&rows.ngrams),
        }
    }

    /// The sum of the terms of a form.
    pub(crate) fn of(&self, form: Form) -> Gram {
        let parts = [&self.prompt, &self.response, &self.ngrams];
        match (form.prompt, form.products) {
            (false, false) => Gram::combine(parts, |[_, r, w]| r + w),
            (true, false) => Gram::combine(parts, |[p, r, w]| r + w + p),
            (false, true) => Gram::combine(parts, |[p, r, w]| r + w + p * r),
            (true, true) => Gram::combine(parts, |[p, r, w]| r + w + p + p * r),
        }
    }
}

/// A function of an exchange, fitted by kernel ridge regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Blend {
    /// The terms that it sums.
    pub(crate) form: Form,
    #[serde(rename = "reader")]
    encoder: RowEncoder,
    /// Weights of the prompt's hidden states; empty if the form has no such term.
    #[serde(with = "super::bits::floats")]
    prompt: Vec<f32>,
    #[serde(with = "super::bits::floats")]
    response: Vec<f32>,
    #[serde(with = "super::bits::floats")]
    #[serde(rename = "words")]
    ngrams: Vec<f32>,
    /// Weights of the products, (prompt, response); empty if the form has no such term.
    #[serde(with = "super::bits::floats")]
    products: Vec<f32>,
    offset: f32,
}

impl Blend {
    /// The primal form of a fit: weights per row become weights per feature.
    pub(crate) fn new(
        form: Form,
        encoder: RowEncoder,
        rows: &EncodedRows,
        fit: &RidgeFit,
    ) -> Blend {
        let weights = &fit.weights;
        let mut ngrams = vec![0.0f32; text::WIDTH];
        for (row, weight) in rows.ngrams.iter().zip(weights) {
            for (bucket, value) in row {
                ngrams[*bucket as usize] += weight * value;
            }
        }
        let prompt = if form.prompt {
            weighted_sum(&rows.prompt, weights)
        } else {
            Vec::new()
        };
        let products = if form.products {
            weighted_products(rows, weights)
        } else {
            Vec::new()
        };
        Blend {
            response: weighted_sum(&rows.response, weights),
            form,
            encoder,
            prompt,
            ngrams,
            products,
            offset: fit.mean,
        }
    }

    /// The uncalibrated score of a response: about 1 for a violation, about −1 otherwise. `hidden`
    /// has one vector per layer, as in [`RowEncoder::fit`].
    pub(crate) fn value(&self, hidden: &[Vec<f32>], response: &str) -> f64 {
        let [p, r] = self.encoder.states(hidden);
        let mut value = self.offset + dot(&r, &self.response);
        value += text::dot(&self.encoder.vocabulary.vector(response), &self.ngrams);
        if self.form.prompt {
            value += dot(&p, &self.prompt);
        }
        if self.form.products {
            let rows = self.products.chunks_exact(r.len().max(1));
            value += p
                .iter()
                .zip(rows)
                .map(|(p, row)| p * dot(row, &r))
                .sum::<f32>();
        }
        f64::from(value)
    }
}

fn weighted_sum(rows: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; rows.first().map_or(0, Vec::len)];
    for (row, weight) in rows.iter().zip(weights) {
        out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
    }
    out
}

/// Σ weight · prompt ⊗ response.
fn weighted_products(rows: &EncodedRows, weights: &[f32]) -> Vec<f32> {
    let width = rows.response.first().map_or(0, Vec::len);
    let mut out = vec![0.0f32; rows.prompt.first().map_or(0, Vec::len) * width];
    for ((p, r), weight) in rows.prompt.iter().zip(&rows.response).zip(weights) {
        for (row, value) in out.chunks_exact_mut(width.max(1)).zip(p) {
            let scale = weight * value;
            row.iter_mut().zip(r).for_each(|(o, v)| *o += scale * v);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts and responses of two kinds each; the verdict is whether the kinds differ.
    fn rows() -> (Vec<Vec<Vec<f32>>>, Vec<f32>) {
        let mut hidden = Vec::new();
        let mut target = Vec::new();
        for i in 0..64 {
            let (a, b) = ([-1.0, 1.0][i % 2], [-1.0, 1.0][i / 2 % 2]);
            let noise = (i as f32 * 0.7).sin() * 0.1;
            let layer = vec![a, noise, 0.0, b, -noise, 1.0];
            hidden.push(vec![layer.clone(), layer]);
            target.push(-a * b);
        }
        (hidden, target)
    }

    /// The primal function equals the kernel form, for every form of terms; only products can
    /// express a parity.
    #[test]
    fn a_function_equals_its_similarities() {
        let (hidden, target) = rows();
        let texts = ["the same words"; 64];
        let known = Vocabulary::fit(texts.iter().copied());
        let ngrams: Vec<SparseVector> = texts.iter().map(|t| known.vector(t)).collect();
        let encoder = RowEncoder::fit(&hidden, known);
        let rows = encoder.encode(&hidden, &ngrams);
        let similar = Similarities::new(&rows);
        for form in Form::ALL {
            let gram = similar.of(form);
            let fit = gram.ridge(&[true; 64], &target, 0.1);
            let blend = Blend::new(form, encoder.clone(), &rows, &fit);
            let mut right = 0;
            for (i, value) in gram.apply(&fit.weights).iter().enumerate() {
                let got = blend.value(&hidden[i], texts[i]);
                assert!(
                    (got - f64::from(value + fit.mean)).abs() < 1e-3,
                    "{form}: {got} {value}"
                );
                right += usize::from(got * f64::from(target[i]) > 0.0);
            }
            assert_eq!(right == 64, form.products, "{form}: {right} of 64");
            let text = serde_json::to_string(&blend).unwrap();
            assert_eq!(serde_json::from_str::<Blend>(&text).unwrap(), blend);
        }
    }
}
