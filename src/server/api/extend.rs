//! `POST /admin/v1/policies/extend`: a policy's file with an example or a prompt more. The server
//! writes nothing: operators put the file in place, as they do with every change.

use axum::Json;
use axum::extract::{Request, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::answers::admin::ExtendedPolicy;
use super::error::ApiError;
use super::{AppState, blocking, body};
use realign_align::policy::ExampleVerdict;
use realign_align::policy::extend::{Addition, extend, item};

/// What to add.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ExtendPolicyRequest")]
pub(crate) struct Body {
    /// The policy's id.
    policy: String,
    /// `example`, `prompt` or `control`.
    #[schemars(extend("enum" = ["example", "prompt", "control"]))]
    add: String,
    /// The user message.
    prompt: String,
    /// Of an example: the rule's id.
    rule: Option<String>,
    /// Of an example: the answer.
    response: Option<String>,
    /// Of an example: `violates` or `complies`, what the rule should say.
    #[schemars(extend("enum" = ["violates", "complies", null]))]
    verdict: Option<String>,
}

impl Body {
    fn addition(&self) -> Result<Addition<'_>, ApiError> {
        let prompt = self.prompt.as_str();
        let missing = |name: &str| ApiError::field(name, format!("an example needs `{name}`"));
        match self.add.as_str() {
            "prompt" => Ok(Addition::Prompt(prompt)),
            "control" => Ok(Addition::Control(prompt)),
            "example" => Ok(Addition::Example {
                rule: self.rule.as_deref().ok_or_else(|| missing("rule"))?,
                prompt,
                response: self
                    .response
                    .as_deref()
                    .ok_or_else(|| missing("response"))?,
                verdict: match self.verdict.as_deref() {
                    Some("violates") => ExampleVerdict::Violates,
                    Some("complies") => ExampleVerdict::Complies,
                    _ => {
                        let wanted = "`verdict` of an example is `violates` or `complies`";
                        return Err(ApiError::field("verdict", wanted));
                    }
                },
            }),
            _ => Err(ApiError::field(
                "add",
                "`add` is `example`, `prompt` or `control`",
            )),
        }
    }
}

/// Returns the changed file, or the lines to add where its form does not allow that.
pub(crate) async fn extended(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<ExtendedPolicy>, ApiError> {
    let body: Body = body::of_operator(request, state.max_body_bytes).await?;
    blocking(move || {
        let addition = body.addition()?;
        let (file, text) = state.admin.policy_file(&body.policy)?;
        let (text, reason) = match extend(&text, &addition) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let line = format!("- {}", item(&addition));
        Ok(Json(ExtendedPolicy {
            file,
            line,
            text,
            reason,
        }))
    })
    .await
}
