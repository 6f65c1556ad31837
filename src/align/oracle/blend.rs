//! What a probe computes: a linear function of the response's hidden states and of its words, to
//! which cross-validation may add the prompt's hidden states and products of both.
//!
//! Whether a refusal is wrong depends on what was asked: a question that no sum of one part about
//! the prompt and one about the response can answer, and that their products do. There are as many
//! products as the square of the hidden size, so the fit goes through similarities of rows, where
//! the product of two similarities is the similarity of all products ([`super::kernel`]).

use serde::{Deserialize, Serialize};

use super::kernel::{Gram, dot};
use super::text::{self, Sparse, Vocabulary};

/// Which parts are summed. The response's hidden states and words always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// The prompt's hidden states.
    pub prompt: bool,
    /// Products of the prompt's and the response's hidden states.
    pub products: bool,
}

impl Form {
    /// All of them, simpler ones first.
    pub const ALL: [Form; 4] = [
        Form::new(false, false),
        Form::new(true, false),
        Form::new(false, true),
        Form::new(true, true),
    ];

    const fn new(prompt: bool, products: bool) -> Form {
        Form { prompt, products }
    }
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

/// A half's columns brought to mean 0 and deviation 1, then every row to length 1, so that similarities
/// lie between −1 and 1 whatever the model's width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scale {
    #[serde(with = "super::bits::floats")]
    mean: Vec<f32>,
    /// Reciprocals of the columns' standard deviations, 0 for a constant one.
    #[serde(with = "super::bits::floats")]
    by: Vec<f32>,
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
        let by = square.iter().map(|s| match s.sqrt() {
            deviation if deviation > 1e-8 => (1.0 / deviation) as f32,
            _ => 0.0,
        });
        Scale {
            by: by.collect(),
            mean: mean.iter().map(|m| *m as f32).collect(),
        }
    }

    fn apply(&self, row: &[f32]) -> Vec<f32> {
        let parts = row.iter().zip(&self.mean).zip(&self.by);
        let mut out: Vec<f32> = parts.map(|((v, m), s)| (v - m) * s).collect();
        normalise(&mut out);
        out
    }
}

/// How rows are read: learnt from the rows alone, without their verdicts. Each layer's vector is
/// brought to length 1, and their sum to length 1 again: the layers share one residual stream, and
/// their mean shows a verdict better than whichever layer cross-validation would choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reader {
    /// Per layer the prompt's and the response's.
    layers: Vec<[Scale; 2]>,
    words: Vocabulary,
}

/// Rows as a reader sees them.
#[derive(Clone, Debug, Default)]
pub struct Read {
    prompt: Vec<Vec<f32>>,
    response: Vec<Vec<f32>>,
    words: Vec<Sparse>,
}

impl Reader {
    /// Learns from hidden states, per row and layer the prompt's half and then the response's, and
    /// from the responses' words.
    pub fn fit(hidden: &[Vec<Vec<f32>>], words: Vocabulary) -> Reader {
        let layers = hidden.first().map_or(0, Vec::len);
        let of = |layer: usize| {
            let rows = hidden.iter().map(|row| halves(&row[layer]));
            let (prompts, responses): (Vec<&[f32]>, Vec<&[f32]>) = rows.unzip();
            [Scale::fit(&prompts), Scale::fit(&responses)]
        };
        Reader {
            layers: (0..layers).map(of).collect(),
            words,
        }
    }

