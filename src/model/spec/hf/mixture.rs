//! Mixtures of experts in a `config.json`.

use serde_json::Value;

use super::Fields;
use crate::error::Result;
use crate::spec::{Family, Mixture};

/// Options of other mixtures, and the values under which they change nothing.
const OPTIONS: [(&str, f64); 7] = [
    ("n_shared_experts", 0.0),
    ("num_shared_experts", 0.0),
    ("shared_expert_intermediate_size", 0.0),
    ("routed_scaling_factor", 1.0),
    ("n_group", 1.0),
    ("topk_group", 1.0),
    ("router_logit_softcapping", 0.0),
];

impl Fields<'_> {
    /// The experts of a family that has some.
    pub(super) fn mixture(&self, family: Family, layers: usize) -> Result<Option<Mixture>> {
        if family != Family::Qwen3Moe {
            return Ok(None);
        }
        self.refuse_other_mixtures()?;
        let count = |field: &str| self.required(field, self.count(field)?);
        // Newer writers have the second name.
        let experts = match self.count("num_experts")? {
            Some(experts) => experts,
            None => match self.count("num_local_experts")? {
                Some(experts) => experts,
                None => return Err(self.wrong("num_experts", "is missing")),
            },
        };
        let step = self.count("decoder_sparse_step")?.unwrap_or(1);
        if step == 0 {
            return Err(self.wrong("decoder_sparse_step", "must be at least 1"));
        }
        let dense = self.dense_layers()?;
        let sparse = |layer: usize| !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        Ok(Some(Mixture {
            experts,
            used: count("num_experts_per_tok")?,
            inner: count("moe_intermediate_size")?,
            normalised: self.flag("norm_topk_prob")?.unwrap_or(false),
            layers: (0..layers).map(sparse).collect(),
        }))
    }

    fn refuse_other_mixtures(&self) -> Result<()> {
        for (field, neutral) in OPTIONS {
            let value = self.number(field)?.unwrap_or(neutral);
            if value != neutral {
                let what = format!("{value} is not supported; {neutral} is");
                return Err(self.wrong(field, what));
            }
        }
        match self.text("scoring_func")? {
            None | Some("softmax") => Ok(()),
            Some(other) => {
                let what = format!("`{other}` is not supported; `softmax` is");
                Err(self.wrong("scoring_func", what))
            }
        }
    }

    /// Layers with an MLP among those with experts.
    fn dense_layers(&self) -> Result<Vec<usize>> {
        let Some(listed) = self.get("mlp_only_layers") else {
            return Ok(vec![]);
        };
        let layers: Option<Vec<usize>> = listed.as_array().and_then(|listed| {
            let one = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
            listed.iter().map(one).collect()
        });
        layers.ok_or_else(|| {
            let what = format!("expected a list of layers, counted from 0, got {listed}");
            self.wrong("mlp_only_layers", what)
        })
    }
}
