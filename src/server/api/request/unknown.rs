//! Fields that a route does not know, at any depth.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::super::error::ApiError;
use crate::config::UnknownFields;

/// Header that names the fields of a request that were ignored.
const IGNORED: HeaderName = HeaderName::from_static("x-realign-ignored-fields");
/// Maximum number of fields that the header and the log name.
const MAX_NAMED: usize = 16;

/// A field that nothing looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// The object that it is in; empty for the request itself.
    pub(crate) place: String,
    /// Its name, shortened.
    pub(crate) name: String,
    /// A field of that place which may be meant.
    pub(crate) close: Option<&'static str>,
}

impl Field {
    /// The field's path.
    fn path(&self) -> String {
        match self.place.as_str() {
            "" => self.name.clone(),
            place => format!("{place}.{}", self.name),
        }
    }

    /// What is wrong with it.
    fn detail(&self) -> String {
        let place = match self.place.as_str() {
            "" => "of this route",
            _ => "there",
        };
        match self.close {
            Some(close) => format!(" (no known field {place}; did you mean `{close}`?)"),
            None => format!(" (no known field {place})"),
        }
    }
}

/// A request's unknown fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unknown(pub(super) Vec<Field>);

impl Unknown {
    /// Leaves out fields that are known after all, for example because a chat template reads them.
    pub(crate) fn without(&mut self, known: impl Fn(&Field) -> bool) {
        self.0.retain(|field| !known(field));
    }

    /// Refuses the first one, unless the operator has them ignored.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`].
    pub(crate) fn check(&self, wanted: UnknownFields) -> Result<(), ApiError> {
        match (self.0.first(), wanted) {
            (Some(field), UnknownFields::Refuse) => Err(ApiError::Unsupported {
                param: field.path(),
                detail: field.detail(),
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
        let names: Vec<String> = self.0.iter().take(MAX_NAMED).map(Field::path).collect();
        names.join(", ")
    }

    /// Adds those of a request that stands for the same one.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Adds the header that names the fields to a response, if there are any, after those that it names
    /// already.
    pub(crate) fn named_in(&self, mut response: Response) -> Response {
        let named = response.headers().get(IGNORED);
        let named = named.and_then(|names| names.to_str().ok()).unwrap_or("");
        let names = match (named, self.named()) {
            (_, new) if new.is_empty() => return response,
            ("", new) => new,
            (named, new) => format!("{named}, {new}"),
        };
        // Names that no header can hold are only in the log.
        if let Ok(names) = HeaderValue::from_str(&names) {
            response.headers_mut().insert(IGNORED, names);
        }
        response
    }
}
