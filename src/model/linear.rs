//! A linear map with a frozen weight, in whatever form a backend keeps weights.

use candle_core::{Result, Tensor};

use super::lora::{LoraSite, Projection};

/// One projection of a decoder layer, its weight in the form `W`.
#[derive(Clone, Debug)]
pub struct Linear<W> {
    /// Where adapters attach.
    pub site: LoraSite,
    /// The frozen weight, (out, in).
    pub weight: W,
    /// The bias, (out), f32.
    pub bias: Option<Tensor>,
}

impl<W> Linear<W> {
    /// A projection of one layer; the bias, if any, has `out` elements.
    pub fn new(layer: usize, projection: Projection, weight: W, bias: Option<Tensor>) -> Self {
        Self {
            site: LoraSite { layer, projection },
            weight,
            bias,
        }
    }

    /// The frozen weight.
    pub fn weight(&self) -> &W {
        &self.weight
    }

    /// The bias, (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same map with its weight in another form.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<V>(self, f: impl FnOnce(W) -> Result<V>) -> Result<Linear<V>> {
        Ok(Linear {
            site: self.site,
            weight: f(self.weight)?,
            bias: self.bias,
        })
    }
}
