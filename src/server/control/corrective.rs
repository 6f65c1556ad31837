//! `[train.corrective]`: who writes a compliant response for pairs of which both violate.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::TrainConfig;
use realign_align::oracle::Oracle;
use realign_align::oracle::corrective::{
    Corrective, CorrectiveError, CorrectiveSpec, CorrectiveUsage, ResponseCache,
};
use realign_align::policy::PolicySet;
use realign_align::preferences::Pair;
use realign_align::train::recipe::RecipeError;
use realign_core::Category;

/// The endpoint that a section names; `None` if it names none.
///
/// # Errors
/// [`RecipeError`], naming the field and what is allowed.
pub fn corrective(config: &TrainConfig) -> Result<Option<CorrectiveSpec>, RecipeError> {
    let Some(raw) = &config.corrective else {
        return Ok(None);
    };
    let wrong = |field, what: &str| RecipeError {
        field,
        what: what.to_owned(),
    };
    let url = raw.url.as_deref().unwrap_or_default().trim_end_matches('/');
    if !url.starts_with("http://") && !url.starts_with("https://") {
        let what = "give an endpoint's base URL, such as http://127.0.0.1:8000/v1";
        return Err(wrong("corrective.url", what));
    }
    let Some(model) = raw.model.clone().filter(|m| !m.is_empty()) else {
        return Err(wrong("corrective.model", "name the model to ask"));
    };
    let bounds = [
        ("corrective.max_tokens", raw.max_tokens, 8192),
        ("corrective.attempts", raw.attempts, 16),
        ("corrective.concurrency", raw.concurrency, 64),
    ];
    for (field, value, most) in bounds {
        if value.is_some_and(|v| !(1..=most).contains(&v)) {
            return Err(wrong(field, &format!("must be 1 to {most}")));
        }
    }
    Ok(Some(CorrectiveSpec {
        url: url.to_owned(),
        model,
        key_env: raw.key_env.clone(),
        template: raw.template.clone(),
        max_tokens: raw.max_tokens.unwrap_or(160),
        attempts: raw.attempts.unwrap_or(3),
        concurrency: raw.concurrency.unwrap_or(4),
    }))
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawCorrective;

    #[test]
    fn a_section_names_an_endpoint_and_mistakes_are_named() {
        let config = |corrective: RawCorrective| TrainConfig {
            corrective: Some(corrective),
            ..TrainConfig::default()
        };
        assert_eq!(corrective(&TrainConfig::default()), Ok(None));
        let whole = RawCorrective {
            url: Some("http://127.0.0.1:9/v1/".into()),
            model: Some("m".into()),
            ..RawCorrective::default()
        };
        let spec = corrective(&config(whole.clone())).unwrap().unwrap();
        assert_eq!(
            (spec.url.as_str(), spec.attempts),
            ("http://127.0.0.1:9/v1", 3)
        );
        for (spoilt, expect) in [
            (
                RawCorrective {
                    url: None,
                    ..whole.clone()
                },
                "train.corrective.url",
            ),
            (
                RawCorrective {
                    model: None,
                    ..whole.clone()
                },
                "train.corrective.model",
            ),
            (
                RawCorrective {
                    attempts: Some(0),
                    ..whole.clone()
                },
                "must be 1 to 16",
            ),
        ] {
            let error = corrective(&config(spoilt)).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
    }
}
