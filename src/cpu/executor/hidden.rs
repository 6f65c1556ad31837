//! The residual stream itself, for callers that read hidden states rather than logits.

use candle_core::{Result, bail};

use realign_model::Step;
use realign_model::compute::run_layers;

use super::CpuExecutor;

impl CpuExecutor {
    /// Runs the base layers and shows the residual stream where it enters each of `layers`
    /// (ascending; the number of layers itself is what leaves the last one), as (rows, hidden).
    /// Nothing above the last of them is computed.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, or `layers` is not ascending.
    pub(crate) fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        mut show: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (model, ropes) = self.begin(step, &[])?;
        let values = step.tokens.len() * model.spec.hidden_size;
        let mut done = 0;
        for &layer in layers {
            if layer < done || layer > model.layers.len() {
                bail!(
                    "layers {layers:?} are not an ascending part of 0..={}",
                    model.layers.len()
                );
            }
            run_layers(self, &model, &ropes, done..layer)?;
            done = layer;
            show(layer, &self.registers.x[..values]);
        }
        Ok(())
    }
}
