//! All routes, once: the router, the labels that requests are counted under, and `/openapi.json`
//! come from this table.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::answers::admin as shown;
use super::answers::client as small;
use super::answers::{completions as complete, responses as respond};
use super::{
    AppState, admin, chat, completions, embeddings, models, moderations, overview, page, responses,
    run, service, tokens,
};

/// Who a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Every listener has it, and it asks for no key.
    Everyone,
    /// Clients, with their keys and limits.
    Clients,
    /// Operators, with their key.
    Operators,
    /// On the operators' listener, without a key: the page and the metrics.
    OperatorsUnguarded,
}

/// Gives the schema of a type, adding what it refers to to the generator.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a route answers when all is well.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// JSON.
    Json(SchemaOf),
    /// JSON, or server-sent events if the request asks for a stream.
    JsonOrEvents(SchemaOf),
    /// Server-sent events.
    Events,
    /// Text of this media type.
    Text(&'static str),
}

/// What the document says about a route.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) request: Option<SchemaOf>,
    /// The status of success.
    pub(crate) status: u16,
    pub(crate) answer: Answer,
    /// The statuses of failure.
    pub(crate) failures: &'static [u16],
    /// Name and description of parameters in the query, all of them numbers that may be left out.
    pub(crate) query: &'static [(&'static str, &'static str)],
}

/// A route.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// As the router matches it.
    pub(crate) path: &'static str,
    pub(crate) audience: Audience,
    /// Whether its requests have records: probes, scrapes and the page would drown the rest.
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
        let filter = MethodFilter::try_from(method.clone());
        // The table below names none but the usual methods.
        let filter = filter.unwrap_or(MethodFilter::GET);
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

/// Failures of routes that use the model.
const GENERATING: &[u16] = &[400, 401, 404, 413, 429, 500, 503];
/// Failures of the clients' other routes that take a body.
const TAKING: &[u16] = &[400, 401, 413, 429, 500];
/// Failures of operator routes that only tell.
const TELLING: &[u16] = &[401, 403, 500];
/// Failures of operator routes that tell about one realignment.
const FINDING: &[u16] = &[401, 403, 404, 500];
/// Failures of operator routes that change what serves or runs.
const CHANGING: &[u16] = &[401, 403, 404, 409, 500];

/// The routes of these audiences.
pub(crate) fn of(audiences: &[Audience]) -> Vec<Route> {
    let mut routes = Vec::new();
    for (audience, table) in [
        (Audience::Clients, clients()),
        (Audience::Everyone, everyone()),
        (Audience::OperatorsUnguarded, unguarded()),
        (Audience::Operators, operators()),
    ] {
        if audiences.contains(&audience) {
            let marked = |route| Route { audience, ..route };
            routes.extend(table.into_iter().map(marked));
        }
    }
    routes
}

fn clients() -> Vec<Route> {
    vec![
        Route::post("/v1/chat/completions", run::chat_completions)
            .named(
                "createChatCompletion",
                "Answer a conversation",
                json_or_events::<complete::ChatCompletion>(),
            )
            .takes::<chat::Body>()
            .fails(GENERATING),
        Route::post("/v1/completions", run::completions)
            .named(
                "createCompletion",
                "Continue a text",
                json_or_events::<complete::Completion>(),
            )
            .takes::<completions::Body>()
            .fails(GENERATING),
        Route::post("/v1/responses", responses::create)
            .named(
                "createResponse",
                "Answer without state",
                json_or_events::<respond::Response>(),
            )
            .takes::<responses::Body>()
            .fails(GENERATING),
        Route::post("/v1/embeddings", embeddings::create)
            .named(
                "createEmbedding",
                "Mean of the final hidden states, scaled to length 1",
                json::<small::Embeddings>(),
            )
            .takes::<embeddings::Body>()
            .fails(GENERATING),
        Route::post("/v1/moderations", moderations::create)
            .named(
                "createModeration",
                "Judge texts by the active policies",
                json::<small::Moderation>(),
            )
            .takes::<moderations::Body>()
            .fails(TAKING),
        Route::post("/tokenize", tokens::tokenize)
            .named(
                "tokenize",
                "Text or messages to token ids",
                json::<small::Tokens>(),
            )
            .takes::<tokens::Body>()
            .fails(TAKING),
        Route::post("/detokenize", tokens::detokenize)
            .named("detokenize", "Token ids to text", json::<small::Text>())
            .takes::<tokens::DetokenizeBody>()
            .fails(TAKING),
        Route::get("/v1/models", models::list)
            .named("listModels", "Served names", json::<small::ModelList>())
            .fails(&[401, 429]),
        Route::get("/v1/models/{*id}", models::retrieve)
            .named("retrieveModel", "One served name", json::<small::Model>())
            .fails(&[401, 404, 429, 500]),
    ]
}

