//! The steps of a decoder layer on the executor's registers.

use candle_core::{Result, Tensor};
use half::f16;

use super::attend::attend;
use super::executor::{CpuExecutor, Run};
use super::gates::gated;
use super::kernels;
use super::kv::Stored;
use super::packed::{PANEL, PackedWeight};
use super::rows::{
    add_bias, for_rows, for_tiles, normalise, normalise_in_place, rotate, round_rows, with_floats,
    with_optional,
};
use super::team::Shards;
use crate::{Experts, Layer, Linear};
use realign_model::compute::Compute;
use realign_model::{Activation, AttentionShape, BLOCK_TOKENS, KvType, RopeTable};

impl Compute for CpuExecutor {
    type Weight = PackedWeight;

    fn normalise(&mut self, weight: &Tensor) -> Result<()> {
        let (r, width) = (&mut self.registers, self.model.spec.hidden_size);
        let eps = self.model.spec.rms_norm_eps as f32;
        r.h.reshape(r.rows, width);
        let (x, h) = (&r.x, Shards::new(&mut r.h.values));
        let team = &mut self.team;
        with_floats(weight, |weight| {
            for_rows(team, r.rows, |row| {
                // SAFETY: every row is written once.
                let h = unsafe { h.part(row * width, width) };
                normalise(&x[row * width..(row + 1) * width], weight, eps, h);
            });
        })?;
        round_rows(team, &mut r.h);
        Ok(())
    }

    fn heads(&mut self, index: usize, layer: &Layer, rope: &RopeTable) -> Result<()> {
        let r = &mut self.registers;
        let [q, k, v, _] = &layer.attention;
        for (map, values) in [q, k, v].into_iter().zip(&mut r.qkv) {
            values.resize(r.rows * map.weight().out, 0.0);
        }
        let (sites, into) = ([q.site, k.site, v.site], &mut r.projected);
        self.adapters
            .project(&mut self.team, self.isa, sites, &r.h, into);
        self.project_heads(layer)?;
        match &layer.qk_norms {
            Some([q, k]) => with_floats(q, |q| {
                with_floats(k, |k| self.place(index, Some((q, k)), rope))
            })?,
            None => {
                self.place(index, None, rope);
                Ok(())
            }
        }
    }

    fn attend(&mut self, index: usize, shape: &AttentionShape) -> Result<()> {
        attend(self, index, shape);
        Ok(())
    }

    fn add_projected(&mut self, map: &Linear, norm: Option<&Tensor>) -> Result<()> {
        let width = self.model.spec.hidden_size;
        let mut x = std::mem::take(&mut self.registers.x);
        let mut y = std::mem::take(&mut self.registers.y);
        let outcome = match norm {
            None => {
                let x = Shards::new(&mut x);
                self.project_m(map, |row, column, values| {
                    // SAFETY: every (row, column) is computed once.
                    let x = unsafe { x.part(row * width + column, values.len()) };
                    x.iter_mut().zip(values).for_each(|(x, v)| *x += v);
                })
            }
            Some(norm) => {
                y.resize(x.len(), 0.0);
                let shards = Shards::new(&mut y);
                let projected = self.project_m(map, |row, column, values| {
                    // SAFETY: every (row, column) is computed once.
                    let y = unsafe { shards.part(row * width + column, values.len()) };
                    y.copy_from_slice(values);
                });
                projected.and_then(|()| self.add_normalised(&mut x, &mut y, norm))
            }
        };
        (self.registers.x, self.registers.y) = (x, y);
        outcome
    }

    fn mix(&mut self, experts: &Experts, activation: Activation) -> Result<()> {
        self.mix_experts(experts, activation);
        Ok(())
    }

