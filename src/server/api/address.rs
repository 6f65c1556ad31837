//! What comes in a request's address.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use schemars::generate::SchemaSettings;

use super::error::ApiError;
use super::request;
use super::routes::SchemaOf;

/// The part of a path that names something. One that is not UTF-8 is the name of nothing.
#[derive(Clone, Debug)]
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        let named = named.map_or_else(|_| char::REPLACEMENT_CHARACTER.into(), |Path(name)| name);
        Ok(Self(named))
    }
}

/// The names of a body's own fields.
pub(crate) fn fields(of: SchemaOf) -> Arc<[String]> {
    let settings = SchemaSettings::draft2020_12().for_deserialize();
    let mut generator = settings.into_generator();
    let schema = of(&mut generator).to_value();
    let definitions = generator.take_definitions(true);
    let name = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
    let schema = name
        .and_then(|name| definitions.get(name))
        .unwrap_or(&schema);
    let properties = schema["properties"].as_object();
    let names = properties
        .into_iter()
        .flat_map(|fields| fields.keys().cloned());
    names.collect()
}

/// Middleware that refuses a body's fields in the address, where they would have no effect. Other
/// parameters pass: gateways and clients add their own (`api-version`, `beta`).
pub(crate) async fn only_in_body(
    State(fields): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let mut names = query.split('&').map(name_of);
    match names.find(|name| fields.iter().any(|field| field == name)) {
        Some(name) => Err(misplaced(name)),
        None => Ok(next.run(request).await),
    }
}

/// Refuses all parameters in the address.
///
/// # Errors
/// [`ApiError::Field`] for the first one.
pub(crate) fn none(request: &Request) -> Result<(), ApiError> {
    match request.uri().query() {
        None | Some("") => Ok(()),
        Some(query) => Err(misplaced(name_of(
            query.split('&').next().unwrap_or_default(),
        ))),
    }
}

fn name_of(parameter: &str) -> &str {
    parameter.split('=').next().unwrap_or_default()
}

fn misplaced(name: &str) -> ApiError {
    let name = request::shortened(name);
    let why = format!(
        "`{name}` is in the address, where this route takes nothing; send it in the body, as JSON"
    );
    ApiError::field(name, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_the_body_itself() {
        fn chat(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            generator.subschema_for::<super::super::chat::Body>()
        }
        let fields = fields(chat);
        let has = |name: &str| fields.iter().any(|field| field == name);
        assert!(
            has("temperature") && has("messages") && has("max_tokens"),
            "{fields:?}"
        );
        assert!(!has("content") && !has("api-version"), "{fields:?}");
    }
}
