//! LoRA factors as variables, and gradients with respect to them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::recipe::Recipe;
use realign_model::{LoraPair, LoraSite, LoraWeights, ModelSpec, Projection};

/// An adapter under training.
#[derive(Debug)]
pub struct TrainableLora {
    sites: BTreeMap<LoraSite, (Var, Var)>,
    scale: f64,
}

impl TrainableLora {
    /// A fresh adapter as PEFT initialises it: A uniform in ±1/√in, B zero, so that the adapted
    /// model starts as the base. The same seed gives the same bits.
    pub fn init(
        spec: &ModelSpec,
        recipe: &Recipe,
        projections: &[Projection],
        device: &Device,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
        let mut sites = BTreeMap::new();
        for layer in recipe.lowest_layer(spec.layers)..spec.layers {
            for &projection in projections {
                let site = LoraSite { layer, projection };
                // Models with experts carry adapters on attention alone.
                let Some((inner, out)) = spec.site_shape(site) else {
                    continue;
                };
                let bound = 1.0 / (inner as f32).sqrt();
                let a: Vec<f32> = (0..recipe.rank * inner)
                    .map(|_| rng.random_range(-bound..bound))
                    .collect();
                let a = Var::from_tensor(&Tensor::from_vec(a, (recipe.rank, inner), device)?)?;
                let b = Var::zeros((out, recipe.rank), DType::F32, device)?;
                sites.insert(site, (a, b));
            }
        }
        Ok(Self {
            sites,
            scale: recipe.alpha / recipe.rank as f64,
        })
    }

    /// Continues from existing weights (which all share one scale).
    pub fn from_weights(weights: &LoraWeights) -> Result<Self> {
        let scale = weights.sites.values().next().map_or(1.0, |p| p.scale);
        let vars = |(site, pair): (&LoraSite, &LoraPair)| {
            Ok((
                *site,
                (Var::from_tensor(&pair.a)?, Var::from_tensor(&pair.b)?),
            ))
        };
        Ok(Self {
            sites: weights.sites.iter().map(vars).collect::<Result<_>>()?,
            scale,
        })
    }

    /// The adapter as the decoder takes it. The tensors are the variables themselves: gradients
    /// reach them, and later steps show through.
    pub fn weights(&self) -> LoraWeights {
        self.map(|var| Ok(var.as_tensor().clone()))
            .unwrap_or_default()
    }

    /// A copy that later steps do not change.
    pub fn snapshot(&self) -> Result<LoraWeights> {
        self.map(|var| var.as_detached_tensor().copy())
    }

    fn map(&self, f: impl Fn(&Var) -> Result<Tensor>) -> Result<LoraWeights> {
        let pair = |(site, (a, b)): (&LoraSite, &(Var, Var))| {
            Ok((
                *site,
                LoraPair {
                    a: f(a)?,
                    b: f(b)?,
                    scale: self.scale,
                },
            ))
        };
        let sites: BTreeMap<_, _> = self.sites.iter().map(pair).collect::<Result<_>>()?;
        Ok(sites.into())
    }

    /// All variables in a fixed order: A then B of each site, sites by layer and projection.
    pub fn vars(&self) -> impl Iterator<Item = &Var> {
        self.sites.values().flat_map(|(a, b)| [a, b])
    }
}

/// One gradient per LoRA tensor.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// (∂A, ∂B) per site.
    pub sites: BTreeMap<LoraSite, (Tensor, Tensor)>,
}

impl Gradients {
    /// In the order of [`TrainableLora::vars`].
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.sites.values().flat_map(|(a, b)| [a, b])
    }

    /// ⟨self, other⟩ over all tensors, accumulated in f64.
    pub fn dot(&self, other: &Gradients) -> Result<f64> {
        let mut sum = 0f64;
        for (x, y) in self.tensors().zip(other.tensors()) {
            sum += (x.to_dtype(DType::F64)? * y.to_dtype(DType::F64)?)?
                .sum_all()?
                .to_scalar::<f64>()?;
        }
        Ok(sum)
    }

    /// Euclidean norm over all tensors.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.dot(self)?.sqrt())
    }

    /// self + other.
    pub(crate) fn add(&self, other: &Gradients) -> Result<Gradients> {
        let mut sites = BTreeMap::new();
        for ((site, x), y) in self.sites.iter().zip(other.sites.values()) {
            sites.insert(*site, ((&x.0 + &y.0)?, (&x.1 + &y.1)?));
        }
        Ok(Gradients { sites })
    }

    /// factor · self.
    pub(crate) fn scaled(&self, factor: f64) -> Result<Gradients> {
        let pair = |(site, (a, b)): (&LoraSite, &(Tensor, Tensor))| {
            Ok((*site, ((a * factor)?, (b * factor)?)))
        };
        Ok(Gradients {
            sites: self.sites.iter().map(pair).collect::<Result<_>>()?,
        })
    }

    /// `weights` moved by `step` along this gradient: an adapter again, so any forward pass that
    /// takes an adapter can evaluate it.
    pub fn perturb(&self, weights: &LoraWeights, step: f64) -> Result<LoraWeights> {
        let moved = |(site, pair): (&LoraSite, &LoraPair)| {
            let Some((ga, gb)) = self.sites.get(site) else {
                return Ok((*site, pair.clone()));
            };
            let a = (pair.a.detach() + (ga * step)?)?;
            let b = (pair.b.detach() + (gb * step)?)?;
            Ok((
                *site,
                LoraPair {
                    a,
                    b,
                    scale: pair.scale,
                },
            ))
        };
        let sites: BTreeMap<_, _> = weights.sites.iter().map(moved).collect::<Result<_>>()?;
        Ok(sites.into())
    }
}
