//! What a probe sees of an exchange: vectors pooled from hidden states.

use serde::{Deserialize, Serialize};

use crate::policy::Exchange;

/// How the rows of an exchange become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over the response's tokens.
    Mean,
    /// The response's last token.
    Last,
    /// Mean over the prompt's tokens beside the mean over the response's.
    Both,
}

impl Pooling {
    /// All of them.
    pub const ALL: [Pooling; 3] = [Pooling::Mean, Pooling::Last, Pooling::Both];
}

/// A layer and a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct View {
    /// The layer whose input is read; the number of layers is what leaves the last.
    pub layer: usize,
    /// How its rows are pooled.
    pub pooling: Pooling,
}

/// Why there are no features.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hidden states: {0}")]
pub struct FeatureError(pub String);

/// Where features come from: the base model, or a stand-in in tests.
pub trait FeatureSource: Send + Sync + std::fmt::Debug {
    /// What the features depend on beside the text: the base model's content hash.
    fn base(&self) -> &str;

    /// Layers worth trying.
    fn layers(&self) -> &[usize];

    /// Per exchange and view one vector, in the given orders. Equal exchanges have equal features
    /// whatever stands beside them.
    ///
    /// # Errors
    /// [`FeatureError`].
    fn features(
        &self,
        exchanges: &[Exchange<'_>],
        views: &[View],
    ) -> Result<Vec<Vec<Vec<f32>>>, FeatureError>;
}
