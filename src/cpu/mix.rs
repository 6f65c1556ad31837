//! Experts on the executor's registers: every expert's weights are read once a step, for all rows
//! that chose it.

use realign_model::Activation;

use super::Experts;
use super::activations::{Activations, ROW_SLACK};
use super::executor::CpuExecutor;
use super::gates::gated;
use super::kernels::{self, Isa, Tile};
use super::packed::{PANEL, PackedWeight};
use super::routing::{Choice, Group, Routing};
use super::rows::{for_tiles, round_rows};
use super::team::{Shards, Team};

/// Pieces per thread that the panels of all experts are cut into.
const PIECES: usize = 16;

/// What mixing works on.
#[derive(Debug, Default)]
pub(super) struct Mixing {
    /// The router's products, then their softmax, (rows, experts).
    scores: Vec<f32>,
    routing: Routing,
    /// The normalised residual stream of every assignment, (assignments, hidden).
    h: Activations,
    /// What its expert's last projection reads, (assignments, inner).
    m: Activations,
}

impl CpuExecutor {
    /// x ← x + Σ w · down (activation(gate h) · up h). The experts of a row are added in ascending
    /// order, so that a row's sum does not depend on the rows beside it.
    pub(super) fn mix_experts(&mut self, experts: &Experts, activation: Activation) {
        let mut mixing = std::mem::take(&mut self.registers.mixing);
        self.route(experts, &mut mixing);
        let r = &mut self.registers;
        let Mixing { routing, h, m, .. } = &mut mixing;
        (h.wanted, m.wanted) = (r.h.wanted, r.m.wanted);
        h.reshape(routing.rows.len(), r.h.columns);
        routing.gather(
            &r.h.values,
            r.h.columns,
            &mut h.values[..routing.rows.len() * r.h.columns],
        );
        round_rows(&mut self.team, h);
        inner(
            &mut self.team,
            self.isa,
            experts,
            routing,
            activation,
            (h, m),
        );
        round_rows(&mut self.team, m);
        outer(&mut self.team, self.isa, experts, routing, (m, &mut r.x));
        r.mixing = mixing;
    }

    /// Scores of all rows, and the rows grouped by what they choose.
    fn route(&mut self, experts: &Experts, mixing: &mut Mixing) {
        let (r, router) = (&self.registers, &experts.router);
        mixing.scores.clear();
        mixing.scores.resize(r.rows * router.out, 0.0);
        let (isa, h, shards) = (self.isa, &r.h, Shards::new(&mut mixing.scores));
        for_tiles(
            &mut self.team,
            router.panels(),
            r.rows,
            |panel, first, rows, [tile, _]| {
                kernels::panel(isa, router, panel, h, first, rows, tile);
                let lanes = PANEL.min(router.out - panel * PANEL);
                for (row, tile) in tile[..rows].iter().enumerate() {
                    let at = (first + row) * router.out + panel * PANEL;
                    // SAFETY: each (row, panel) is computed once.
                    unsafe { shards.part(at, lanes) }.copy_from_slice(&tile[..lanes]);
                }
            },
        );
        let choice = Choice {
            experts: router.out,
            used: experts.used,
            normalised: experts.normalised,
        };
        mixing.routing.choose(choice, &mut mixing.scores);
    }
}

/// Runs `f(group, panel, first assignment, rows, tiles)` for every panel of every group's expert and
/// every sixteen of its rows; the tiles are scratch.
fn for_experts(
    team: &mut Team,
    groups: &[Group],
    panels: usize,
    f: impl Fn(&Group, usize, usize, usize, &mut [Tile; 2]) + Sync,
) {
    let all = groups.len() * panels;
    let per_piece = all.div_ceil(team.threads() * PIECES).max(1);
    team.run(all.div_ceil(per_piece), |_, piece| {
        let mut tiles: [Tile; 2] = [[[0.0; PANEL]; ROW_SLACK]; 2];
        for index in piece * per_piece..all.min((piece + 1) * per_piece) {
            let (group, panel) = (&groups[index / panels], index % panels);
            for first in (0..group.count).step_by(ROW_SLACK) {
                let rows = ROW_SLACK.min(group.count - first);
                f(group, panel, group.start + first, rows, &mut tiles);
            }
        }
    });
}

/// m ← activation(gate h) · up h of every assignment's expert.
fn inner(
    team: &mut Team,
    isa: Isa,
    experts: &Experts,
    routing: &Routing,
    activation: Activation,
    (h, m): (&Activations, &mut Activations),
) {
    let Some([first, ..]) = experts.experts.first() else {
        return;
    };
    let (width, panels) = (first.out, first.panels());
    m.reshape(h.rows, width);
    let m = Shards::new(&mut m.values);
    let groups = &routing.groups;
    for_experts(team, groups, panels, |group, panel, first, rows, tiles| {
        let [gate, up, _] = &experts.experts[group.expert];
        for (weight, tile) in [gate, up].into_iter().zip(&mut *tiles) {
            kernels::panel(isa, weight, panel, h, first, rows, tile);
        }
        let lanes = PANEL.min(width - panel * PANEL);
        let [gates, ups] = &*tiles;
        for (row, (gate, up)) in gates[..rows].iter().zip(ups).enumerate() {
            // SAFETY: every (assignment, panel) is computed once.
            let m = unsafe { m.part((first + row) * width + panel * PANEL, lanes) };
            gated(activation, &gate[..lanes], &up[..lanes], m);
        }
    });
}

/// x ← x + w · down m, for every assignment. A piece has the same outputs of all experts, because
/// several add to one row.
fn outer(
    team: &mut Team,
    isa: Isa,
    experts: &Experts,
    routing: &Routing,
    (m, x): (&Activations, &mut [f32]),
) {
    let downs: Vec<&PackedWeight> = experts.experts.iter().map(|[_, _, down]| down).collect();
    let Some(first) = downs.first() else {
        return;
    };
    let (width, panels) = (first.out, first.panels());
    let x = Shards::new(x);
    team.run(panels, |_, panel| {
        let mut tile: Tile = [[0.0; PANEL]; ROW_SLACK];
        let lanes = PANEL.min(width - panel * PANEL);
        for group in &routing.groups {
            for at in (group.start..group.start + group.count).step_by(ROW_SLACK) {
                let rows = ROW_SLACK.min(group.start + group.count - at);
                kernels::panel(isa, downs[group.expert], panel, m, at, rows, &mut tile);
                let assignments = routing.rows[at..].iter().zip(&routing.weights[at..]);
                for ((row, weight), tile) in assignments.zip(&tile[..rows]) {
                    let place = *row as usize * width + panel * PANEL;
                    // SAFETY: a piece has a panel to itself, and works on one row after the other.
                    let x = unsafe { x.part(place, lanes) };
                    x.iter_mut().zip(tile).for_each(|(x, y)| *x += weight * y);
                }
            }
        }
    });
}
