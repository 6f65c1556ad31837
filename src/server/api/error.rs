//! All request errors, and their mapping to HTTP.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answers::client::{self, ErrorBody};
use super::ports::AdminError;
use crate::telemetry::Refusal;
use realign_engine::request::SubmitError;

/// Seconds after which a refused client should retry.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request failed or was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not a JSON object.
    #[error("{0}")]
    Body(String),
    /// A field has the wrong type, is out of range or is missing.
    #[error("{message}")]
    Field {
        /// The field, as a path (`messages[0].content`).
        param: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A field asks for something that this server does not support.
    #[error("`{param}`{detail} is not supported by this server")]
    Unsupported {
        /// The field.
        param: String,
        /// Which of its values, with a leading space, or empty.
        detail: String,
    },
    /// Prompt and completion exceed the model's context.
    #[error("{message}")]
    ContextLength {
        /// The field that contains the prompt.
        param: &'static str,
        /// The engine's message, with limit and length.
        message: String,
    },
    /// Missing or wrong API key.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// `model` is not served here.
    #[error("the model `{model}` does not exist; this server serves {allowed}")]
    ModelNotFound {
        /// The requested model.
        model: String,
        /// The allowed forms.
        allowed: String,
    },
    /// The path, realignment or generation does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, but not with this method.
    #[error("{method} is not allowed on {path}")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {seconds} seconds")]
    Timeout {
        /// The time limit, in seconds.
        seconds: u64,
    },
    /// The current state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The body exceeds the size limit.
    #[error("the request body is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The size limit, in bytes.
        limit: usize,
    },
    /// The engine's queue is full.
    #[error("{0}")]
    QueueFull(String),
    /// The limit of concurrent requests is reached.
    #[error("the server answers {limit} requests at once and has no place left; retry in a moment")]
    TooManyAtOnce {
        /// Maximum number of concurrent requests.
        limit: usize,
    },
    /// The key has used up its limit for the minute.
    #[error("this key is limited to {limit} {what} a minute; retry in {retry_after} s")]
    RateLimited {
        /// `requests` or `tokens`.
        what: &'static str,
        /// The limit per minute.
        limit: u32,
        /// Seconds until a retry can succeed.
        retry_after: u64,
    },
    /// The request may use more tokens than its key ever has at once.
    #[error(
        "this request may use {tokens} tokens (its prompt, and max_tokens for each answer), and \
         this key is limited to {limit} tokens a minute: shorten the prompt, or lower max_tokens or \
         n; waiting does not help"
    )]
    TooManyTokens {
        /// Prompt and answers, in tokens.
        tokens: usize,
        /// The limit per minute.
        limit: u32,
    },
    /// The server is loading or draining.
    #[error("{0}")]
    Unavailable(String),
    /// An internal failure.
    #[error("{0}")]
    Internal(String),
}

/// The message of an error's response.
#[derive(Clone, Debug)]
pub(crate) struct Explained(pub(crate) String);

impl ApiError {
    /// The error of a request whose fields came under other names: `(ours, theirs)`.
    pub(crate) fn renamed(self, names: &[(&str, &str)]) -> Self {
        let rename = |param: String| {
            let found = names.iter().find_map(|(ours, theirs)| {
                let rest = param.strip_prefix(ours)?;
                let whole = rest.is_empty() || rest.starts_with(['.', '[']);
                whole.then(|| format!("{theirs}{rest}"))
            });
            found.unwrap_or(param)
        };
        match self {
            Self::Field { param, message } => {
                let own = rename(param.clone());
                let message = message.replace(&format!("`{param}`"), &format!("`{own}`"));
                Self::Field {
                    param: own,
                    message,
                }
            }
            Self::Unsupported { param, detail } => Self::Unsupported {
                param: rename(param),
                detail,
            },
            other => other,
        }
    }

