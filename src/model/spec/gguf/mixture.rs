//! Mixtures of experts in the metadata of a GGUF file.

use candle_core::quantized::gguf_file::Value;

use super::Meta;
use crate::error::Result;
use crate::spec::{Family, Mixture};

/// Counts of other mixtures; zero says that there are none.
const COUNTS: [&str; 3] = [
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "leading_dense_block_count",
];
/// The softmax, as `expert_gating_func` has it; zero says that nothing was set.
const SOFTMAX: usize = 1;

impl Meta<'_> {
    /// The experts of a family that has some. Files of other mixtures have the names of dense
    /// families.
    pub(super) fn mixture(&self, layers: usize) -> Result<Option<Mixture>> {
        let experts = self.optional("expert_count")?.unwrap_or(0);
        if self.family != Family::Qwen3Moe {
            return match experts {
                0 => Ok(None),
                _ => {
                    let what = format!("{experts} experts are not supported; dense layers are");
                    Err(self.wrong("expert_count", what))
                }
            };
        }
        if experts == 0 {
            return Err(self.wrong("expert_count", "missing from the file's metadata"));
        }
        self.refuse_other_mixtures()?;
        // A dense layer has matrices of its own; one without any is named by the first that is missed.
        let sparse = |layer: usize| !self.has(&format!("blk.{layer}.ffn_gate.weight"));
        Ok(Some(Mixture {
            experts,
            used: self.count("expert_used_count")?,
            inner: self.count("expert_feed_forward_length")?,
            normalised: self.are_weights_normalised()?,
            layers: (0..layers).map(sparse).collect(),
        }))
    }

    /// Width inside an MLP; a file of experts alone may leave it out.
    pub(super) fn intermediate_size(&self, mixture: Option<&Mixture>) -> Result<usize> {
        let experts = mixture.filter(|mixture| !mixture.layers.contains(&false));
        match (self.optional("feed_forward_length")?, experts) {
            (None, Some(mixture)) => Ok(mixture.inner),
            (Some(width), _) => Ok(width),
            (None, None) => self.count("feed_forward_length"),
        }
    }

    fn refuse_other_mixtures(&self) -> Result<()> {
        for suffix in COUNTS {
            let count = self.optional(suffix)?.unwrap_or(0);
            if count != 0 {
                let what = format!("{count} is not supported; 0 is");
                return Err(self.wrong(suffix, what));
            }
        }
        let gating = self.optional("expert_gating_func")?.unwrap_or(SOFTMAX);
        if gating > SOFTMAX {
            let what = format!("{gating} is not supported; {SOFTMAX}, the softmax, is");
            return Err(self.wrong("expert_gating_func", what));
        }
        // Zero is how some writers say that nothing was set.
        let scale = self.number("expert_weights_scale")?.unwrap_or(1.0);
        match scale == 0.0 || scale == 1.0 {
            true => Ok(()),
            false => {
                let what = format!("{scale} is not supported; 1 is");
                Err(self.wrong("expert_weights_scale", what))
            }
        }
    }

    /// Converters do not write it for Qwen 3, whose readers normalise.
    fn are_weights_normalised(&self) -> Result<bool> {
        let suffix = "expert_weights_norm";
        match self.get(suffix) {
            None => Ok(true),
            Some(Value::Bool(normalised)) => Ok(*normalised),
            Some(other) => {
                let what = format!("expected true or false, got {other:?}");
                Err(self.wrong(suffix, what))
            }
        }
    }
}
