//! What a probe sees of an exchange: vectors pooled from hidden states.

use crate::policy::Exchange;

/// Why there are no features.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hidden states: {0}")]
pub struct FeatureError(pub String);

/// Where features come from: the base model, or a stand-in in tests.
pub trait FeatureSource: Send + Sync + std::fmt::Debug {
    /// What the features depend on beside the text: the base model's content hash.
    fn base(&self) -> &str;

    /// Per exchange and layer one vector, in the exchanges' order: a mean over the prompt's tokens,
    /// then one over the response's, of equal width. Equal exchanges have equal features whatever
    /// stands beside them.
    ///
    /// # Errors
    /// [`FeatureError`].
    fn features(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError>;
}
