//! Every way in which a request can fail, and the one place where that becomes HTTP.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answers::client::{self, ErrorBody};
use super::ports::AdminError;
use crate::telemetry::Refusal;
use realign_engine::request::SubmitError;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request was not answered as asked.
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
    /// A field asks for something that this server does not do.
    #[error("`{param}`{detail} is not supported by this server")]
    Unsupported {
        /// The field.
        param: String,
        /// Which of its values, with a leading space, or nothing.
        detail: String,
    },
    /// Prompt and completion do not fit the context.
    #[error("{message}")]
    ContextLength {
        /// The field that holds the prompt.
        param: &'static str,
        /// The engine's figures.
        message: String,
    },
    /// No key, or a wrong one.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The peer may not do this, key or not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// `model` names nothing that is served here.
    #[error("the model `{model}` does not exist; this server serves {allowed}")]
    ModelNotFound {
        /// What was asked for.
        model: String,
        /// The allowed forms.
        allowed: String,
    },
    /// No such path, realignment or generation.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("{method} is not allowed on {path}")]
    MethodNotAllowed {
        /// What was sent.
        method: String,
        /// Where.
        path: String,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {seconds} seconds")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The state does not allow it now.
    #[error("{0}")]
    Conflict(String),
    /// The body is larger than the server reads.
    #[error("the request body is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Too much work is waiting.
    #[error("{0}")]
    QueueFull(String),
    /// More requests run at once than the server takes on.
    #[error("the server answers {limit} requests at once and has no place left; retry in a moment")]
    TooManyAtOnce {
        /// The limit.
        limit: usize,
    },
    /// The key has used up what it may ask for in a minute.
    #[error("this key is limited to {limit} {what} a minute; retry in {retry_after} s")]
    RateLimited {
        /// Requests or tokens.
        what: &'static str,
        /// How many in a minute.
        limit: u32,
        /// Seconds until there is something left.
        retry_after: u64,
    },
    /// Loading or draining.
    #[error("{0}")]
    Unavailable(String),
    /// The server's own fault.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// A wrong field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field {
            param: param.into(),
            message: message.into(),
        }
    }

    /// A field that asks for something this server does not do.
    pub(crate) fn unsupported(param: impl Into<String>) -> Self {
        Self::Unsupported {
            param: param.into(),
            detail: String::new(),
        }
    }

    /// What the engine's refusal means for a prompt that came in the given field.
    pub(crate) fn from_submit(error: &SubmitError, param: &'static str) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => Self::QueueFull(message),
            SubmitError::TooLong { .. } => Self::ContextLength { param, message },
            SubmitError::EmptyPrompt => Self::field(param, message),
            SubmitError::ShuttingDown | SubmitError::NoCopy { .. } => Self::Unavailable(message),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
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
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, invalid, Some("forbidden")),
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
            Self::RateLimited { .. } => (
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
            | Self::Forbidden(_)
            | Self::NotFound(_)
            | Self::MethodNotAllowed { .. }
            | Self::Timeout { .. }
            | Self::Conflict(_)
            | Self::TooLarge { .. }
            | Self::QueueFull(_)
            | Self::TooManyAtOnce { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable(_)
            | Self::Internal(_) => None,
        }
    }

    /// Seconds after which to try again, where that helps.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::QueueFull(_) | Self::TooManyAtOnce { .. } | Self::Unavailable(_) => {
                Some(RETRY_AFTER_SECONDS)
            }
            _ => None,
        }
    }

    /// Under which reason a refusal is counted; `None` for what the request itself is to blame for.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Unauthorized(_) => Some(Refusal::Unauthorized),
            Self::QueueFull(_) => Some(Refusal::QueueFull),
            Self::TooManyAtOnce { .. } => Some(Refusal::Concurrency),
            Self::RateLimited { .. } => Some(Refusal::RateLimit),
            Self::Unavailable(_) => Some(Refusal::Unavailable),
            _ => None,
        }
    }

    /// The body, in OpenAI's shape.
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
        // The middleware that counts requests sees the response alone.
        if let Some(refusal) = self.refusal() {
            response.extensions_mut().insert(refusal);
        }
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
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
