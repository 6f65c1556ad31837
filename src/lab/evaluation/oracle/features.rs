//! Hidden states of all responses, computed once for all folds.

use std::collections::HashMap;
use std::sync::Arc;

use realign_align::oracle::FeatureSource;
use realign_align::oracle::features::FeatureError;
use realign_align::policy::{Exchange, Labelled};

use super::LabelledPairs;

/// Features by (prompt, response): per layer one vector, as [`FeatureSource::features`] gives them.
#[derive(Debug)]
pub struct FeatureTable {
    source: Arc<dyn FeatureSource>,
    known: HashMap<(String, String), Vec<Vec<f32>>>,
}

impl FeatureTable {
    /// Runs the model over every response of `data` and `extra`.
    ///
    /// # Errors
    /// [`FeatureError`].
    pub fn new(
        source: Arc<dyn FeatureSource>,
        data: &LabelledPairs,
        extra: &[Labelled],
    ) -> Result<FeatureTable, FeatureError> {
        let all: Vec<&Labelled> = data.responses.iter().chain(extra).collect();
        let exchanges: Vec<Exchange<'_>> = all.iter().map(|row| row.exchange()).collect();
        let features = source.features(&exchanges)?;
        let keys = all
            .iter()
            .map(|row| (row.prompt.clone(), row.response.clone()));
        Ok(FeatureTable {
            known: keys.zip(features).collect(),
            source,
        })
    }

    /// Number of distinct responses.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are no responses.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl FeatureSource for FeatureTable {
    fn base(&self) -> &str {
        self.source.base()
    }

    fn features(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError> {
        let lookup = |e: &Exchange<'_>| {
            let key = (e.prompt.to_owned(), e.response.to_owned());
            let known = self.known.get(&key).cloned();
            known.ok_or_else(|| FeatureError("an unknown response".to_owned()))
        };
        exchanges.iter().map(lookup).collect()
    }
}
