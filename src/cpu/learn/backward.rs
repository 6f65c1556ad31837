//! From the gradient of the last residual stream to those of the adapter's factors.

use std::collections::BTreeMap;

use candle_core::Result;

use super::attention::{self, Heads};
use super::experts::{self, Mixer};
use super::factors::Factors;
use super::forward::{Record, each_head, head_columns};
use super::product::{Execution, View, ViewMut, product};
use super::rows::{Gated, Norm, Turn, add, fit, turn};
use super::unpack::Way;
use crate::rows::with_floats;
use crate::{Experts, Layer, Linear, Model};
use realign_model::compute::Ropes;
use realign_model::lora::LoraSite;
use realign_model::{Mlp, Segment};

/// Walks the layers from the top down.
pub(crate) struct Walk<'a> {
    pub(crate) model: &'a Model,
    pub(crate) execution: Execution<'a>,
    pub(crate) segments: &'a [Segment],
    pub(crate) factors: &'a Factors,
    pub(crate) ropes: &'a Ropes,
    pub(crate) rows: usize,
    /// Gradients found so far.
    pub(crate) found: BTreeMap<LoraSite, (Vec<f32>, Vec<f32>)>,
    /// Scratch, (rows, hidden), (rows, intermediate) and (rows, q + k + v).
    pub(crate) scratch: Scratch,
}

/// Buffers that layers share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Normalised input of a half layer.
    pub(crate) h: Vec<f32>,
    /// Its gradient.
    pub(crate) d_h: Vec<f32>,
    /// Gradient of what a half layer adds, where it is normalised.
    pub(crate) d_y: Vec<f32>,
    /// activation(gate) · up, then what attention gave: their gradients.
    pub(crate) d_m: Vec<f32>,
    /// activation(gate) · up.
    pub(crate) m: Vec<f32>,
    /// Gradients of gate and up.
    pub(crate) d_mlp: [Vec<f32>; 2],
    /// Gradients of q, k and v.
    pub(crate) d_qkv: Vec<f32>,
    /// What experts work on.
    pub(crate) mixing: experts::Scratch,
}