fn everyone() -> Vec<Route> {
    vec![
        Route::get("/health", service::health)
            .named("health", "The process is alive", json::<small::Health>())
            .uncounted(),
        Route::get("/ready", service::ready)
            .named(
                "ready",
                "The model is loaded and the server takes requests",
                json::<small::Ready>(),
            )
            .fails(&[503])
            .uncounted(),
        Route::get("/openapi.json", super::openapi::document)
            .named(
                "openapi",
                "This document",
                json::<serde_json::Map<String, serde_json::Value>>(),
            )
            .uncounted(),
    ]
}

fn unguarded() -> Vec<Route> {
    vec![
        Route::get("/", page::html).uncounted(),
        Route::get("/page.css", page::css).uncounted(),
        Route::get("/page.js", page::js).uncounted(),
        Route::get("/metrics", service::metrics)
            .named(
                "metrics",
                "Metrics in Prometheus' text format",
                Answer::Text("text/plain"),
            )
            .uncounted(),
    ]
}

fn operators() -> Vec<Route> {
    let mut routes = vec![
        Route::get("/admin/v1/policies", admin::policies)
            .named(
                "listPolicies",
                "The active policy set",
                json::<shown::Policies>(),
            )
            .fails(TELLING),
        Route::get("/admin/v1/overview", overview::overview)
            .named(
                "overview",
                "Everything that the operators' page shows",
                json::<shown::Overview>(),
            )
            .with(|operation| {
                operation.query = &[(
                    "seconds",
                    "How far back the traffic goes, in seconds. Default 3600.",
                )];
            })
            .fails(&[400, 401, 403, 500])
            .uncounted(),
        Route::get("/admin/v1/log-level", admin::log_level)
            .named("logLevel", "What is logged", json::<shown::LogLevel>())
            .fails(TELLING),
        Route::put("/admin/v1/log-level", admin::set_log_level)
            .named(
                "setLogLevel",
                "Log something else until the next start",
                json::<shown::LogLevel>(),
            )
            .takes::<admin::LogLevelRequest>()
            .fails(&[400, 401, 403, 413, 500]),
    ];
    routes.extend(realignments());
    routes.extend(generations());
    routes
}

fn realignments() -> Vec<Route> {
    vec![
        Route::get("/admin/v1/realignments", admin::realignments)
            .named(
                "listRealignments",
                "Recent realignments, newest first",
                json::<shown::Realignments>(),
            )
            .fails(TELLING),
        Route::post("/admin/v1/realignments", admin::start)
            .named(
                "startRealignment",
                "Realign to the active policy set, in the background",
                json::<shown::Started>(),
            )
            .accepted()
            .fails(CHANGING),
        Route::get("/admin/v1/realignments/{id}", admin::realignment)
            .named(
                "retrieveRealignment",
                "One realignment, with its timeline",
                json::<shown::Realignment>(),
            )
            .fails(FINDING),
        Route::post("/admin/v1/realignments/{id}/cancel", admin::cancel)
            .named(
                "cancelRealignment",
                "Stop a running realignment at its next step",
                json::<shown::Cancelling>(),
            )
            .fails(CHANGING),
        Route::get("/admin/v1/realignments/{id}/events", admin::events)
            .named(
                "realignmentEvents",
                "Events of a realignment from now until its end",
                Answer::Events,
            )
            .fails(FINDING),
    ]
}

fn generations() -> Vec<Route> {
    vec![
        Route::get("/admin/v1/generations", admin::generations)
            .named(
                "listGenerations",
                "The generations on disk and in memory",
                json::<shown::Generations>(),
            )
            .fails(TELLING),
        Route::post("/admin/v1/generations/activate", admin::activate)
            .named(
                "activateGeneration",
                "Make a generation serve",
                json::<shown::Swap>(),
            )
            .takes::<admin::ActivateRequest>()
            .fails(&[400, 401, 403, 404, 409, 413, 500]),
        Route::post("/admin/v1/generations/rollback", admin::rollback)
            .named(
                "rollbackGeneration",
                "Make the previous generation serve again",
                json::<shown::Swap>(),
            )
            .fails(CHANGING),
    ]
}

/// A router of the routes of one audience.
pub(crate) fn router(routes: &[Route], audience: Audience) -> Router<AppState> {
    let mine = routes.iter().filter(|route| route.audience == audience);
    mine.fold(Router::new(), |router, route| {
        router.route(route.path, route.handler.clone())
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
