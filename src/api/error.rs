//! Every way in which a request can fail, and the one place where that becomes HTTP.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::doors::AdminError;
use crate::engine::request::SubmitError;

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
            SubmitError::ShuttingDown => Self::Unavailable(message),
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
            | Self::Unavailable(_)
            | Self::Internal(_) => None,
        }
    }

    /// The body, in OpenAI's shape.
    pub(crate) fn body(&self) -> Value {
        let (_, kind, code) = self.kind();
        json!({"error": {
            "message": self.to_string(),
            "type": kind,
            "param": self.param(),
            "code": code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if matches!(self, Self::QueueFull(_) | Self::Unavailable(_)) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
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