impl Walk<'_> {
    fn norm<'n>(&self, weight: &'n [f32]) -> Norm<'n> {
        Norm {
            weight,
            eps: self.model.spec.rms_norm_eps as f32,
        }
    }

    /// d_x (+)= g through a map; `None` where no layer below needs it.
    fn pull(
        &mut self,
        map: &Linear,
        record: &Record,
        x: &[f32],
        g: View,
        d_x: Option<(&mut [f32], bool)>,
    ) -> Result<()> {
        let weight = map.weight();
        let d_x = d_x.map(|(d_x, adding)| {
            let into = ViewMut {
                data: &mut *d_x,
                stride: weight.columns,
                column: 0,
                add: adding,
            };
            product(self.execution, weight, Way::Backward, self.rows, g, into);
            d_x
        });
        if let Some(factor) = self.factors.get(map.site) {
            let shrunk = &record.shrunk[map.site.projection as usize];
            self.found
                .insert(map.site, factor.pull(self.rows, (x, shrunk), g, d_x));
        }
        Ok(())
    }

    /// d_x: the gradient of what layer `index` put out becomes that of what entered it. `below`
    /// says whether that is needed.
    pub(crate) fn layer(
        &mut self,
        index: usize,
        record: &Record,
        d_x: &mut [f32],
        below: bool,
    ) -> Result<()> {
        let model = self.model;
        let layer = &model.layers[index];
        let mut s = std::mem::take(&mut self.scratch);
        match &layer.mlp {
            Mlp::Dense(maps) => self.mlp((layer, maps), record, d_x, &mut s)?,
            Mlp::Experts(experts) => self.experts((layer, experts), record, d_x, &mut s)?,
        }
        self.attention(index, layer, record, (d_x, below), &mut s)?;
        self.scratch = s;
        Ok(())
    }

    fn experts(
        &mut self,
        (layer, experts): (&Layer, &Experts),
        record: &Record,
        d_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        let spec = &self.model.spec;
        let mixer = Mixer {
            execution: self.execution,
            experts,
            activation: spec.variant.activation,
            rows: self.rows,
        };
        let d_h = fit(&mut s.d_h, self.rows * spec.hidden_size);
        mixer.backward(&record.mixed, d_x, &mut s.mixing, d_h);
        with_floats(&layer.mlp_norm, |w| {
            self.norm(w).pull(&record.entered[1], &mut s.d_h)
        })?;
        add(d_x, &s.d_h);
        Ok(())
    }

    fn mlp(
        &mut self,
        (layer, [gate, up, down]): (&Layer, &[Linear; 3]),
        record: &Record,
        d_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        let spec = &self.model.spec;
        let (width, inner, rows) = (spec.hidden_size, spec.intermediate_size, self.rows);
        let gated = Gated {
            slices: self.execution.slices,
            activation: spec.variant.activation,
            gate: &record.mlp[0],
            up: &record.mlp[1],
        };
        // Only its adapter asks what entered the last map.
        if self.factors.get(down.site).is_some() {
            gated.apply(fit(&mut s.m, rows * inner));
        }
        let d_y = self.output_gradient(layer, 1, record, d_x, &mut s.d_y)?;
        fit(&mut s.d_m, rows * inner);
        self.pull(
            down,
            record,
            &s.m,
            View::whole(d_y, width),
            Some((&mut s.d_m, false)),
        )?;
        let [d_gate, d_up] = &mut s.d_mlp;
        fit(d_gate, rows * inner);
        fit(d_up, rows * inner);
        gated.pull(&s.d_m, d_gate, d_up);
        self.half(&layer.mlp_norm, &record.entered[1], s)?;
        let [d_gate, d_up] = &s.d_mlp;
        fit(&mut s.d_h, rows * width);
        self.pull(
            gate,
            record,
            &s.h,
            View::whole(d_gate, inner),
            Some((&mut s.d_h, false)),
        )?;
        self.pull(
            up,
            record,
            &s.h,
            View::whole(d_up, inner),
            Some((&mut s.d_h, true)),
        )?;
        with_floats(&layer.mlp_norm, |w| {
            self.norm(w).pull(&record.entered[1], &mut s.d_h)
        })?;
        add(d_x, &s.d_h);
        Ok(())
    }

    fn attention(
        &mut self,
        index: usize,
        layer: &Layer,
        record: &Record,
        (d_x, below): (&mut [f32], bool),
        s: &mut Scratch,
    ) -> Result<()> {
        let (model, rows) = (self.model, self.rows);
        let spec = &model.spec;
        let (width, d) = (spec.hidden_size, spec.head_dim);
        let qkv_width = (spec.heads + 2 * spec.kv_heads) * d;
        let d_y = self.output_gradient(layer, 0, record, d_x, &mut s.d_y)?;
        fit(&mut s.d_m, rows * spec.heads * d);
        let [_, _, _, output] = &layer.attention;
        self.pull(
            output,
            record,
            &record.attended,
            View::whole(d_y, width),
            Some((&mut s.d_m, false)),
        )?;
        let shape = spec.attention(index);
        let heads = Heads {
            query: spec.heads,
            key_value: spec.kv_heads,
            shape,
            slices: self.execution.slices,
        };
        fit(&mut s.d_qkv, rows * qkv_width);
        attention::backward(heads, self.segments, &record.qkv, &s.d_m, &mut s.d_qkv);
        turn(
            &mut s.d_qkv,
            qkv_width,
            (spec.heads + spec.kv_heads) * d,
            d,
            self.ropes.of(&shape),
            Turn::Back,
        );
        each_head(layer, model, &mut s.d_qkv, |norm, row, column, g| {
            norm.pull_row(&record.raw_heads[row * qkv_width + column..][..d], g);
        })?;
        self.half(&layer.attention_norm, &record.entered[0], s)?;
        fit(&mut s.d_h, rows * width);
        for (i, (projection, column)) in head_columns(model).into_iter().enumerate() {
            let g = View {
                data: &s.d_qkv,
                stride: qkv_width,
                column,
            };
            let d_h = below.then_some((&mut s.d_h[..], i > 0));
            self.pull(&layer.attention[projection as usize], record, &s.h, g, d_h)?;
        }
        if below {
            with_floats(&layer.attention_norm, |w| {
                self.norm(w).pull(&record.entered[0], &mut s.d_h)
            })?;
            add(d_x, &s.d_h);
        }
        Ok(())
    }

    /// h ← what the half layer read, once more.
    fn half(&self, weight: &candle_core::Tensor, entered: &[f32], s: &mut Scratch) -> Result<()> {
        fit(&mut s.h, entered.len());
        with_floats(weight, |w| self.norm(w).apply(entered, &mut s.h))
    }

    /// The gradient of what a half layer's last map gave: d_x itself, or through the norm after it.
    fn output_gradient<'d>(
        &self,
        layer: &Layer,
        half: usize,
        record: &Record,
        d_x: &'d [f32],
        d_y: &'d mut Vec<f32>,
    ) -> Result<&'d [f32]> {
        let Some(norms) = &layer.output_norms else {
            return Ok(d_x);
        };
        d_y.clear();
        d_y.extend_from_slice(d_x);
        with_floats(&norms[half], |w| {
            self.norm(w).pull(&record.raw_outputs[half], d_y)
        })?;
        Ok(d_y)
    }
}