    fn gate(&mut self, gate: &Linear, up: &Linear, activation: Activation) -> Result<()> {
        let r = &mut self.registers;
        let (sites, into) = ([gate.site, up.site], &mut r.projected);
        self.adapters
            .project(&mut self.team, self.isa, sites, &r.h, into);
        let (gate, up) = (gate.weight(), up.weight());
        r.m.reshape(r.rows, gate.out);
        let (isa, h, projected) = (self.isa, &r.h, &r.projected);
        let (m, width) = (Shards::new(&mut r.m.values), gate.out);
        for_tiles(
            &mut self.team,
            gate.panels(),
            r.rows,
            |panel, first, rows, tiles| {
                for ((weight, tile), projected) in [gate, up].iter().zip(&mut *tiles).zip(projected)
                {
                    projected.prefetch(panel, first);
                    kernels::panel(isa, weight, panel, h, first, rows, tile);
                    projected.add(isa, panel, first, rows, tile);
                }
                let lanes = PANEL.min(width - panel * PANEL);
                let [gates, ups] = &*tiles;
                for (row, (gate, up)) in gates[..rows].iter().zip(ups).enumerate() {
                    // SAFETY: every (row, panel) is computed once.
                    let m = unsafe { m.part((first + row) * width + panel * PANEL, lanes) };
                    gated(activation, &gate[..lanes], &up[..lanes], m);
                }
            },
        );
        Ok(())
    }
}

impl CpuExecutor {
    /// W h, plus bias and adapter, for q, k and v in one section.
    fn project_heads(&mut self, layer: &Layer) -> Result<()> {
        let [q, k, v, _] = &layer.attention;
        let weights = [q.weight(), k.weight(), v.weight()];
        let r = &mut self.registers;
        let (isa, h, projected) = (self.isa, &r.h, &r.projected);
        let [q_out, k_out, v_out] = &mut r.qkv;
        let outs = [Shards::new(q_out), Shards::new(k_out), Shards::new(v_out)];
        let ends = [
            weights[0].panels(),
            weights[0].panels() + weights[1].panels(),
        ];
        let panels = ends[1] + weights[2].panels();
        let (team, rows) = (&mut self.team, r.rows);
        with_biases([q, k, v], |biases| {
            for_tiles(team, panels, rows, |panel, first, rows, [tile, _]| {
                let (which, panel) = match panel {
                    p if p < ends[0] => (0, p),
                    p if p < ends[1] => (1, p - ends[0]),
                    p => (2, p - ends[1]),
                };
                let (weight, column) = (weights[which], panel * PANEL);
                projected[which].prefetch(panel, first);
                kernels::panel(isa, weight, panel, h, first, rows, tile);
                projected[which].add(isa, panel, first, rows, tile);
                let lanes = PANEL.min(weight.out - column);
                for (row, tile) in tile[..rows].iter_mut().enumerate() {
                    add_bias(tile, biases[which], column);
                    // SAFETY: every (row, panel) is computed once.
                    let y = unsafe { outs[which].part((first + row) * weight.out + column, lanes) };
                    y.copy_from_slice(&tile[..lanes]);
                }
            });
        })
    }

    fn place(&mut self, index: usize, norms: Option<(&[f32], &[f32])>, rope: &RopeTable) {
        match self.kv.kind {
            KvType::F32 => self.place_heads::<f32>(index, norms, rope),
            KvType::F16 => self.place_heads::<f16>(index, norms, rope),
            KvType::Q8 => self.place_heads::<u8>(index, norms, rope),
        }
    }