    /// Reads rows whose words were turned into vectors before.
    pub fn read(&self, hidden: &[Vec<Vec<f32>>], words: &[Sparse]) -> Read {
        let mut out = Read {
            words: words.to_vec(),
            ..Read::default()
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

/// Brings a vector to length 1; zero stays zero.
fn normalise(row: &mut [f32]) {
    let length = dot(row, row).sqrt();
    let by = if length > 1e-12 { 1.0 / length } else { 0.0 };
    row.iter_mut().for_each(|v| *v *= by);
}

fn halves(row: &[f32]) -> (&[f32], &[f32]) {
    row.split_at(row.len() / 2)
}

/// Similarities of rows, part by part.
#[derive(Clone, Debug)]
pub struct Similarities {
    prompt: Gram,
    response: Gram,
    words: Gram,
}

impl Similarities {
    /// Of all rows.
    pub fn new(read: &Read) -> Similarities {
        Similarities {
            prompt: Gram::dense(&read.prompt),
            response: Gram::dense(&read.response),
            words: Gram::sparse(&read.words),
        }
    }

    /// Similarities under a form.
    pub fn of(&self, form: Form) -> Gram {
        let parts = [&self.prompt, &self.response, &self.words];
        match (form.prompt, form.products) {
            (false, false) => Gram::combine(parts, |[_, r, w]| r + w),
            (true, false) => Gram::combine(parts, |[p, r, w]| r + w + p),
            (false, true) => Gram::combine(parts, |[p, r, w]| r + w + p * r),
            (true, true) => Gram::combine(parts, |[p, r, w]| r + w + p + p * r),
        }
    }
}

/// A fitted function of an exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blend {
    /// Its parts.
    pub form: Form,
    reader: Reader,
    /// Empty if the form has none.
    #[serde(with = "super::bits::floats")]
    prompt: Vec<f32>,
    #[serde(with = "super::bits::floats")]
    response: Vec<f32>,
    #[serde(with = "super::bits::floats")]
    words: Vec<f32>,
    /// (prompt, response); empty if the form has none.
    #[serde(with = "super::bits::floats")]
    products: Vec<f32>,
    offset: f32,
}

impl Blend {
    /// The function that a weight per row stands for.
    pub fn new(form: Form, reader: Reader, read: &Read, (weights, offset): (&[f32], f32)) -> Blend {
        let mut words = vec![0.0f32; text::WIDTH];
        for (row, weight) in read.words.iter().zip(weights) {
            for (place, value) in row {
                words[*place as usize] += weight * value;
            }
        }
        let prompt = match form.prompt {
            true => sum(&read.prompt, weights),
            false => Vec::new(),
        };
        let products = match form.products {
            true => outer(read, weights),
            false => Vec::new(),
        };
        Blend {
            response: sum(&read.response, weights),
            form,
            reader,
            prompt,
            words,
            products,
            offset,
        }
    }

    /// Its value: about 1 for a violation and −1 for none, before calibration.
    pub fn value(&self, hidden: &[Vec<f32>], response: &str) -> f64 {
        let [p, r] = self.reader.states(hidden);
        let mut value = self.offset + dot(&r, &self.response);
        value += text::dot(&self.reader.words.vector(response), &self.words);
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

fn sum(rows: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; rows.first().map_or(0, Vec::len)];
    for (row, weight) in rows.iter().zip(weights) {
        out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
    }
    out
}

/// Σ weight · prompt ⊗ response.
fn outer(read: &Read, weights: &[f32]) -> Vec<f32> {
    let width = read.response.first().map_or(0, Vec::len);
    let mut out = vec![0.0f32; read.prompt.first().map_or(0, Vec::len) * width];
    for ((p, r), weight) in read.prompt.iter().zip(&read.response).zip(weights) {
        for (row, value) in out.chunks_exact_mut(width.max(1)).zip(p) {
            let by = weight * value;
            row.iter_mut().zip(r).for_each(|(o, v)| *o += by * v);
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

    /// The function gives the values that the similarities promise, under every form; only
    /// products tell a parity.
    #[test]
    fn a_function_equals_its_similarities() {
        let (hidden, target) = rows();
        let texts = ["the same words"; 64];
        let known = Vocabulary::fit(texts.iter().copied());
        let words: Vec<Sparse> = texts.iter().map(|t| known.vector(t)).collect();
        let reader = Reader::fit(&hidden, known);
        let read = reader.read(&hidden, &words);
        let similar = Similarities::new(&read);
        for form in Form::ALL {
            let gram = similar.of(form);
            let (weights, mean) = gram.ridge(&[true; 64], &target, 0.1);
            let blend = Blend::new(form, reader.clone(), &read, (&weights, mean));
            let mut right = 0;
            for (i, value) in gram.apply(&weights).iter().enumerate() {
                let got = blend.value(&hidden[i], texts[i]);
                assert!(
                    (got - f64::from(value + mean)).abs() < 1e-3,
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
