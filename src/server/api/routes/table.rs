//! The table.

use super::super::answers::admin as shown;
use super::super::answers::client as small;
use super::super::answers::{completions as complete, responses as respond};
use super::super::{
    admin, chat, completions, embeddings, models, moderations, openapi, overview, page, responses,
    run, service, tokens,
};
use super::{Answer, Route, json, json_or_events};

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

pub(super) fn clients() -> Vec<Route> {
    let mut routes = vec![
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
    ];
    routes.extend(small_routes());
    routes
}

/// Those that do not generate.
fn small_routes() -> Vec<Route> {
    vec![
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

pub(super) fn everyone() -> Vec<Route> {
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
        Route::get("/openapi.json", openapi::document)
            .named(
                "openapi",
                "This document",
                json::<serde_json::Map<String, serde_json::Value>>(),
            )
            .uncounted(),
    ]
}

pub(super) fn unguarded() -> Vec<Route> {
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

pub(super) fn operators() -> Vec<Route> {
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
