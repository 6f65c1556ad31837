//! Which pairs a run trains on, as token ids: thinned to the recipe's limit, corrected where both
//! responses violate, without those that are too long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{PipelineError, RenderError, Renderer};
use crate::oracle::Oracle;
use crate::oracle::corrective::{
    Corrective, CorrectiveError, CorrectiveSpec, CorrectiveUsage, ResponseCache,
};
use crate::policy::PolicySet;
use crate::preferences::Pair;
use crate::train::examples::TokenPair;
use crate::train::{Recipe, Skipped, prepare};
use realign_core::Category;
use realign_model::LoadedModel;

/// The pairs to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The preference data.
    pub dataset: &'a [Pair],
    /// The category of every pair of it.
    pub categories: &'a [Category],
    /// Indices of the pairs to train on.
    pub train: &'a [usize],
}

/// Who writes compliant responses to PUNISH pairs.
#[derive(Clone)]
pub struct Corrector<'a> {
    /// The endpoint.
    pub spec: &'a CorrectiveSpec,
    /// The policies that a response is told to keep.
    pub policies: &'a PolicySet,
    /// Judges what was written.
    pub oracle: &'a dyn Oracle,
    /// Responses that were written before.
    pub cache: Arc<dyn ResponseCache>,
}

/// What the corrective endpoint wrote.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    /// PUNISH pairs that it was asked about.
    pub asked: usize,
    /// Those of them that have a compliant response.
    pub written: usize,
    /// Requests.
    pub usage: CorrectiveUsage,
}

/// The chosen pairs.
#[derive(Debug, Default)]
pub struct Selected {
    /// Pairs to train on, in the order of the data.
    pub pairs: Vec<TokenPair>,
    /// Pairs that are left out as too long or empty.
    pub skipped: Vec<Skipped>,
    /// What was corrected.
    pub corrections: Corrections,
}

impl Selection<'_> {
    /// Thins the pairs to the recipe's `max_pairs`, has PUNISH pairs corrected if there is a
    /// corrector, renders all, and leaves out what is longer than the recipe's `max_tokens`.
    ///
    /// # Errors
    /// If the endpoint fails or a pair cannot be rendered. A response that does not comply is no
    /// error: its pair is then only suppressed.
    pub fn select(
        &self,
        loaded: &LoadedModel,
        recipe: &Recipe,
        corrector: Option<Corrector<'_>>,
    ) -> Result<Selected, PipelineError> {
        let kept = self.thin(self.train, recipe.max_pairs);
        let (responses, corrections) = match corrector {
            Some(corrector) => self.correct(&kept, &corrector)?,
            None => Default::default(),
        };
        let renderer = Renderer::new(loaded);
        let render = |&index: &usize| {
            let pair = &self.dataset[index];
            match (self.categories[index], responses.get(&index)) {
                (Category::Punish, Some(response)) => renderer.corrected(pair, response),
                (category, _) => renderer.pair(pair, category),
            }
        };
        let rendered: Result<Vec<TokenPair>, RenderError> = kept.iter().map(render).collect();
        let prepared = prepare(rendered?, recipe.max_tokens);
        Ok(Selected {
            pairs: prepared.pairs,
            skipped: prepared.skipped,
            corrections,
        })
    }

    /// As [`Selection::select`], but pairs that are too long do not count towards `max_pairs`, at
    /// the price of rendering every pair. Nothing is corrected.
    ///
    /// # Errors
    /// If a pair cannot be rendered.
    pub fn select_fitting(
        &self,
        loaded: &LoadedModel,
        recipe: &Recipe,
    ) -> Result<Selected, PipelineError> {
        let all = Recipe {
            max_pairs: 0,
            ..recipe.clone()
        };
        let mut selected = self.select(loaded, &all, None)?;
        let fitting: HashSet<&str> = selected.pairs.iter().map(|pair| pair.id.as_str()).collect();
        let id = |index: usize| self.dataset[index].id.0.as_str();
        let fits = |&index: &usize| fitting.contains(id(index));
        let fitting: Vec<usize> = self.train.iter().copied().filter(fits).collect();
        let kept = self.thin(&fitting, recipe.max_pairs);
        let kept: HashSet<&str> = kept.into_iter().map(id).collect();
        selected
            .pairs
            .retain(|pair| kept.contains(pair.id.as_str()));
        Ok(selected)
    }

    /// At most `limit` of some pairs (0: all), each category in proportion, chosen by content id.
    fn thin(&self, indices: &[usize], limit: usize) -> Vec<usize> {
        if limit == 0 || indices.len() <= limit {
            return indices.to_vec();
        }
        let mut kept = Vec::with_capacity(limit);
        for wanted in Category::ALL {
            let mut of: Vec<usize> = indices
                .iter()
                .copied()
                .filter(|&i| self.categories[i] == wanted)
                .collect();
            of.sort_by(|&a, &b| self.dataset[a].id.0.cmp(&self.dataset[b].id.0));
            of.truncate((of.len() * limit).div_ceil(indices.len()));
            kept.extend(of);
        }
        kept.sort_unstable();
        kept
    }

    /// Compliant responses to the PUNISH pairs among `indices`, by index.
    fn correct(
        &self,
        indices: &[usize],
        corrector: &Corrector<'_>,
    ) -> Result<(HashMap<usize, String>, Corrections), CorrectiveError> {
        let (spec, cache) = (corrector.spec.clone(), corrector.cache.clone());
        let corrective = Corrective::prepare(spec, corrector.policies, cache)?;
        let punish = |&i: &usize| self.categories[i] == Category::Punish;
        let punish: Vec<usize> = indices.iter().copied().filter(punish).collect();
        let prompts = punish.iter().map(|&i| self.dataset[i].prompt_text());
        let prompts: Vec<&str> = prompts.collect();
        let written = corrective.write_all(&prompts, corrector.oracle)?;
        let responses = punish.iter().copied().zip(written);
        let responses: HashMap<usize, String> =
            responses.filter_map(|(i, text)| Some((i, text?))).collect();
        let corrections = Corrections {
            asked: punish.len(),
            written: responses.len(),
            usage: corrective.usage(),
        };
        Ok((responses, corrections))
    }
}
