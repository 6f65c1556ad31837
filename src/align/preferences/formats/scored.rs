//! Lists of scored responses, of which the best is preferred over the worst.

use serde_json::Value;

use super::columns::SCORES;
use super::{Draft, LineError, Object, prompt};

/// UltraFeedback's `completions`, or plain `responses` and `scores`.
pub(super) fn draft(object: &Object) -> Result<Draft, LineError> {
    let mut scored: Vec<(String, f64)> = match object.get("completions") {
        Some(Value::Array(completions)) => completions.iter().map(completion).collect(),
        Some(_) => Err(LineError::Completions),
        None => lists(object),
    }?;
    if scored.len() < 2 {
        return Err(LineError::OneScored);
    }
    // The sort is stable: of equal scores, the first response is the best and the last the worst.
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (best, worst) = (scored[0].clone(), scored[scored.len() - 1].clone());
    if best.1 <= worst.1 {
        return Err(LineError::EqualScores);
    }
    let prompt = prompt::read(object)?.ok_or(LineError::NoPrompt)?;
    let format = match object.contains_key("completions") {
        true => "UltraFeedback",
        false => "scored responses",
    };
    Draft::of_texts(object, prompt, [best.0, worst.0], format)
}

fn lists(object: &Object) -> Result<Vec<(String, f64)>, LineError> {
    let list = |key: &str| match object.get(key) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(LineError::NotAList(key.into())),
    };
    let (responses, scores) = (list("responses")?, list("scores")?);
    if responses.len() != scores.len() {
        return Err(LineError::Lengths {
            responses: responses.len(),
            scores: scores.len(),
        });
    }
    responses
        .iter()
        .zip(scores)
        .map(|(response, score)| {
            let response = response
                .as_str()
                .ok_or_else(|| LineError::NotTexts("responses".into()))?;
            let score = number(score).ok_or(LineError::NotNumbers)?;
            Ok((response.to_owned(), score))
        })
        .collect()
}

/// The text and score of an UltraFeedback completion: its overall score, or else the mean rating of
/// its aspects.
fn completion(value: &Value) -> Result<(String, f64), LineError> {
    let response = value
        .get("response")
        .and_then(Value::as_str)
        .ok_or(LineError::CompletionText)?;
    let overall = ["overall_score", "score", "fine-grained_score"]
        .iter()
        .find_map(|key| value.get(*key).and_then(number));
    let score = overall.or_else(|| {
        let aspects = value.get("annotations")?.as_object()?;
        let ratings: Vec<f64> = aspects
            .values()
            .filter_map(|aspect| number(aspect.get("Rating")?))
            .collect();
        (!ratings.is_empty()).then(|| ratings.iter().sum::<f64>() / ratings.len() as f64)
    });
    let score = score.ok_or(LineError::CompletionScore)?;
    Ok((response.to_owned(), score))
}

/// A finite number, which may be written as text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    number.is_finite().then_some(number)
}

/// Checks that the scores of a pair, if it has them, agree with it.
pub(super) fn check(object: &Object) -> Result<(), LineError> {
    let score = |key: &str| object.get(key).and_then(number);
    for names in SCORES {
        if let (Some(chosen), Some(rejected)) = (score(names.0), score(names.1))
            && chosen <= rejected
        {
            return Err(LineError::Contradicted {
                names,
                chosen,
                rejected,
            });
        }
    }
    Ok(())
}
