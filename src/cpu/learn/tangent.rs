//! Forward-mode derivatives: how every activation moves when the adapter moves along a direction.
//!
//! A layer's tangent is computed right after its values, from the same record that a gradient
//! would use, so nothing but one layer's record is kept.

use candle_core::Result;

use super::attention::{self, Heads};
use super::experts::{self, Mixer};
use super::factors::{Columns, Factors};
use super::forward::{Record, each_head, head_columns};
use super::product::{Execution, View, ViewMut, product};
use super::rows::{Gated, Norm, Turn, add, fit, turn};
use super::unpack::Way;
use crate::rows::with_floats;
use crate::{Experts, Layer, Linear, Model};
use realign_model::compute::Ropes;
use realign_model::{Mlp, Segment};

/// Moves tangents up through the layers.
pub(crate) struct Push<'a> {
    pub(crate) model: &'a Model,
    pub(crate) execution: Execution<'a>,
    pub(crate) segments: &'a [Segment],
    /// Where the derivative is taken.
    pub(crate) factors: &'a Factors,
    /// Its direction.
    pub(crate) along: &'a Factors,
    pub(crate) ropes: &'a Ropes,
    pub(crate) rows: usize,
    pub(crate) scratch: Scratch,
}

/// Buffers that layers share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    h: Vec<f32>,
    t_h: Vec<f32>,
    t_qkv: Vec<f32>,
    t_m: Vec<f32>,
    t_mlp: [Vec<f32>; 2],
    t_y: Vec<f32>,
    mixing: experts::Scratch,
}

impl Push<'_> {
    fn norm<'n>(&self, weight: &'n [f32]) -> Norm<'n> {
        Norm {
            weight,
            eps: self.model.spec.rms_norm_eps as f32,
        }
    }

    /// t_y[columns] ← the tangent of map x, for a tangent t_x of x.
    fn push(
        &self,
        map: &Linear,
        record: &Record,
        (x, t_x): (&[f32], &[f32]),
        t_y: &mut [f32],
        (stride, column): (usize, usize),
    ) -> Result<()> {
        let weight = map.weight();
        let into = ViewMut {
            data: t_y,
            stride,
            column,
            add: false,
        };
        product(
            self.execution,
            weight,
            Way::Forward,
            self.rows,
            View::whole(t_x, weight.columns),
            into,
        );
        if let (Some(factor), Some(along)) = (self.factors.get(map.site), self.along.get(map.site))
        {
            let shrunk = &record.shrunk[map.site.projection as usize];
            factor.push(
                self.rows,
                (x, shrunk),
                t_x,
                along,
                Columns {
                    data: t_y,
                    stride,
                    column,
                },
            );
        }
        Ok(())
    }

    /// t_x: the tangent of what entered layer `index` becomes that of what it puts out. `m` is the
    /// layer's activation(gate) · up.
    pub(crate) fn layer(
        &mut self,
        index: usize,
        (record, m): (&Record, &[f32]),
        t_x: &mut [f32],
    ) -> Result<()> {
        let layer = &self.model.layers[index];
        let mut s = std::mem::take(&mut self.scratch);
        self.attention(index, layer, record, t_x, &mut s)?;
        match &layer.mlp {
            Mlp::Dense(maps) => self.mlp((layer, maps), (record, m), t_x, &mut s)?,
            Mlp::Experts(experts) => self.experts((layer, experts), record, t_x, &mut s)?,
        }
        self.scratch = s;
        Ok(())
    }

    fn enter(
        &self,
        weight: &candle_core::Tensor,
        entered: &[f32],
        t_x: &[f32],
        s: &mut Scratch,
    ) -> Result<()> {
        fit(&mut s.h, entered.len());
        s.t_h.clear();
        s.t_h.extend_from_slice(t_x);
        with_floats(weight, |w| {
            self.norm(w).apply(entered, &mut s.h);
            self.norm(w).push(entered, &mut s.t_h);
        })
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        record: &Record,
        t_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        let (model, rows) = (self.model, self.rows);
        let spec = &model.spec;
        let (d, shape) = (spec.head_dim, spec.attention(index));
        let width = (spec.heads + 2 * spec.kv_heads) * d;
        self.enter(&layer.attention_norm, &record.entered[0], t_x, s)?;
        fit(&mut s.t_qkv, rows * width);
        for (projection, column) in head_columns(model) {
            let map = &layer.attention[projection as usize];
            self.push(map, record, (&s.h, &s.t_h), &mut s.t_qkv, (width, column))?;
        }
        each_head(layer, model, &mut s.t_qkv, |norm, row, column, t| {
            norm.push_row(&record.raw_heads[row * width + column..][..d], t);
        })?;
        turn(
            &mut s.t_qkv,
            width,
            (spec.heads + spec.kv_heads) * d,
            d,
            self.ropes.of(&shape),
            Turn::Forward,
        );
        let heads = Heads {
            query: spec.heads,
            key_value: spec.kv_heads,
            shape,
            slices: self.execution.slices,
        };
        fit(&mut s.t_m, rows * spec.heads * d);
        attention::tangent(heads, self.segments, &record.qkv, &s.t_qkv, &mut s.t_m);
        let [_, _, _, output] = &layer.attention;
        fit(&mut s.t_y, t_x.len());
        self.push(
            output,
            record,
            (&record.attended, &s.t_m),
            &mut s.t_y,
            (spec.hidden_size, 0),
        )?;
        self.leave(layer, 0, record, t_x, s)
    }

    fn experts(
        &self,
        (layer, experts): (&Layer, &Experts),
        record: &Record,
        t_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        let mixer = Mixer {
            execution: self.execution,
            experts,
            activation: self.model.spec.variant.activation,
            rows: self.rows,
        };
        self.enter(&layer.mlp_norm, &record.entered[1], t_x, s)?;
        fit(&mut s.t_y, t_x.len());
        mixer.tangent(&record.mixed, &s.t_h, &mut s.mixing, &mut s.t_y);
        self.leave(layer, 1, record, t_x, s)
    }

    fn mlp(
        &self,
        (layer, [gate, up, down]): (&Layer, &[Linear; 3]),
        (record, m): (&Record, &[f32]),
        t_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        let spec = &self.model.spec;
        let size = self.rows * spec.intermediate_size;
        let gated = Gated {
            slices: self.execution.slices,
            activation: spec.variant.activation,
            gate: &record.mlp[0],
            up: &record.mlp[1],
        };
        self.enter(&layer.mlp_norm, &record.entered[1], t_x, s)?;
        let [t_gate, t_up] = &mut s.t_mlp;
        for (map, into) in [(gate, &mut *t_gate), (up, &mut *t_up)] {
            fit(into, size);
            self.push(
                map,
                record,
                (&s.h, &s.t_h),
                into,
                (spec.intermediate_size, 0),
            )?;
        }
        gated.push(t_gate, t_up);
        fit(&mut s.t_y, t_x.len());
        self.push(
            down,
            record,
            (m, &s.t_mlp[0]),
            &mut s.t_y,
            (spec.hidden_size, 0),
        )?;
        self.leave(layer, 1, record, t_x, s)
    }

    fn leave(
        &self,
        layer: &Layer,
        half: usize,
        record: &Record,
        t_x: &mut [f32],
        s: &mut Scratch,
    ) -> Result<()> {
        if let Some(norms) = &layer.output_norms {
            with_floats(&norms[half], |w| {
                self.norm(w).push(&record.raw_outputs[half], &mut s.t_y)
            })?;
        }
        add(t_x, &s.t_y);
        Ok(())
    }
}
