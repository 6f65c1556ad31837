//! Passes over packed batches: values, gradients, tangents.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::backward::{self, Walk};
use super::experts;
use super::factors::Factors;
use super::forward::{Record, Recorder};
use super::head::{Head, Want};
use super::product::Execution;
use super::rows::{Norm, fit};
use super::tangent::{self, Push};
use super::tile::Form;
use crate::Model;
use crate::rows::with_floats;
use realign_model::compute::{Ropes, run_layers};
use realign_model::learning::logprobs_of;
use realign_model::packing::{Packed, States};
use realign_model::time_slices::TimeSlices;
use realign_model::{Dropout, LoraWeights, Precision, SiteGradients, TokenLoss};

/// Computes what learning needs of a model whose weights are packed. Buffers are kept from pass
/// to pass.
pub struct Differentiator {
    /// What gradients leave out; nothing unless somebody sets it.
    pub(crate) dropout: Dropout,
    model: Arc<Model>,
    slices: Arc<TimeSlices>,
    values: Form,
    gradients: Form,
    records: Vec<Record>,
    below: [Record; 1],
    x: Vec<f32>,
    h: Vec<f32>,
    m: Vec<f32>,
    mixing: experts::Scratch,
    backward: backward::Scratch,
    tangent: tangent::Scratch,
}

impl std::fmt::Debug for Differentiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Differentiator")
            .field("values", &self.values)
            .field("gradients", &self.gradients)
            .finish_non_exhaustive()
    }
}

impl Differentiator {
    /// Passes of a model, which yield to the engine's steps as `slices` say.
    pub fn new(model: Arc<Model>, slices: Arc<TimeSlices>, precision: Precision) -> Self {
        Self {
            dropout: Dropout::default(),
            slices,
            model,
            values: match precision {
                Precision::Exact => Form::floats(),
                Precision::Mixed => Form::values(),
            },
            gradients: match precision {
                Precision::Exact => Form::floats(),
                Precision::Mixed => Form::gradients(),
            },
            records: Vec::new(),
            below: Default::default(),
            x: Vec::new(),
            h: Vec::new(),
            m: Vec::new(),
            mixing: experts::Scratch::default(),
            backward: backward::Scratch::default(),
            tangent: tangent::Scratch::default(),
        }
    }

    /// Shapes and constants of the model.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// The base model's residual stream entering `layer`, per example.
    ///
    /// # Errors
    /// If a token is not in the vocabulary.
    pub(crate) fn states(&mut self, batch: &Packed, layer: usize) -> Result<Vec<States>> {
        let slices = self.slices.clone();
        slices.learn(|| {
            let width = self.model.spec.hidden_size;
            self.run(batch, &Factors::default(), layer, layer)?;
            let of = |example: usize| {
                let runs = batch.lies(example).iter();
                let runs = runs.map(|r| &self.x[r.start * width..r.end * width]);
                let values = runs.collect::<Vec<_>>().concat();
                let rows = values.len() / width;
                let hidden = Tensor::from_vec(values, (rows, width), &Device::Cpu)?;
                Ok(States { layer, hidden })
            };
            (0..batch.spans().len()).map(of).collect()
        })
    }

    /// Final normalised hidden states that predict the response tokens, (response tokens, hidden).
    ///
    /// # Errors
    /// If the adapter does not fit, or the batch's states lie above its lowest layer.
    pub(crate) fn hidden(
        &mut self,
        batch: &Packed,
        adapter: Option<&LoraWeights>,
    ) -> Result<Vec<f32>> {
        let slices = self.slices.clone();
        slices.learn(|| {
            let layers = self.model.layers.len();
            self.run(batch, &self.factors(adapter)?, layers, layers)?;
            self.final_rows(batch)
        })
    }

    /// The values that `losses` name, of hidden states that are there already.
    ///
    /// # Errors
    /// If the hidden states do not fit the losses.
    pub(crate) fn measure(
        &self,
        losses: &[TokenLoss],
        hidden: &[f32],
        reference: &[f32],
    ) -> Result<Vec<f32>> {
        self.slices
            .learn(|| self.head(losses, hidden, reference).evaluate(Want::Values))
    }

