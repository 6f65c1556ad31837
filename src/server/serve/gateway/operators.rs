//! What operators and judges tell a gateway.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use realign_core::clock;
use realign_fleet::{Command, Order, OrderError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Gateway;
use crate::api::ApiError;

/// Longest reason, and longest name, in characters.
const MAX_WHY: usize = 500;
const MAX_NAME: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderBody {
    why: String,
    by: Option<String>,
    generation: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerdictsBody {
    verdicts: Vec<VerdictBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerdictBody {
    generation: String,
    complies: bool,
    key: Option<String>,
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Body(error.to_string()))
}

/// A text of one line and a limited length.
fn line(param: &str, text: &str, most: usize) -> Result<String, ApiError> {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let text = text.trim();
    let length = text.chars().count();
    if length == 0 || length > most {
        return Err(ApiError::Field {
            param: param.into(),
            message: format!("`{param}` must have 1 to {most} characters; it has {length}"),
        });
    }
    Ok(text.into())
}

/// `POST /admin/v1/fleet/{pause,resume,abort,rollout}`.
pub(super) async fn order(
    State(gateway): State<Arc<Gateway>>,
    Path(command): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    gateway.access.check_operator(&headers)?;
    let named = Command::ALL.into_iter().find(|c| c.as_str() == command);
    let Some(command) = named else {
        return Err(ApiError::NotFound(
            "a gateway knows pause, resume, abort and rollout".into(),
        ));
    };
    let body: OrderBody = parse(&body)?;
    let order = Order {
        command,
        generation: body.generation,
        by: line("by", body.by.as_deref().unwrap_or("operator"), MAX_NAME)?,
        why: line("why", &body.why, MAX_WHY)?,
        at: clock::unix_seconds(),
    };
    let own = gateway.clone();
    // It is on the disk when it is answered.
    let ordered = tokio::task::spawn_blocking(move || own.runner.order(order)).await;
    match ordered.map_err(|error| ApiError::Internal(error.to_string()))? {
        Ok(()) => Ok(Json(gateway.describe())),
        Err(OrderError::Refused(why)) => Err(ApiError::Conflict(why)),
        Err(error @ OrderError::Unwritten(_)) => Err(ApiError::Unavailable(error.to_string())),
    }
}

/// `POST /admin/v1/fleet/verdicts`: what a judge of live answers found, for the canary under way.
pub(super) async fn verdicts(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    gateway.access.check_operator(&headers)?;
    let body: VerdictsBody = parse(&body)?;
    let count = |verdict: &&VerdictBody| {
        let key = verdict.key.as_deref();
        let desk = &gateway.desk;
        desk.judged(&verdict.generation, key, !verdict.complies)
    };
    let taken = body.verdicts.iter().filter(count).count();
    Ok(Json(json!({ "taken": taken })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_lines_and_bounded() {
        assert_eq!(line("why", " two\nlines ", 10).unwrap(), "two lines");
        for (text, most) in [("", 10), (" \n", 10), ("abc", 2)] {
            let error = line("why", text, most).unwrap_err();
            assert!(error.to_string().contains("`why` must have"), "{error}");
        }
        assert!(parse::<OrderBody>(b"{}").is_err());
        assert!(parse::<OrderBody>(b"{\"why\":\"x\",\"generaton\":\"y\"}").is_err());
    }
}
