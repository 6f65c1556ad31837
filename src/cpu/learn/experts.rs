//! Layers with experts: values, gradients and tangents. Router and experts are frozen; what enters
//! them is not, and both what the experts give and the weights of their sum depend on it.

use super::product::{Execution, View, ViewMut, product};
use super::rows::{Gated, fit};
use super::unpack::Way;
use crate::Experts;
use crate::routing::{Choice, Routing};
use realign_model::Activation;
use realign_model::vector::dot;

/// Places of an expert's matrices.
const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

/// What a layer with experts leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Mixed {
    /// The softmax of the router's products, (rows, experts).
    probabilities: Vec<f32>,
    /// Which rows went where.
    routing: Routing,
    /// Gate and up projections of every assignment, (assignments, inner).
    gates: [Vec<f32>; 2],
}

/// Buffers that layers share; a row for every assignment.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// (assignments, hidden).
    wide: Vec<f32>,
    /// (assignments, inner): activation(gate) · up, and what becomes of gate and up.
    m: Vec<f32>,
    of_m: Vec<f32>,
    of_gates: [Vec<f32>; 2],
    /// (rows, experts).
    of_scores: Vec<f32>,
}

/// The experts of a layer at work on the rows of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixer<'a> {
    pub(crate) execution: Execution<'a>,
    pub(crate) experts: &'a Experts,
    pub(crate) activation: Activation,
    pub(crate) rows: usize,
}

