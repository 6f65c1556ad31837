//! The launches of a step: a function of its shape, so that they can be recorded and run again.

use candle_core::Result;

use super::{CudaExecutor, is_small};
use crate::gpu::{Gpu, Graph, Product};
use crate::graphs::{Seen, Shape};
use crate::launches::{self, Embed};
use crate::machine::Machine;
use realign_model::compute::{Ropes, run_layers};

impl<G: Gpu> CudaExecutor<G> {
    /// Runs a step's launches, as they were recorded where that is so.
    pub(super) fn compute(&mut self, shape: &Shape) -> Result<()> {
        if !self.graphs.are_on() || !is_small(shape) {
            return self.launch(shape);
        }
        match self.graphs.look(shape) {
            Seen::First => return self.launch(shape),
            Seen::Again => match self.capture(shape) {
                Ok(graph) => self.graphs.keep(graph),
                Err(error) => return self.go_on_without_graphs(shape, &error),
            },
            Seen::Recorded => {}
        }
        match self.graphs.take().map(|graph| self.gpu.replay(graph)) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => self.go_on_without_graphs(shape, &error),
            None => self.launch(shape),
        }
    }

    /// A step can be launched again from its start: it overwrites whatever it wrote.
    fn go_on_without_graphs(&mut self, shape: &Shape, error: &candle_core::Error) -> Result<()> {
        tracing::warn!(
            %error,
            "steps cannot be recorded as CUDA graphs: their kernels are launched one by one from \
             here on, as with engine.cuda_graphs = false"
        );
        self.graphs.turn_off();
        self.launch(shape)
    }

    fn capture(&self, shape: &Shape) -> Result<Graph> {
        self.gpu.begin_capture()?;
        let launched = self.launch(shape);
        // The device has to stop recording in any case.
        let graph = self.gpu.end_capture();
        launched.and(graph)
    }

    /// Launches all kernels of a step, one by one.
    fn launch(&self, shape: &Shape) -> Result<()> {
        self.begin(shape)?;
        let mut machine = self.machine(shape);
        let layers = self.model.layers.len();
        run_layers(
            &mut machine,
            &self.model,
            // The device makes its own rotations.
            &Ropes::new(&self.model.spec, &[]),
            0..layers,
        )?;
        if shape.outputs > 0 {
            let rows = shape.tables.out_rows;
            machine.norm(&self.model.final_norm, rows, shape.outputs)?;
            self.finish_outputs(&machine)?;
        }
        Ok(())
    }

    pub(super) fn machine<'a>(&'a self, shape: &'a Shape) -> Machine<'a, G> {
        Machine {
            gpu: &self.gpu,
            model: &self.model,
            weights: &self.weights,
            shape,
            cache: &self.cache,
            scratch: self.scratch.as_ref(),
            pending: None,
        }
    }

    /// Embeds the tokens and makes the rotations of their positions.
    pub(super) fn begin(&self, shape: &Shape) -> Result<()> {
        let spec = &self.model.spec;
        self.gpu.launch(&launches::embed(
            self.weights.element,
            &Embed {
                tokens: shape.tables.tokens,
                table: self.weights.matrix(&self.model.embedding)?,
                scale: spec.variant.embedding_scale.unwrap_or(1.0) as f32,
                rows: shape.rows,
                width: spec.hidden_size,
                x: shape.at.x,
            },
        ))?;
        for (frequencies, angles) in self.frequencies.iter().zip(shape.at.angles) {
            if let Some(frequencies) = frequencies {
                let (half, from) = (
                    spec.head_dim / 2,
                    [shape.tables.positions, frequencies.address],
                );
                self.gpu
                    .launch(&launches::rope_table(shape.rows, half, from, angles))?;
            }
        }
        Ok(())
    }

    /// Logits of the rows in h, then draws.
    fn finish_outputs(&self, machine: &Machine<'_, G>) -> Result<()> {
        let (shape, vocab) = (machine.shape, self.vocab_size());
        machine.multiply(&Product {
            element: self.weights.element,
            weight: self.weights.matrix(&self.model.head)?,
            x: shape.at.h,
            y: shape.at.logits,
            rows: shape.outputs,
            inner: self.model.spec.hidden_size,
            out: vocab,
            stride: vocab,
        })?;
        if let Some(cap) = self.model.spec.variant.logit_cap {
            let count = shape.outputs * vocab;
            self.gpu
                .launch(&launches::soft_cap(shape.at.logits, cap as f32, count))?;
        }
        if shape.drawn > 0 {
            let at = [shape.at.logits, shape.tables.draws, shape.at.tokens];
            self.gpu
                .launch(&launches::sample([shape.drawn, vocab], at))?;
        }
        Ok(())
    }
}
