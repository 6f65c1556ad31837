//! Mixtures of experts as data.

use super::{MAX_SIZE, ModelSpec};

/// Most experts of a layer: several times those of any open model.
const MAX_EXPERTS: usize = 4096;

/// Experts in place of the MLP of some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Width inside an expert.
    pub inner: usize,
    /// Whether the weights of a token's experts are scaled to sum to 1.
    pub normalised: bool,
    /// Whether each layer has experts; the others have an MLP.
    pub layers: Vec<bool>,
}

impl Mixture {
    /// What is wrong with it for a model of so many layers: the field as `config.json` has it, and
    /// what it should be.
    pub(super) fn check(&self, layers: usize) -> Result<(), (&'static str, String)> {
        let (experts, used, inner) = (self.experts, self.used, self.inner);
        if experts == 0 || experts > MAX_EXPERTS {
            let what = format!("{experts} experts: 1 to {MAX_EXPERTS} are supported");
            return Err(("num_experts", what));
        }
        if used == 0 || used > experts {
            let what = format!("{used} of {experts} experts: 1 to {experts} can be used");
            return Err(("num_experts_per_tok", what));
        }
        if inner == 0 || inner > MAX_SIZE {
            let what = format!("{inner} is no width of an expert: 1 to {MAX_SIZE} are");
            return Err(("moe_intermediate_size", what));
        }
        match self.layers.len() == layers {
            true => Ok(()),
            false => {
                let what = format!("must say for each of {layers} layers whether it has experts");
                Err(("mlp_only_layers", what))
            }
        }
    }
}

impl ModelSpec {
    /// The experts of a layer, if it has some in place of an MLP.
    pub fn mixture(&self, layer: usize) -> Option<&Mixture> {
        let mixture = self.variant.mixture.as_ref();
        mixture.filter(|mixture| mixture.layers.get(layer) == Some(&true))
    }

    /// Elements between the first and the last projection of an MLP, for one token: those of all its
    /// experts where there are some, the larger number where layers differ.
    pub fn inner_width(&self) -> usize {
        match &self.variant.mixture {
            None => self.intermediate_size,
            Some(mixture) => {
                let experts = mixture.used.saturating_mul(mixture.inner);
                match mixture.layers.iter().all(|sparse| *sparse) {
                    true => experts,
                    false => experts.max(self.intermediate_size),
                }
            }
        }
    }

    /// Weights of the MLPs and experts of all layers.
    pub(super) fn mlp_parameters(&self) -> u128 {
        let hidden = self.hidden_size as u128;
        let mlp = 3 * hidden * self.intermediate_size as u128;
        let layer = |layer: usize| match self.mixture(layer) {
            None => mlp,
            Some(mixture) => {
                let one = 3 * hidden * mixture.inner as u128 + hidden;
                mixture.experts as u128 * one
            }
        };
        (0..self.layers).map(layer).sum()
    }
}
