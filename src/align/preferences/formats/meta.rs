//! What a row says about its pair: labels, and whether it is held out.

use serde_json::Value;

use super::{LineError, Object};

/// The mark of the row or of its `meta`; of two that differ, the one that holds out.
pub(super) fn holdout(object: &Object) -> Result<Option<bool>, LineError> {
    let inside = object.get("meta").and_then(|meta| meta.get("holdout"));
    let mut mark = None;
    for (value, place) in [(object.get("holdout"), "holdout"), (inside, "meta.holdout")] {
        match value {
            None | Some(Value::Null) => {}
            Some(Value::Bool(held)) => mark = mark.max(Some(*held)),
            Some(_) => return Err(LineError::Holdout(place)),
        }
    }
    Ok(mark)
}

/// The labels of both responses.
pub(super) fn shared_labels(object: &Object) -> Result<Vec<String>, LineError> {
    let mut labels = labels_of(object, "labels")?;
    labels.extend(labels_of(object, "category")?);
    Ok(labels)
}

/// Labels under a key of the line or of its `meta`: text or a list of texts.
pub(super) fn labels_of(object: &Object, key: &str) -> Result<Vec<String>, LineError> {
    let inside = object.get("meta").and_then(|meta| meta.get(key));
    let mut labels = Vec::new();
    for value in [object.get(key), inside].into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(label) => labels.push(label.clone()),
            Value::Array(items) => {
                let texts: Option<Vec<String>> = items
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect();
                labels.extend(texts.ok_or_else(|| LineError::NotTexts(key.into()))?);
            }
            _ => return Err(LineError::NotLabels(key.into())),
        }
    }
    Ok(labels)
}
