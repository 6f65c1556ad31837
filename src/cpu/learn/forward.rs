//! The forward pass, which writes down what gradients and tangents need.

use candle_core::{Result, Tensor};

use super::attention::{self, Heads};
use super::experts::{self, Mixed, Mixer};
use super::factors::{Columns, Factors};
use super::product::{Execution, View, ViewMut, product};
use super::rows::{Gated, Norm, Turn, add, add_bias, fit, turn};
use super::unpack::Way;
use crate::packed::PackedWeight;
use crate::rows::with_floats;
use crate::{Experts, Layer, Linear, Model};
use realign_model::compute::Compute;
use realign_model::lora::Projection;
use realign_model::{Activation, AttentionShape, RopeTable, Segment};

/// What one layer leaves behind; every matrix has a row per token.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The residual stream that entered, and the one between attention and MLP.
    pub(crate) entered: [Vec<f32>; 2],
    /// q, k and v as projected, in families that normalise heads.
    pub(crate) raw_heads: Vec<f32>,
    /// q, k and v as they attend.
    pub(crate) qkv: Vec<f32>,
    /// What attention gave.
    pub(crate) attended: Vec<f32>,
    /// Gate and up projections, in layers with an MLP.
    pub(crate) mlp: [Vec<f32>; 2],
    /// What layers with experts leave.
    pub(crate) mixed: Mixed,
    /// What attention and MLP add to the stream before it is normalised, in families that do.
    pub(crate) raw_outputs: [Vec<f32>; 2],
    /// x Aᵀ of every adapted projection.
    pub(crate) shrunk: [Vec<f32>; 7],
}

/// Columns of q, k and v: (projection, first column) of each.
pub(crate) fn head_columns(model: &Model) -> [(Projection, usize); 3] {
    let (d, heads, kv) = (model.spec.head_dim, model.spec.heads, model.spec.kv_heads);
    [
        (Projection::Q, 0),
        (Projection::K, heads * d),
        (Projection::V, (heads + kv) * d),
    ]
}

/// Normalises every head of q and k in place, with `f(norm, row, first column, values)`.
pub(crate) fn each_head(
    layer: &Layer,
    model: &Model,
    data: &mut [f32],
    f: impl Fn(&Norm, usize, usize, &mut [f32]) + Sync + Send,
) -> Result<()> {
    let Some([q, k]) = &layer.qk_norms else {
        return Ok(());
    };
    let spec = &model.spec;
    let (d, eps) = (spec.head_dim, spec.rms_norm_eps as f32);
    let width = (spec.heads + 2 * spec.kv_heads) * d;
    with_floats(q, |q| {
        with_floats(k, |k| {
            super::rows::for_rows(data, width, |row, values| {
                let heads = values[..(spec.heads + spec.kv_heads) * d].chunks_exact_mut(d);
                for (head, values) in heads.enumerate() {
                    let weight = if head < spec.heads { q } else { k };
                    f(&Norm { weight, eps }, row, head * d, values);
                }
            });
        })
    })?
}

/// The machine that runs layers forward.
pub(crate) struct Recorder<'a> {
    pub(crate) model: &'a Model,
    pub(crate) execution: Execution<'a>,
    pub(crate) segments: &'a [Segment],
    pub(crate) factors: &'a Factors,
    /// Tokens.
    pub(crate) rows: usize,
    /// A record per layer, or one that every layer overwrites.
    pub(crate) records: &'a mut [Record],
    /// Which record is written.
    pub(crate) at: usize,
    /// The residual stream.
    pub(crate) x: &'a mut Vec<f32>,
    /// Its normalised form.
    pub(crate) h: &'a mut Vec<f32>,
    /// activation(gate) · up.
    pub(crate) m: &'a mut Vec<f32>,
    /// What experts work on.
    pub(crate) mixing: &'a mut experts::Scratch,
    /// Whether the attention half of the layer is done.
    pub(crate) in_mlp: bool,
}

impl Recorder<'_> {
    /// Half of a layer is done.
    fn next_half(&mut self) {
        if self.in_mlp && self.at + 1 < self.records.len() {
            self.at += 1;
        }
        self.in_mlp = !self.in_mlp;
    }

    fn norm<'n>(&self, weight: &'n [f32]) -> Norm<'n> {
        Norm {
            weight,
            eps: self.model.spec.rms_norm_eps as f32,
        }
    }

    /// y[columns] ← map x.
    fn project(
        &self,
        map: &Linear,
        x: &[f32],
        y: &mut [f32],
        (stride, column): (usize, usize),
        add: bool,
        shrunk: &mut Vec<f32>,
    ) -> Result<()> {
        let weight = map.weight();
        let into = ViewMut {
            data: y,
            stride,
            column,
            add,
        };
        product(
            self.execution,
            weight,
            Way::Forward,
            self.rows,
            View::whole(x, weight.columns),
            into,
        );
        if let Some(bias) = map.bias() {
            with_floats(bias, |bias| add_bias(y, stride, column, bias))?;
        }
        if let Some(factor) = self.factors.get(map.site) {
            factor.apply(
                self.rows,
                x,
                shrunk,
                Columns {
                    data: y,
                    stride,
                    column,
                },
            );
        }
        Ok(())
    }
}