    /// An invalid field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field {
            param: param.into(),
            message: message.into(),
        }
    }

    /// Maps the engine's refusal of a prompt that came in field `param`.
    pub(crate) fn from_submit(error: &SubmitError, param: &'static str) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => Self::QueueFull(message),
            SubmitError::TooLong { .. } => Self::ContextLength { param, message },
            SubmitError::EmptyPrompt => Self::field(param, message),
            SubmitError::ShuttingDown | SubmitError::Stopped | SubmitError::NoCopy { .. } => {
                Self::Unavailable(message)
            }
        }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// Status, OpenAI's `type`, and `code`.
    fn kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        let invalid = "invalid_request_error";
        match self {
            Self::Body(_) | Self::Field { .. } => (StatusCode::BAD_REQUEST, invalid, None),
            Self::Unsupported { .. } => (
                StatusCode::BAD_REQUEST,
                invalid,
                Some("unsupported_parameter"),
            ),
            Self::ContextLength { .. } => (
                StatusCode::BAD_REQUEST,
                invalid,
                Some("context_length_exceeded"),
            ),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, invalid, Some("invalid_api_key")),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, invalid, Some("model_not_found")),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, invalid, Some("not_found")),
            Self::MethodNotAllowed { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                invalid,
                Some("method_not_allowed"),
            ),
            Self::Timeout { .. } => (StatusCode::REQUEST_TIMEOUT, invalid, Some("timeout")),
            Self::Conflict(_) => (StatusCode::CONFLICT, invalid, Some("conflict")),
            Self::TooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                invalid,
                Some("request_too_large"),
            ),
            Self::QueueFull(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("queue_full"),
            ),
            Self::TooManyAtOnce { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("too_many_at_once"),
            ),
            Self::RateLimited { .. } | Self::TooManyTokens { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some("unavailable"),
            ),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Field { param, .. } | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            Self::Body(_)
            | Self::Unauthorized(_)
            | Self::NotFound(_)
            | Self::MethodNotAllowed { .. }
            | Self::Timeout { .. }
            | Self::Conflict(_)
            | Self::TooLarge { .. }
            | Self::QueueFull(_)
            | Self::TooManyAtOnce { .. }
            | Self::RateLimited { .. }
            | Self::TooManyTokens { .. }
            | Self::Unavailable(_)
            | Self::Internal(_) => None,
        }
    }

    /// Seconds after which a retry may succeed, if it may.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::QueueFull(_) | Self::TooManyAtOnce { .. } | Self::Unavailable(_) => {
                Some(RETRY_AFTER_SECONDS)
            }
            _ => None,
        }
    }

    /// The reason under which a refusal is counted; `None` if the request itself is at fault.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Unauthorized(_) => Some(Refusal::Unauthorized),
            Self::QueueFull(_) => Some(Refusal::QueueFull),
            Self::TooManyAtOnce { .. } => Some(Refusal::Concurrency),
            Self::RateLimited { .. } | Self::TooManyTokens { .. } => Some(Refusal::RateLimit),
            Self::Unavailable(_) => Some(Refusal::Unavailable),
            _ => None,
        }
    }

    /// The error body in OpenAI's format.
    pub(crate) fn body(&self) -> client::Error {
        let (_, kind, code) = self.kind();
        client::Error {
            error: ErrorBody {
                message: self.to_string(),
                kind,
                param: self.param().map(str::to_string),
                code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.body())).into_response();
        // For routes whose errors have another form.
        let explained = Explained(self.to_string());
        response.extensions_mut().insert(explained);
        // The middleware that counts refusals sees only the response.
        if let Some(refusal) = self.refusal() {
            response.extensions_mut().insert(refusal);
        }
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::TooManyTokens { .. }) {
            // OpenAI's clients retry any other 429.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if matches!(self, Self::TooLarge { .. }) {
            // The rest of the body is not read as a request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, Self::Unauthorized(_)) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::NotFound(message) => Self::NotFound(message),
            AdminError::Conflict(message) => Self::Conflict(message),
            AdminError::Invalid(message) => Self::Body(message),
            AdminError::Failed(message) => Self::Internal(message),
        }
    }
}