    /// Gradients of Σ cᵢ vᵢ in the adapter's factors, where vᵢ are the values that `losses` name
    /// and c = `coefficients`(v). `reference` holds the reference's hidden states, one row per
    /// response token, of which those with a KL are read.
    ///
    /// # Errors
    /// As [`Differentiator::hidden`].
    pub(crate) fn gradients(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        (losses, reference): (&[TokenLoss], &[f32]),
        coefficients: impl FnOnce(&[f32]) -> Vec<f32> + Send,
    ) -> Result<SiteGradients> {
        let factors = Factors::new(Some(adapter), self.dropout, &self.slices)?;
        let slices = self.slices.clone();
        slices.learn(|| {
            let (layers, width) = (self.model.layers.len(), self.model.spec.hidden_size);
            let lowest = factors.lowest_layer().unwrap_or(layers);
            self.run(batch, &factors, lowest, layers)?;
            let hidden = self.final_rows(batch)?;
            let mut by_hidden = vec![0f32; hidden.len()];
            let head = self.head(losses, &hidden, reference);
            let values = head.evaluate(Want::Gradients(&mut by_hidden))?;
            let mut d_x = vec![0f32; batch.token_count() * width];
            for ((c, g), row) in coefficients(&values)
                .iter()
                .zip(by_hidden.chunks_exact(width))
                .zip(&batch.rows)
            {
                let into = &mut d_x[*row as usize * width..][..width];
                into.iter_mut().zip(g).for_each(|(d, g)| *d += c * g);
            }
            let model = self.model.clone();
            let eps = model.spec.rms_norm_eps as f32;
            with_floats(&model.final_norm, |weight| {
                Norm { weight, eps }.pull(&self.x, &mut d_x)
            })?;
            let ropes = Ropes::new(&model.spec, &batch.positions);
            let mut walk = Walk {
                model: &model,
                execution: Execution {
                    form: self.gradients,
                    slices: &slices,
                },
                segments: &batch.segments,
                factors: &factors,
                ropes: &ropes,
                rows: batch.token_count(),
                found: BTreeMap::new(),
                scratch: std::mem::take(&mut self.backward),
            };
            for index in (lowest..layers).rev() {
                walk.layer(
                    index,
                    &self.records[index - lowest],
                    &mut d_x,
                    index > lowest,
                )?;
            }
            self.backward = walk.scratch;
            factors.gradients(walk.found)
        })
    }

    /// log p of every response token and how it moves along `along`, whose pairs are (∂A, ∂B); never
    /// in bfloat16, because a pair's score is a small difference of two such movements.
    ///
    /// # Errors
    /// As [`Differentiator::hidden`].
    pub(crate) fn slopes(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        along: &LoraWeights,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (factors, along) = (self.factors(Some(adapter))?, self.factors(Some(along))?);
        let slices = self.slices.clone();
        slices.learn(|| {
            let (layers, width) = (self.model.layers.len(), self.model.spec.hidden_size);
            let lowest = factors.lowest_layer().unwrap_or(layers);
            self.run(batch, &factors, lowest, lowest)?;
            let model = self.model.clone();
            let ropes = Ropes::new(&model.spec, &batch.positions);
            let mut push = Push {
                model: &model,
                execution: Execution {
                    form: self.values,
                    slices: &slices,
                },
                segments: &batch.segments,
                factors: &factors,
                along: &along,
                ropes: &ropes,
                rows: batch.token_count(),
                scratch: std::mem::take(&mut self.tangent),
            };
            let mut t_x = vec![0f32; batch.token_count() * width];
            for index in lowest..layers {
                self.run_range(batch, &factors, index..index + 1, false)?;
                push.layer(index, (&self.below[0], &self.m), &mut t_x)?;
            }
            self.tangent = push.scratch;
            let eps = model.spec.rms_norm_eps as f32;
            with_floats(&model.final_norm, |weight| {
                Norm { weight, eps }.push(&self.x, &mut t_x)
            })?;
            let hidden = self.final_rows(batch)?;
            let mut t_hidden = vec![0f32; hidden.len()];
            for (into, row) in t_hidden.chunks_exact_mut(width).zip(&batch.rows) {
                into.copy_from_slice(&t_x[*row as usize * width..][..width]);
            }
            let losses = logprobs_of(batch);
            let mut slopes = vec![0f32; losses.len()];
            let head = Head {
                derivatives: self.values,
                ..self.head(&losses, &hidden, &[])
            };
            let values = head.evaluate(Want::Slopes(&t_hidden, &mut slopes))?;
            Ok((values, slopes))
        })
    }