impl Compute for Recorder<'_> {
    type Weight = PackedWeight;

    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        let width = self.model.spec.hidden_size;
        let entered = &mut self.records[self.at].entered[usize::from(self.in_mlp)];
        entered.clear();
        entered.extend_from_slice(self.x);
        fit(self.h, self.rows * width);
        let h = std::mem::take(self.h);
        let mut h = h;
        with_floats(weight, |weight| self.norm(weight).apply(self.x, &mut h))?;
        *self.h = h;
        Ok(())
    }

    fn heads(&mut self, _index: usize, layer: &Layer, rope: &RopeTable) -> Result<()> {
        let spec = &self.model.spec;
        let (d, width) = (
            spec.head_dim,
            (spec.heads + 2 * spec.kv_heads) * spec.head_dim,
        );
        let mut record = std::mem::take(&mut self.records[self.at]);
        fit(&mut record.qkv, self.rows * width);
        for (projection, column) in head_columns(self.model) {
            let map = &layer.attention[projection as usize];
            let shrunk = &mut record.shrunk[projection as usize];
            self.project(map, self.h, &mut record.qkv, (width, column), false, shrunk)?;
        }
        if layer.qk_norms.is_some() {
            record.raw_heads.clear();
            record.raw_heads.extend_from_slice(&record.qkv);
            let raw = &record.raw_heads;
            each_head(
                layer,
                self.model,
                &mut record.qkv,
                |norm, row, column, values| {
                    let x = &raw[row * width + column..][..d];
                    crate::rows::normalise(x, norm.weight, norm.eps, values);
                },
            )?;
        }
        turn(
            &mut record.qkv,
            width,
            (spec.heads + spec.kv_heads) * d,
            d,
            rope,
            Turn::Forward,
        );
        self.records[self.at] = record;
        Ok(())
    }

    fn attend(&mut self, _index: usize, shape: &AttentionShape) -> Result<()> {
        let spec = &self.model.spec;
        let heads = Heads {
            query: spec.heads,
            key_value: spec.kv_heads,
            shape: *shape,
            slices: self.execution.slices,
        };
        let record = &mut self.records[self.at];
        fit(&mut record.attended, self.rows * spec.heads * spec.head_dim);
        attention::forward(heads, self.segments, &record.qkv, &mut record.attended);
        Ok(())
    }

    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()> {
        let width = self.model.spec.intermediate_size;
        let mut record = std::mem::take(&mut self.records[self.at]);
        for (i, map) in [gate, up].into_iter().enumerate() {
            fit(&mut record.mlp[i], self.rows * width);
            let shrunk = &mut record.shrunk[map.site.projection as usize];
            self.project(map, self.h, &mut record.mlp[i], (width, 0), false, shrunk)?;
        }
        let gated = Gated {
            slices: self.execution.slices,
            activation,
            gate: &record.mlp[0],
            up: &record.mlp[1],
        };
        gated.apply(fit(self.m, self.rows * width));
        self.records[self.at] = record;
        Ok(())
    }

    fn mix(&mut self, experts: &Experts, activation: Activation) -> Result<()> {
        let mixer = Mixer {
            execution: self.execution,
            experts,
            activation,
            rows: self.rows,
        };
        let record = &mut self.records[self.at].mixed;
        mixer.forward(record, self.h, self.mixing, self.x);
        self.next_half();
        Ok(())
    }

    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()> {
        let width = self.model.spec.hidden_size;
        let half = usize::from(self.in_mlp);
        let mut record = std::mem::take(&mut self.records[self.at]);
        let mut x = std::mem::take(self.x);
        let from = if self.in_mlp {
            &*self.m
        } else {
            &record.attended
        };
        let shrunk = &mut record.shrunk[map.site.projection as usize];
        match norm {
            None => self.project(map, from, &mut x, (width, 0), true, shrunk)?,
            Some(norm) => {
                let raw = &mut record.raw_outputs[half];
                fit(raw, self.rows * width);
                self.project(map, from, raw, (width, 0), false, shrunk)?;
                let mut y = vec![0f32; self.rows * width];
                with_floats(norm, |norm| self.norm(norm).apply(raw, &mut y))?;
                add(&mut x, &y);
            }
        }
        *self.x = x;
        self.records[self.at] = record;
        self.next_half();
        Ok(())
    }
}
