//! The table of routes, from which the router, the route labels of metrics and `/openapi.json` are
//! derived.

mod table;

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{AppState, address};

/// Who a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// On every listener, without a key.
    Everyone,
    /// Clients, with their keys and limits.
    Clients,
    /// Operators, with their key.
    Operators,
    /// On the operators' listener, but without a key: the page and the metrics.
    OperatorsUnguarded,
}

/// Returns the schema of a type, and adds the schemas it refers to to the generator.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a route answers on success.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// JSON.
    Json(SchemaOf),
    /// JSON, or server-sent events if the request sets `stream`.
    JsonOrEvents(SchemaOf),
    /// Server-sent events.
    Events,
    /// Text of this media type.
    Text(&'static str),
}

/// A route's entry in the OpenAPI document.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) request: Option<SchemaOf>,
    /// Whether the request may come without its body.
    pub(crate) may_be_empty: bool,
    /// HTTP status on success.
    pub(crate) status: u16,
    pub(crate) answer: Answer,
    /// HTTP statuses on failure.
    pub(crate) failures: &'static [u16],
    /// Names and descriptions of query parameters, all of them optional numbers.
    pub(crate) query: &'static [(&'static str, &'static str)],
}

/// A route.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Path template of the router.
    pub(crate) path: &'static str,
    pub(crate) audience: Audience,
    /// Whether its requests are recorded; probes, scrapes and the page would swamp the others.
    pub(crate) counted: bool,
    /// `None` for the page's files.
    pub(crate) operation: Option<Operation>,
    handler: MethodRouter<AppState>,
}

impl Route {
    fn new<H, T>(method: Method, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        // The table uses only standard methods, for which the conversion succeeds.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        Self {
            method,
            path,
            audience: Audience::Everyone,
            counted: true,
            operation: None,
            handler: on(filter, handler),
        }
    }

    fn get<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::GET, path, handler)
    }

    fn post<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::POST, path, handler)
    }

    fn put<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::PUT, path, handler)
    }

    fn uncounted(mut self) -> Self {
        self.counted = false;
        self
    }

    fn named(mut self, id: &'static str, summary: &'static str, answer: Answer) -> Self {
        self.operation = Some(Operation {
            id,
            summary,
            request: None,
            may_be_empty: false,
            status: 200,
            answer,
            failures: &[],
            query: &[],
        });
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Operation)) -> Self {
        if let Some(operation) = &mut self.operation {
            change(operation);
        }
        self
    }

    fn takes<T: JsonSchema>(self) -> Self {
        self.with(|operation| operation.request = Some(schema_of::<T>))
    }

    fn may_take<T: JsonSchema>(self) -> Self {
        self.takes::<T>()
            .with(|operation| operation.may_be_empty = true)
    }

    fn fails(self, failures: &'static [u16]) -> Self {
        self.with(|operation| operation.failures = failures)
    }

    fn accepted(self) -> Self {
        self.with(|operation| operation.status = 202)
    }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn json<T: JsonSchema>() -> Answer {
    Answer::Json(schema_of::<T>)
}

fn json_or_events<T: JsonSchema>() -> Answer {
    Answer::JsonOrEvents(schema_of::<T>)
}

/// The routes for these audiences.
pub(crate) fn of(audiences: &[Audience]) -> Vec<Route> {
    let mut routes = Vec::new();
    for (audience, table) in [
        (Audience::Clients, table::clients()),
        (Audience::Everyone, table::everyone()),
        (Audience::OperatorsUnguarded, table::unguarded()),
        (Audience::Operators, table::operators()),
    ] {
        if audiences.contains(&audience) {
            let marked = |route| Route { audience, ..route };
            routes.extend(table.into_iter().map(marked));
        }
    }
    routes
}

/// A router with the routes for one audience.
pub(crate) fn router(routes: &[Route], audience: Audience) -> Router<AppState> {
    let matching = routes.iter().filter(|route| route.audience == audience);
    matching.fold(Router::new(), |router, route| {
        let handler = route.handler.clone();
        let body = route.operation.as_ref().and_then(|told| told.request);
        let handler = match body.filter(|_| audience == Audience::Clients) {
            Some(body) => {
                let fields = address::fields(body);
                handler.route_layer(from_fn_with_state(fields, address::only_in_body))
            }
            None => handler,
        };
        router.route(route.path, handler)
    })
}

/// The labels under which a listener's requests are counted.
#[derive(Clone, Debug)]
pub(crate) struct Labels(Arc<[(&'static str, bool)]>);

impl Labels {
    /// The label of requests that match no route.
    const UNMATCHED: &'static str = "unmatched";

    /// The labels of these routes.
    pub(crate) fn new(routes: &[Route]) -> Self {
        Self(routes.iter().map(|r| (r.path, r.counted)).collect())
    }

    /// The label for a matched path; `None` if its requests are not counted.
    pub(crate) fn of(&self, matched: Option<&str>) -> Option<&'static str> {
        let route = self.0.iter().find(|(path, _)| Some(*path) == matched);
        let (label, counted) = route.copied().unwrap_or((Self::UNMATCHED, true));
        counted.then_some(label)
    }
}
