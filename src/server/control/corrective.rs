//! `[train.corrective]`: who writes a compliant response for pairs of which both violate.

use std::collections::HashMap;
use std::sync::Arc;

use realign_align::oracle::Oracle;
use realign_align::oracle::corrective::{
    Corrective, CorrectiveError, CorrectiveSpec, CorrectiveUsage, ResponseCache,
};
use realign_align::policy::PolicySet;
use realign_align::preferences::Pair;
use realign_core::Category;

/// What the corrective oracle wrote, by index of the pair, and what that took.
#[derive(Debug, Default)]
pub struct Corrections {
    /// Compliant responses.
    pub responses: HashMap<usize, String>,
    /// PUNISH pairs that were asked about.
    pub asked: usize,
    /// Requests.
    pub usage: CorrectiveUsage,
}

/// Has a compliant response written for every PUNISH pair among `indices`.
///
/// # Errors
/// [`CorrectiveError`] if the endpoint fails; a response that does not comply is no error: its pair
/// is then only suppressed.
pub fn corrections(
    spec: Option<&CorrectiveSpec>,
    (set, oracle): (&PolicySet, &dyn Oracle),
    pairs: &[Pair],
    indices: impl Iterator<Item = (usize, Category)>,
    cache: Arc<dyn ResponseCache>,
) -> Result<Corrections, CorrectiveError> {
    let Some(spec) = spec else {
        return Ok(Corrections::default());
    };
    let corrective = Corrective::prepare(spec.clone(), set, cache)?;
    let punish: Vec<usize> = indices
        .filter(|(_, category)| *category == Category::Punish)
        .map(|(index, _)| index)
        .collect();
    let prompts: Vec<&str> = punish.iter().map(|&i| pairs[i].prompt_text()).collect();
    let written = corrective.write_all(&prompts, oracle)?;
    let responses = punish.iter().copied().zip(written);
    Ok(Corrections {
        responses: responses.filter_map(|(i, text)| Some((i, text?))).collect(),
        asked: punish.len(),
        usage: corrective.usage(),
    })
}