impl Mixer<'_> {
    fn count(&self) -> usize {
        self.experts.router.out
    }

    fn hidden(&self) -> usize {
        self.experts.router.columns
    }

    fn gated<'r>(&'r self, record: &'r Mixed) -> Gated<'r> {
        Gated {
            slices: self.execution.slices,
            activation: self.activation,
            gate: &record.gates[GATE],
            up: &record.gates[UP],
        }
    }

    /// y [+]← every assignment's row of x times a matrix of its expert.
    fn each(
        &self,
        routing: &Routing,
        (map, way): (usize, Way),
        x: &[f32],
        y: &mut [f32],
        add: bool,
    ) {
        for group in &routing.groups {
            let weight = &self.experts.experts[group.expert][map];
            let (inner, out) = way.extents(weight);
            let x = View::whole(&x[group.range(inner)], inner);
            let y = ViewMut {
                add,
                ..ViewMut::whole(&mut y[group.range(out)], out)
            };
            product(self.execution, weight, way, group.count, x, y);
        }
    }

    fn scores(&self, h: &[f32], scores: &mut Vec<f32>) {
        let (count, router) = (self.count(), &self.experts.router);
        let into = ViewMut::whole(fit(scores, self.rows * count), count);
        let h = View::whole(h, self.hidden());
        product(self.execution, router, Way::Forward, self.rows, h, into);
    }

    /// x ← x + what the experts give for h.
    pub(crate) fn forward(&self, record: &mut Mixed, h: &[f32], s: &mut Scratch, x: &mut [f32]) {
        let hidden = self.hidden();
        self.scores(h, &mut record.probabilities);
        let choice = Choice {
            experts: self.count(),
            used: self.experts.used,
            normalised: self.experts.normalised,
        };
        record.routing.choose(choice, &mut record.probabilities);
        let routing = &record.routing;
        let (assignments, inner) = (routing.rows.len(), self.inner());
        fit(&mut s.wide, assignments * hidden);
        routing.gather(h, hidden, &mut s.wide);
        for (map, into) in [GATE, UP].into_iter().zip(&mut record.gates) {
            let into = fit(into, assignments * inner);
            self.each(routing, (map, Way::Forward), &s.wide, into, false);
        }
        fit(&mut s.m, assignments * inner);
        self.gated(record).apply(&mut s.m);
        weigh(&mut s.m, inner, &routing.weights);
        self.each(routing, (DOWN, Way::Forward), &s.m, &mut s.wide, false);
        scatter(routing, &s.wide, hidden, x);
    }

    /// Elements between an expert's first and last projection.
    fn inner(&self) -> usize {
        let first = self.experts.experts.first();
        first.map_or(0, |[gate, ..]| gate.out)
    }

    /// d_h ← the gradient in h, for the gradient d_y in what the experts give.
    pub(crate) fn backward(&self, record: &Mixed, d_y: &[f32], s: &mut Scratch, d_h: &mut [f32]) {
        let (routing, hidden, inner) = (&record.routing, self.hidden(), self.inner());
        let size = routing.rows.len() * inner;
        fit(&mut s.wide, routing.rows.len() * hidden);
        routing.gather(d_y, hidden, &mut s.wide);
        fit(&mut s.of_m, size);
        self.each(routing, (DOWN, Way::Backward), &s.wide, &mut s.of_m, false);
        let gated = self.gated(record);
        gated.apply(fit(&mut s.m, size));
        // An assignment gives weight · down m: the gradient in its weight is ⟨d_y, down m⟩.
        let pairs = s.of_m.chunks_exact(inner).zip(s.m.chunks_exact(inner));
        let of_weights: Vec<f32> = pairs.map(|(g, m)| dot(g, m)).collect();
        weigh(&mut s.of_m, inner, &routing.weights);
        let [d_gate, d_up] = &mut s.of_gates;
        gated.pull(&s.of_m, fit(d_gate, size), fit(d_up, size));
        self.each(routing, (GATE, Way::Backward), d_gate, &mut s.wide, false);
        self.each(routing, (UP, Way::Backward), d_up, &mut s.wide, true);
        d_h.fill(0.0);
        scatter(routing, &s.wide, hidden, d_h);
        self.pull_scores(record, &of_weights, &mut s.of_scores);
        let scores = View::whole(&s.of_scores, self.count());
        let into = ViewMut {
            add: true,
            ..ViewMut::whole(d_h, hidden)
        };
        let router = &self.experts.router;
        product(
            self.execution,
            router,
            Way::Backward,
            self.rows,
            scores,
            into,
        );
    }

    /// into (rows, experts) ← the gradient in the router's products, for that in the weights of
    /// assignments.
    fn pull_scores(&self, record: &Mixed, of_weights: &[f32], into: &mut Vec<f32>) {
        let (routing, count) = (&record.routing, self.count());
        let into = fit(into, self.rows * count);
        into.fill(0.0);
        let sums = self.sums(record);
        let mut along = vec![0f32; self.rows];
        if self.experts.normalised {
            let weighted = routing.weights.iter().zip(of_weights);
            for (row, (weight, g)) in routing.rows.iter().zip(weighted) {
                along[*row as usize] += weight * g;
            }
        }
        for (at, row, expert) in routing.assignments() {
            into[row * count + expert] = (of_weights[at] - along[row]) / sums[row];
        }
        let rows = into.chunks_exact_mut(count);
        for (g, p) in rows.zip(record.probabilities.chunks_exact(count)) {
            let along = dot(g, p);
            g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - along));
        }
    }

    /// What the probabilities of a row's experts are divided by.
    fn sums(&self, record: &Mixed) -> Vec<f32> {
        if !self.experts.normalised {
            return vec![1.0; self.rows];
        }
        self.over_chosen(record, &record.probabilities)
    }

    /// The sum over a row's experts of `values` (rows, experts).
    fn over_chosen(&self, record: &Mixed, values: &[f32]) -> Vec<f32> {
        let (routing, count) = (&record.routing, self.count());
        let mut sums = vec![0f32; self.rows];
        for (_, row, expert) in routing.assignments() {
            sums[row] += values[row * count + expert];
        }
        sums
    }

    /// t_y ← the tangent of what the experts give, along the tangent t_h of h.
    pub(crate) fn tangent(&self, record: &Mixed, t_h: &[f32], s: &mut Scratch, t_y: &mut [f32]) {
        let (routing, hidden, inner) = (&record.routing, self.hidden(), self.inner());
        let size = routing.rows.len() * inner;
        fit(&mut s.wide, routing.rows.len() * hidden);
        routing.gather(t_h, hidden, &mut s.wide);
        for (map, into) in [GATE, UP].into_iter().zip(&mut s.of_gates) {
            let into = fit(into, size);
            self.each(routing, (map, Way::Forward), &s.wide, into, false);
        }
        let gated = self.gated(record);
        gated.apply(fit(&mut s.m, size));
        let [t_m, t_up] = &mut s.of_gates;
        gated.push(t_m, t_up);
        self.scores(t_h, &mut s.of_scores);
        let of_weights = self.push_scores(record, &mut s.of_scores);
        // Of weight · down m; the last projection is linear.
        let rows = t_m.chunks_exact_mut(inner).zip(s.m.chunks_exact(inner));
        let weights = routing.weights.iter().zip(&of_weights);
        for ((t_m, m), (weight, t_weight)) in rows.zip(weights) {
            for (t, m) in t_m.iter_mut().zip(m) {
                *t = weight * *t + t_weight * m;
            }
        }
        self.each(routing, (DOWN, Way::Forward), t_m, &mut s.wide, false);
        t_y.fill(0.0);
        scatter(routing, &s.wide, hidden, t_y);
    }

    /// The tangents of the assignments' weights, for those of the router's products.
    fn push_scores(&self, record: &Mixed, tangents: &mut [f32]) -> Vec<f32> {
        let (routing, count) = (&record.routing, self.count());
        let rows = tangents.chunks_exact_mut(count);
        for (t, p) in rows.zip(record.probabilities.chunks_exact(count)) {
            let along = dot(t, p);
            t.iter_mut().zip(p).for_each(|(t, p)| *t = p * (*t - along));
        }
        let moved = match self.experts.normalised {
            true => self.over_chosen(record, tangents),
            false => vec![0.0; self.rows],
        };
        let sums = self.sums(record);
        let moved = routing.assignments().map(|(at, row, expert)| {
            let own = tangents[row * count + expert];
            (own - routing.weights[at] * moved[row]) / sums[row]
        });
        moved.collect()
    }
}

/// Multiplies every assignment's row by its weight.
fn weigh(data: &mut [f32], width: usize, weights: &[f32]) {
    for (row, weight) in data.chunks_exact_mut(width).zip(weights) {
        row.iter_mut().for_each(|value| *value *= weight);
    }
}

/// into (rows, width) ← into + the assignments of each row.
fn scatter(routing: &Routing, from: &[f32], width: usize, into: &mut [f32]) {
    for (row, from) in routing.rows.iter().zip(from.chunks_exact(width)) {
        let into = &mut into[*row as usize * width..][..width];
        into.iter_mut().zip(from).for_each(|(y, x)| *y += x);
    }
}