    fn factors(&self, adapter: Option<&LoraWeights>) -> Result<Factors> {
        Factors::new(adapter, Dropout::default(), &self.slices)
    }

    fn head<'a>(
        &'a self,
        losses: &'a [TokenLoss],
        hidden: &'a [f32],
        reference: &'a [f32],
    ) -> Head<'a> {
        Head {
            model: &self.model,
            values: self.values,
            derivatives: self.gradients,
            slices: &self.slices,
            losses,
            hidden,
            reference,
        }
    }

    /// Runs the batch's layers up to `to`, with a record kept of each from `keep` on.
    fn run(&mut self, batch: &Packed, factors: &Factors, keep: usize, to: usize) -> Result<()> {
        let start = self.enter(batch)?;
        if let Some(lowest) = factors.lowest_layer()
            && lowest < start
        {
            bail!("the states enter layer {start}, the adapter begins at layer {lowest}");
        }
        self.run_range(batch, factors, start..keep.min(to).max(start), false)?;
        self.run_range(batch, factors, keep.max(start)..to, true)
    }

    /// x ← what enters the lowest layer to run; returns that layer.
    fn enter(&mut self, batch: &Packed) -> Result<usize> {
        let width = self.model.spec.hidden_size;
        fit(&mut self.x, batch.token_count() * width);
        if let Some(states) = &batch.states {
            let mut at = 0;
            for (example, rows) in batch.pieces() {
                let (from, n) = (rows.start * width, rows.len() * width);
                with_floats(&states[*example].hidden, |values| {
                    self.x[at..at + n].copy_from_slice(&values[from..from + n])
                })?;
                at += n;
            }
            return Ok(states[0].layer);
        }
        let embedding = &self.model.embedding;
        let scale = self.model.spec.variant.embedding_scale.map(|s| s as f32);
        for (row, token) in self.x.chunks_exact_mut(width).zip(&batch.tokens) {
            if *token as usize >= embedding.out {
                bail!(
                    "token {token} is not in the vocabulary of {}",
                    embedding.out
                );
            }
            embedding.read_row(*token as usize, row);
            if let Some(scale) = scale {
                row.iter_mut().for_each(|v| *v *= scale);
            }
        }
        Ok(0)
    }

    fn run_range(
        &mut self,
        batch: &Packed,
        factors: &Factors,
        range: std::ops::Range<usize>,
        keep: bool,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if keep && self.records.len() < range.len() {
            self.records.resize_with(range.len(), Record::default);
        }
        let (model, slices) = (self.model.clone(), self.slices.clone());
        let ropes = Ropes::new(&model.spec, &batch.positions);
        let mut recorder = Recorder {
            model: &model,
            execution: Execution {
                form: self.values,
                slices: &slices,
            },
            segments: &batch.segments,
            factors,
            rows: batch.token_count(),
            records: if keep {
                &mut self.records[..range.len()]
            } else {
                &mut self.below
            },
            at: 0,
            x: &mut self.x,
            h: &mut self.h,
            m: &mut self.m,
            mixing: &mut self.mixing,
            in_mlp: false,
        };
        run_layers(&mut recorder, &model, &ropes, range)
    }

    /// The rows of x that predict response tokens, through the final norm.
    fn final_rows(&self, batch: &Packed) -> Result<Vec<f32>> {
        let width = self.model.spec.hidden_size;
        let mut rows = vec![0f32; batch.rows.len() * width];
        for (into, row) in rows.chunks_exact_mut(width).zip(&batch.rows) {
            into.copy_from_slice(&self.x[*row as usize * width..][..width]);
        }
        let eps = self.model.spec.rms_norm_eps as f32;
        let x = rows.clone();
        with_floats(&self.model.final_norm, |weight| {
            Norm { weight, eps }.apply(&x, &mut rows)
        })?;
        Ok(rows)
    }
}
