//! The residual stream itself, for callers that read hidden states rather than logits.

use candle_core::{Result, bail};

use super::{CudaExecutor, bytes_of};
use crate::gpu::Gpu;
use realign_model::compute::{Ropes, run_layers};
use realign_model::{Outputs, Step};

impl<G: Gpu> CudaExecutor<G> {
    /// Runs the base layers and shows the residual stream where it enters each of `layers`
    /// (ascending; the number of layers itself is what leaves the last one), as (rows, hidden).
    /// Nothing above the last of them is computed; the step's adapters and outputs are left out.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, `layers` is not ascending, or the device
    /// fails.
    pub(crate) fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        show: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let step = Step {
            adapters: &[],
            outputs: &[],
            ..*step
        };
        let nothing = Outputs {
            draws: &[],
            logits: &mut [],
            tokens: &mut Vec::new(),
        };
        self.check(&step, &nothing)?;
        let deepest = self.model.layers.len();
        if !layers.is_sorted() || layers.last().is_some_and(|last| *last > deepest) {
            bail!("layers {layers:?} are not an ascending part of 0..={deepest}");
        }
        let result = self.run_residuals(&step, layers, show);
        // As in `forward`: nothing may run when buffers grow.
        let finished = self.gpu.finish();
        result.and(finished)
    }

    fn run_residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        mut show: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let shape = self.prepare(step, (&[], &[]))?;
        self.begin(&shape)?;
        let spec = &self.model.spec;
        let ropes = Ropes::new(spec, &[]);
        let mut machine = self.machine(&shape);
        let mut values = vec![0f32; shape.rows * spec.hidden_size];
        let mut done = 0;
        for &layer in layers {
            run_layers(&mut machine, &self.model, &ropes, done..layer)?;
            done = layer;
            machine.settle()?;
            self.gpu.read(shape.at.x, bytes_of(&mut values))?;
            show(layer, &values);
        }
        Ok(())
    }
}
