//! The LM head with its own backward: logits exist for a few rows at a time and are turned into
//! values, and into the gradient of each value in its row's hidden state, before the next rows.

use candle_core::Result;
use rayon::prelude::*;

use super::product::{Execution, View, ViewMut, product};
use super::rows::fit;
use super::tile::Form;
use super::unpack::Way;
use crate::Model;
use realign_model::TokenLoss;
use realign_model::time_slices::TimeSlices;
use realign_model::vector::{
    dot, exp_shifted_sum, kl_gradient, kl_sum, logsumexp, scaled_exp, soft_cap_backward,
    soft_cap_in_place,
};

/// Logits that exist at once, in elements.
const CHUNK: usize = 8 << 20;

/// What the head works on: one row per response token.
pub(crate) struct Head<'a> {
    pub(crate) model: &'a Model,
    /// Arithmetic of values.
    pub(crate) values: Form,
    /// Arithmetic of gradients and tangents.
    pub(crate) derivatives: Form,
    /// Whom its products yield to.
    pub(crate) slices: &'a TimeSlices,
    pub(crate) losses: &'a [TokenLoss],
    /// Normalised hidden states, (rows, hidden).
    pub(crate) hidden: &'a [f32],
    /// The reference model's; only rows with a KL are read.
    pub(crate) reference: &'a [f32],
}

/// What is asked besides the values.
pub(crate) enum Want<'a> {
    /// Nothing.
    Values,
    /// The gradient of every value in its hidden state, (rows, hidden).
    Gradients(&'a mut [f32]),
    /// How every log p moves along tangents of the hidden states, (rows, hidden) → (rows).
    Slopes(&'a [f32], &'a mut [f32]),
}

/// A row of logits and its tangent; its index and sums.
type Both<'a> = ((&'a mut [f32], &'a mut [f32]), (&'a usize, &'a [f32; 2]));

/// Buffers of one chunk.
#[derive(Default)]
struct Chunk {
    rows: Vec<f32>,
    logits: Vec<f32>,
    other: Vec<f32>,
    /// log Σ exp of every row of both; of `other` where it holds the reference's logits.
    sums: Vec<[f32; 2]>,
}

