//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`: adapters under names of their own, in
//! vLLM's form, for controllers that are made for it.

use axum::extract::{Request, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::ApiError;
use super::ports::NewName;
use super::{AppState, blocking, body};

/// Longest name, in bytes.
const MAX_NAME: usize = 256;

/// An adapter to load.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct LoadBody {
    /// What requests will send as `model`.
    lora_name: String,
    /// A PEFT directory on the server's disk.
    lora_path: String,
    /// Whether the name may exist already, with the same content; other content is refused.
    load_inplace: Option<bool>,
    /// Refuse unless the content is this generation, 12 hex digits.
    expected_generation: Option<String>,
}

/// An adapter to unload.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct UnloadBody {
    /// The name that it was loaded under.
    lora_name: String,
    /// Refuse unless the name refers to this generation.
    expected_generation: Option<String>,
}

/// `POST /v1/load_lora_adapter`.
pub(crate) async fn load(
    State(state): State<AppState>,
    request: Request,
) -> Result<String, ApiError> {
    let body: LoadBody = body::of_operator(request, state.max_body_bytes).await?;
    let own = check(&state.model_name, &body.lora_name)?;
    let asked = body.expected_generation.as_deref();
    if let (Some(own), Some(asked)) = (own, asked)
        && own != asked
    {
        return Err(ApiError::Conflict(format!(
            "the name is that of generation {own}, and `expected_generation` is {asked:?}"
        )));
    }
    let (name, expected) = (body.lora_name.clone(), own.or(asked).map(str::to_owned));
    blocking(move || {
        let new = NewName {
            name: &name,
            path: &body.lora_path,
            again: body.load_inplace.unwrap_or(false),
            expected: expected.as_deref(),
        };
        state.admin.load_adapter(new)?;
        Ok(format!(
            "Success: LoRA adapter '{name}' added successfully."
        ))
    })
    .await
}

/// `POST /v1/unload_lora_adapter`.
pub(crate) async fn unload(
    State(state): State<AppState>,
    request: Request,
) -> Result<String, ApiError> {
    let UnloadBody {
        lora_name: name,
        expected_generation,
    } = body::of_operator(request, state.max_body_bytes).await?;
    blocking(move || {
        let expected = expected_generation.as_deref();
        state.admin.unload_adapter(&name, expected)?;
        Ok(format!(
            "Success: LoRA adapter '{name}' removed successfully."
        ))
    })
    .await
}

/// Whether a name may be given. `<served name>@<generation>` may, to that generation alone, which is
/// returned then.
fn check<'a>(served: &str, name: &'a str) -> Result<Option<&'a str>, ApiError> {
    let refused = |message: String| Err(ApiError::field("lora_name", message));
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return refused(format!(
            "`lora_name` must have 1 to {MAX_NAME} bytes and no control characters"
        ));
    }
    let Some(rest) = name.strip_prefix(served) else {
        return Ok(None);
    };
    let digit = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match rest.strip_prefix('@') {
        Some(id) if id.len() == 12 && id.bytes().all(digit) => Ok(Some(id)),
        None if !rest.is_empty() => Ok(None),
        _ => refused(format!(
            "`lora_name` {name:?} is a name of what this server serves; names that begin with it must be \
             `{served}@<generation>`, the 12 digits of the adapter's own generation"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names_of_what_serves_are_not_given_away() {
        assert_eq!(check("tiny", "sql").unwrap(), None);
        assert_eq!(check("tiny", "tiny2").unwrap(), None);
        let id = "0123456789ab";
        assert_eq!(check("tiny", &format!("tiny@{id}")).unwrap(), Some(id));
        for refused in [
            "",
            "tiny",
            "tiny@",
            "tiny@base",
            "tiny@0123456789AB",
            "a\nb",
        ] {
            assert!(check("tiny", refused).is_err(), "{refused:?}");
        }
        assert!(check("tiny", &"n".repeat(257)).is_err());
    }
}
