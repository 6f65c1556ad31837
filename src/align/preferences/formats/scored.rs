//! Responses with scores: the best against the worst.

use serde_json::Value;

use super::{Draft, Message, Object, Role, messages, text_field};

/// UltraFeedback's `completions`, or plain `responses` and `scores`.
pub(super) fn draft(object: &Object) -> Result<Draft, String> {
    let scored = match object.get("completions") {
        Some(Value::Array(completions)) => completions.iter().map(completion).collect(),
        Some(_) => Err("`completions` must be a list".to_owned()),
        None => lists(object),
    };
    let mut scored: Vec<(String, f64)> = scored?;
    if scored.len() < 2 {
        return Err("a preference needs at least two scored responses".to_owned());
    }
    // Stable: of equal scores the first counts as better among the best, and as worse at the end.
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (best, worst) = (scored[0].clone(), scored[scored.len() - 1].clone());
    if best.1 <= worst.1 {
        return Err("all scores are equal, so they state no preference".to_owned());
    }
    Ok(Draft {
        prompt: prompt(object)?,
        responses: [best.0, worst.0],
        labels: [Vec::new(), Vec::new()],
    })
}

fn prompt(object: &Object) -> Result<Vec<Message>, String> {
    let key = ["prompt", "instruction"]
        .into_iter()
        .find(|key| object.contains_key(*key));
    let key = key.ok_or("`prompt` (or `instruction`) is missing")?;
    match object.get(key) {
        Some(list @ Value::Array(_)) => messages(key, list),
        _ => Ok(vec![Message {
            role: Role::User,
            content: text_field(object, key)?,
        }]),
    }
}

fn lists(object: &Object) -> Result<Vec<(String, f64)>, String> {
    let list = |key: &str| match object.get(key) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(format!(
            "`{key}` must be a list beside the other of `responses` and `scores`"
        )),
    };
    let (responses, scores) = (list("responses")?, list("scores")?);
    if responses.len() != scores.len() {
        return Err(format!(
            "{} responses have {} scores",
            responses.len(),
            scores.len()
        ));
    }
    let couple = |(response, score): (&Value, &Value)| {
        let response = response
            .as_str()
            .ok_or("`responses` must list texts only")?;
        let score = number(score).ok_or("`scores` must list numbers only")?;
        Ok((response.to_owned(), score))
    };
    responses.iter().zip(scores).map(couple).collect()
}

/// One of UltraFeedback's completions: its overall score, else the mean of its aspects' ratings.
fn completion(value: &Value) -> Result<(String, f64), String> {
    let response = value.get("response").and_then(Value::as_str);
    let response = response.ok_or("a completion needs `response`, a text")?;
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
    let score = score.ok_or("a completion needs `overall_score`, or `annotations` with ratings")?;
    Ok((response.to_owned(), score))
}

/// A finite number, also where a file writes it as text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    number.is_finite().then_some(number)
}

/// Scores beside a pair must agree with it.
pub(super) fn check(object: &Object) -> Result<(), String> {
    let score = |key: &str| object.get(key).and_then(number);
    match (score("score_chosen"), score("score_rejected")) {
        (Some(chosen), Some(rejected)) if chosen <= rejected => Err(format!(
            "score_chosen {chosen} is not above score_rejected {rejected}, so the pair states no preference"
        )),
        _ => Ok(()),
    }
}