impl Head<'_> {
    /// The value of every row, and what else is wanted.
    ///
    /// # Errors
    /// If the head is not packed, or a token is not in the vocabulary.
    pub(crate) fn evaluate(&self, mut want: Want) -> Result<Vec<f32>> {
        let (width, vocabulary) = (self.model.spec.hidden_size, self.model.spec.vocab_size);
        let beyond =
            |loss: &TokenLoss| matches!(loss, TokenLoss::LogProb(t) if *t as usize >= vocabulary);
        if self.losses.iter().any(beyond) {
            candle_core::bail!("a response has a token beyond the vocabulary of {vocabulary}");
        }
        let mut values = vec![0f32; self.losses.len()];
        let is_kl = |i: &usize| self.losses[*i] == TokenLoss::Kl;
        let (kl, logprob): (Vec<usize>, Vec<usize>) = (0..self.losses.len()).partition(is_kl);
        let size = (CHUNK / vocabulary).clamp(8, 512);
        let mut chunk = Chunk::default();
        for indices in logprob.chunks(size).chain(kl.chunks(size)) {
            self.logits(
                self.values,
                self.hidden,
                indices,
                &mut chunk.rows,
                &mut chunk.logits,
            )?;
            self.cap(&mut chunk.logits);
            if is_kl(&indices[0]) {
                self.logits(
                    self.values,
                    self.reference,
                    indices,
                    &mut chunk.rows,
                    &mut chunk.other,
                )?;
                self.cap(&mut chunk.other);
            }
            for (i, value) in indices.iter().zip(self.values(indices, &mut chunk)) {
                values[*i] = value;
            }
            match &mut want {
                Want::Values => {}
                Want::Gradients(gradients) => {
                    self.differentiate(indices, &mut chunk);
                    let rows = fit(&mut chunk.rows, indices.len() * width);
                    let head = &self.model.head;
                    let view = View::whole(&chunk.logits, vocabulary);
                    product(
                        self.execution(self.derivatives),
                        head,
                        Way::Backward,
                        indices.len(),
                        view,
                        ViewMut::whole(rows, width),
                    );
                    for (row, i) in rows.chunks_exact(width).zip(indices) {
                        gradients[i * width..][..width].copy_from_slice(row);
                    }
                }
                Want::Slopes(tangents, slopes) => {
                    self.logits(
                        self.derivatives,
                        tangents,
                        indices,
                        &mut chunk.rows,
                        &mut chunk.other,
                    )?;
                    for (i, slope) in indices.iter().zip(self.slopes(indices, &mut chunk)) {
                        slopes[*i] = slope;
                    }
                }
            }
        }
        Ok(values)
    }

    fn execution(&self, form: Form) -> Execution<'_> {
        Execution {
            form,
            slices: self.slices,
        }
    }

    fn logits(
        &self,
        form: Form,
        hidden: &[f32],
        indices: &[usize],
        rows: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let (width, vocabulary) = (self.model.spec.hidden_size, self.model.spec.vocab_size);
        let rows = fit(rows, indices.len() * width);
        for (row, i) in rows.chunks_exact_mut(width).zip(indices) {
            row.copy_from_slice(&hidden[i * width..][..width]);
        }
        let into = ViewMut::whole(fit(logits, indices.len() * vocabulary), vocabulary);
        product(
            self.execution(form),
            &self.model.head,
            Way::Forward,
            indices.len(),
            View::whole(rows, width),
            into,
        );
        Ok(())
    }

    fn cap(&self, logits: &mut [f32]) {
        if let Some(cap) = self.model.spec.variant.logit_cap {
            logits
                .par_chunks_mut(1 << 14)
                .for_each(|part| soft_cap_in_place(part, cap as f32));
        }
    }

    fn values(&self, indices: &[usize], chunk: &mut Chunk) -> Vec<f32> {
        let vocabulary = self.model.spec.vocab_size;
        let value = |(at, i): (usize, &usize)| {
            self.slices.yield_to_serving();
            let row = &chunk.logits[at * vocabulary..][..vocabulary];
            let sum = logsumexp(row);
            match self.losses[*i] {
                TokenLoss::LogProb(target) => (row[target as usize] - sum, [sum, 0.0]),
                TokenLoss::Kl => {
                    let other = &chunk.other[at * vocabulary..][..vocabulary];
                    let sums = [sum, logsumexp(other)];
                    (kl_sum(other, sums[1], row, sums[0]) as f32, sums)
                }
            }
        };
        let indexed: Vec<(usize, &usize)> = indices.iter().enumerate().collect();
        let (values, sums) = indexed.into_par_iter().map(value).unzip();
        chunk.sums = sums;
        values
    }

    /// logits ← the gradient of each row's value in the head's products.
    fn differentiate(&self, indices: &[usize], chunk: &mut Chunk) {
        let vocabulary = self.model.spec.vocab_size;
        let cap = self.model.spec.variant.logit_cap.map(|c| c as f32);
        let other = &chunk.other;
        let rows = chunk
            .logits
            .par_chunks_mut(vocabulary)
            .zip(indices.par_iter().zip(&chunk.sums))
            .enumerate();
        rows.for_each_init(Vec::new, |copy: &mut Vec<f32>, (at, (row, (i, sums)))| {
            self.slices.yield_to_serving();
            copy.clear();
            copy.extend_from_slice(row);
            match self.losses[*i] {
                TokenLoss::LogProb(target) => {
                    scaled_exp(copy, sums[0], -1.0, row);
                    row[target as usize] += 1.0;
                }
                TokenLoss::Kl => {
                    let other = &other[at * vocabulary..][..vocabulary];
                    kl_gradient(copy, sums[0], other, sums[1], 1.0, row);
                }
            }
            if let Some(cap) = cap {
                soft_cap_backward(copy, cap, row);
            }
        });
    }

    /// d log p from logits and the tangents of the head's products, which are in `other`.
    fn slopes(&self, indices: &[usize], chunk: &mut Chunk) -> Vec<f32> {
        let vocabulary = self.model.spec.vocab_size;
        let cap = self.model.spec.variant.logit_cap.map(|c| c as f32);
        let both = chunk
            .logits
            .par_chunks_mut(vocabulary)
            .zip(chunk.other.par_chunks_mut(vocabulary));
        let slope = |((row, moved), (i, sums)): Both| {
            self.slices.yield_to_serving();
            if let Some(cap) = cap {
                soft_cap_backward(row, cap, moved);
            }
            let TokenLoss::LogProb(target) = self.losses[*i] else {
                return 0.0;
            };
            let of_target = moved[target as usize];
            exp_shifted_sum(row, sums[0]);
            of_target - dot(row, moved)
        };
        both.zip(indices.par_iter().zip(&chunk.sums))
            .map(slope)
            .collect()
    }
}
