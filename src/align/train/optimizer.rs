//! The recipe's optimiser: updates, and the state that checkpoints store.

use candle_core::{Result, Tensor, Var};

use super::adamw::{AdamW, AdamWConstants};
use super::choices::OptimizerKind;
use super::lion::Lion;
use super::recipe::Recipe;
use super::trainable::Gradients;

/// An optimiser with its state.
#[derive(Debug)]
pub(crate) enum Optimizer {
    /// AdamW, with two moments per variable.
    AdamW(AdamW),
    /// Lion, with one momentum per variable.
    Lion(Lion),
}

impl Optimizer {
    /// The recipe's optimiser, with zero state for these variables.
    pub(crate) fn new<'a>(recipe: &Recipe, vars: impl Iterator<Item = &'a Var>) -> Result<Self> {
        let Recipe {
            betas,
            epsilon,
            weight_decay,
            ..
        } = *recipe;
        Ok(match recipe.optimizer {
            OptimizerKind::Adamw => {
                let mut adamw = AdamW::new(vars)?;
                adamw.constants = AdamWConstants {
                    betas,
                    epsilon,
                    weight_decay,
                };
                Optimizer::AdamW(adamw)
            }
            OptimizerKind::Lion => Optimizer::Lion(Lion::new(vars, betas, weight_decay)?),
        })
    }

    /// Updates made so far.
    pub(crate) fn steps(&self) -> usize {
        match self {
            Optimizer::AdamW(adamw) => adamw.steps,
            Optimizer::Lion(lion) => lion.steps,
        }
    }

    /// One update with gradients scaled by `scale`.
    pub(crate) fn update<'a>(
        &mut self,
        vars: impl Iterator<Item = &'a Var>,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        match self {
            Optimizer::AdamW(adamw) => adamw.update(vars, gradients, learning_rate, scale),
            Optimizer::Lion(lion) => lion.update(vars, gradients, learning_rate, scale),
        }
    }

    /// The state tensors of the variable with this index, each with its name in checkpoints.
    pub(crate) fn state(&self, variable: usize) -> Vec<(&'static str, &Tensor)> {
        match self {
            Optimizer::AdamW(adamw) => {
                let (m, v) = &adamw.moments[variable];
                vec![("m", m), ("v", v)]
            }
            Optimizer::Lion(lion) => vec![("momentum", &lion.moments[variable])],
        }
    }

    /// Restores a state: for each variable, the tensors in the order of [`Optimizer::state`].
    pub(crate) fn restore(&mut self, steps: usize, state: Vec<Vec<Tensor>>) {
        match self {
            Optimizer::AdamW(adamw) => {
                adamw.steps = steps;
                for (moments, tensors) in adamw.moments.iter_mut().zip(state) {
                    if let Ok([m, v]) = <[Tensor; 2]>::try_from(tensors) {
                        *moments = (m, v);
                    }
                }
            }
            Optimizer::Lion(lion) => {
                lion.steps = steps;
                for (momentum, tensor) in lion.moments.iter_mut().zip(state.into_iter().flatten()) {
                    *momentum = tensor;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;

    use super::*;
    use realign_model::{LoraSite, Projection};

    fn var(values: &[f32]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    fn gradients(a: &[f32], b: &[f32]) -> Gradients {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let site = LoraSite {
            layer: 0,
            projection: Projection::ALL[0],
        };
        Gradients {
            sites: BTreeMap::from([(site, (tensor(a), tensor(b)))]),
        }
    }

    fn values(var: &Var) -> Vec<f32> {
        var.as_tensor().to_vec1().unwrap()
    }

    fn optimizer(kind: OptimizerKind, vars: &[Var], weight_decay: f64) -> Optimizer {
        let recipe = Recipe {
            optimizer: kind,
            weight_decay,
            ..Recipe::default()
        };
        Optimizer::new(&recipe, vars.iter()).unwrap()
    }

    #[test]
    fn the_first_step_of_either_moves_by_the_learning_rate_against_the_gradient() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Lion] {
            let vars = [var(&[1.0, 1.0]), var(&[0.0])];
            let mut optimizer = optimizer(kind, &vars, 0.0);
            let gradients = gradients(&[2.0, -3.0], &[0.5]);
            optimizer.update(vars.iter(), &gradients, 0.1, 1.0).unwrap();
            for (got, expected) in values(&vars[0]).iter().zip([0.9, 1.1]) {
                assert!((got - expected).abs() < 1e-5, "{kind:?}: {got}");
            }
            assert!((values(&vars[1])[0] + 0.1).abs() < 1e-5, "{kind:?}");
        }
    }

    /// By hand, β = (0.9, 0.999): the second gradient is small and opposite, so the momentum of
    /// the first still decides the sign.
    #[test]
    fn lion_follows_its_momentum() {
        let vars = [var(&[0.0]), var(&[0.0])];
        let mut lion = optimizer(OptimizerKind::Lion, &vars, 0.0);
        lion.update(vars.iter(), &gradients(&[1.0], &[1.0]), 0.1, 1.0)
            .unwrap();
        // m = 0.001; 0.9 · 0.001 − 0.1 · 0.005 > 0, and with 0.02 in place of 0.005 below 0.
        lion.update(vars.iter(), &gradients(&[-0.005], &[-0.02]), 0.1, 1.0)
            .unwrap();
        assert!((values(&vars[0])[0] + 0.2).abs() < 1e-6);
        assert!(values(&vars[1])[0].abs() < 1e-6);
    }

    #[test]
    fn weight_decay_is_decoupled_from_the_gradient() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Lion] {
            let vars = [var(&[2.0]), var(&[2.0])];
            let mut optimizer = optimizer(kind, &vars, 0.5);
            optimizer
                .update(vars.iter(), &gradients(&[0.0], &[0.0]), 0.1, 1.0)
                .unwrap();
            assert!((values(&vars[0])[0] - 1.9).abs() < 1e-6, "{kind:?}");
        }
    }

    #[test]
    fn a_restored_state_goes_on_as_the_original_would() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Lion] {
            let vars = [var(&[1.0]), var(&[1.0])];
            let mut first = optimizer(kind, &vars, 0.1);
            let step = |o: &mut Optimizer, vars: &[Var; 2], g: f32| {
                o.update(vars.iter(), &gradients(&[g], &[-g]), 0.1, 1.0)
                    .unwrap();
            };
            step(&mut first, &vars, 1.0);
            let copied = [var(&values(&vars[0])), var(&values(&vars[1]))];
            let mut second = optimizer(kind, &copied, 0.1);
            let state = (0..2).map(|i| first.state(i).iter().map(|(_, t)| (*t).clone()).collect());
            second.restore(first.steps(), state.collect());
            step(&mut first, &vars, -0.3);
            step(&mut second, &copied, -0.3);
            assert_eq!(values(&vars[0]), values(&copied[0]), "{kind:?}");
            assert_eq!(second.steps(), 2);
        }
    }
}