    /// Normalises and rotates the heads of q and k, and writes k and v to the cache.
    fn place_heads<E: Stored>(
        &mut self,
        index: usize,
        norms: Option<(&[f32], &[f32])>,
        rope: &RopeTable,
    ) {
        let spec = &self.model.spec;
        let (d, eps) = (spec.head_dim, spec.rms_norm_eps as f32);
        let (q_width, kv_width) = (spec.heads * d, spec.kv_heads * d);
        let r = &mut self.registers;
        let (runs, sequences) = (&r.runs, &r.sequences);
        let [q, k, v] = &mut r.qkv;
        let (q, k, v) = (Shards::new(q), Shards::new(k), &*v);
        let cache = self.kv.shards::<E>();
        let finish = |head: &mut [f32], norm: Option<&[f32]>, row: usize| {
            if let Some(norm) = norm {
                normalise_in_place(head, norm, eps);
            }
            rotate(head, rope.row(row));
        };
        self.team.run(runs.len(), |_, piece| {
            let Run {
                row,
                rows,
                position,
                sequence,
            } = runs[piece];
            let block = sequences[sequence].blocks[position / BLOCK_TOKENS];
            for (row, position) in (row..row + rows).zip(position..) {
                // SAFETY: every row belongs to one run.
                let (q, k) = unsafe {
                    (
                        q.part(row * q_width, q_width),
                        k.part(row * kv_width, kv_width),
                    )
                };
                q.chunks_exact_mut(d)
                    .for_each(|head| finish(head, norms.map(|n| n.0), row));
                let values = v[row * kv_width..(row + 1) * kv_width].chunks_exact(d);
                for (head, (key, value)) in k.chunks_exact_mut(d).zip(values).enumerate() {
                    finish(key, norms.map(|n| n.1), row);
                    // SAFETY: a block is written by one sequence (blocks that sequences share are
                    // full), and a run has all of its rows that go to this block. That sequences
                    // write to different blocks is the engine's promise; `check` does not look.
                    let part = unsafe { cache.head(index, block, head) };
                    E::write(part, position % BLOCK_TOKENS, key, value);
                }
            }
        });
    }

    /// Multiplies `m`: `sink(row, first column, values)` takes W m, plus bias and adapter.
    fn project_m(
        &mut self,
        map: &Linear,
        sink: impl Fn(usize, usize, &[f32]) + Sync,
    ) -> Result<()> {
        let weight = map.weight();
        let r = &mut self.registers;
        round_rows(&mut self.team, &mut r.m);
        let (isa, m, into) = (self.isa, &r.m, &mut r.projected);
        self.adapters
            .project(&mut self.team, isa, [map.site], m, into);
        let (projected, team) = (&r.projected[0], &mut self.team);
        with_optional(map.bias(), |bias| {
            let (panels, rows) = (weight.panels(), m.rows);
            for_tiles(team, panels, rows, |panel, first, rows, [tile, _]| {
                projected.prefetch(panel, first);
                kernels::panel(isa, weight, panel, m, first, rows, tile);
                projected.add(isa, panel, first, rows, tile);
                let column = panel * PANEL;
                let lanes = PANEL.min(weight.out - column);
                for (row, tile) in tile[..rows].iter_mut().enumerate() {
                    add_bias(tile, bias, column);
                    sink(first + row, column, &tile[..lanes]);
                }
            });
        })
    }

    /// x += norm(y), row by row.
    fn add_normalised(&mut self, x: &mut [f32], y: &mut [f32], norm: &Tensor) -> Result<()> {
        let width = self.model.spec.hidden_size;
        let eps = self.model.spec.rms_norm_eps as f32;
        let (x, y) = (Shards::new(x), Shards::new(y));
        let (team, rows) = (&mut self.team, self.registers.rows);
        with_floats(norm, |norm| {
            for_rows(team, rows, |row| {
                // SAFETY: every row is worked on once.
                let (x, y) = unsafe { (x.part(row * width, width), y.part(row * width, width)) };
                normalise_in_place(y, norm, eps);
                x.iter_mut().zip(y).for_each(|(x, y)| *x += *y);
            });
        })
    }
}

/// The biases of three maps, where they have one.
fn with_biases<T>(maps: [&Linear; 3], f: impl FnOnce([Option<&[f32]>; 3]) -> T) -> Result<T> {
    let [a, b, c] = maps.map(Linear::bias);
    with_optional(a, |a| {
        with_optional(b, |b| with_optional(c, |c| f([a, b, c])))
    })??
}
