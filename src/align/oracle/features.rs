//! A probe's features of an exchange: vectors pooled from hidden states.

use crate::policy::Exchange;

/// Hidden states could not be computed; the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hidden states: {0}")]
pub struct FeatureError(pub String);

/// Source of features: the base model, or a fake in tests.
pub trait FeatureSource: Send + Sync + std::fmt::Debug {
    /// What the features depend on besides the text: the base model's content hash.
    fn base(&self) -> &str;

    /// One vector per exchange and layer, in the exchanges' order: the mean over the prompt's
    /// tokens followed by the mean over the response's, of equal width. An exchange's features do
    /// not depend on the rest of the batch.
    ///
    /// # Errors
    /// [`FeatureError`] if the model cannot run.
    fn features(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError>;
}
