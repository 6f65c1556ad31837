//! Fields that a route does not know.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::super::error::ApiError;
use crate::config::UnknownFields;

/// Header that names the fields of a request that were ignored.
const IGNORED: HeaderName = HeaderName::from_static("x-realign-ignored-fields");
/// Maximum number of fields that the header and the log name.
const MAX_NAMED: usize = 16;

/// The names of a request's unknown fields, shortened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unknown(pub(super) Vec<String>);

impl Unknown {
    /// Refuses the first one, unless the operator has them ignored.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`].
    pub(crate) fn check(&self, wanted: UnknownFields) -> Result<(), ApiError> {
        match (self.0.first(), wanted) {
            (Some(name), UnknownFields::Refuse) => Err(ApiError::Unsupported {
                param: name.clone(),
                detail: " (no known field of this route)".into(),
            }),
            (Some(_), UnknownFields::Ignore) => {
                let (count, fields) = (self.0.len(), self.named());
                tracing::info!(count, fields, "unknown fields of a request were ignored");
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    fn named(&self) -> String {
        let names: Vec<&str> = self.0.iter().take(MAX_NAMED).map(String::as_str).collect();
        names.join(", ")
    }

    /// Adds the header that names the fields to a response, if there are any.
    pub(crate) fn named_in(&self, mut response: Response) -> Response {
        let names = self.named();
        // Names that no header can hold are only in the log.
        if let Ok(names) = HeaderValue::from_str(&names)
            && !names.is_empty()
        {
            response.headers_mut().insert(IGNORED, names);
        }
        response
    }
}
