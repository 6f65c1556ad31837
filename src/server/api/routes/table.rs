//! The table of all routes.

use super::super::answers::admin as admin_answers;
use super::super::answers::client as client_answers;
use super::super::answers::retention::Collected;
use super::super::answers::{completions as completion_answers, responses as response_answers};
use super::super::{
    admin, chat, completions, embeddings, explain, extend, lora, models, moderations, openapi,
    overview, page, playground, responses, run, service, tokens,
};
use super::{Answer, Route, json, json_or_events};
use serde_json::Value;

/// Failures of routes that use the model.
const GENERATION_FAILURES: &[u16] = &[400, 401, 404, 413, 429, 500, 503];
/// Failures of the other client routes that take a body.
const BODY_FAILURES: &[u16] = &[400, 401, 413, 429, 500, 503];
/// Failures of operator routes that only read.
const READ_FAILURES: &[u16] = &[401, 500];
/// Failures of operator routes that read one realignment.
const LOOKUP_FAILURES: &[u16] = &[401, 404, 500];
/// Failures of operator routes that change what serves or runs.
const CHANGE_FAILURES: &[u16] = &[400, 401, 404, 409, 413, 500];

/// Failures of the routes that load and unload adapters by name.
const NAME_FAILURES: &[u16] = &[400, 401, 404, 409, 413, 500];

pub(super) fn clients() -> Vec<Route> {
    let mut routes = vec![
        Route::post("/v1/chat/completions", run::chat_completions)
            .named(
                "createChatCompletion",
                "Answer a conversation",
                json_or_events::<completion_answers::ChatCompletion>(),
            )
            .takes::<chat::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/v1/completions", run::completions)
            .named(
                "createCompletion",
                "Continue a text",
                json_or_events::<completion_answers::Completion>(),
            )
            .takes::<completions::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/v1/responses", responses::create)
            .named(
                "createResponse",
                "Answer without state",
                json_or_events::<response_answers::Response>(),
            )
            .takes::<responses::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/v1/embeddings", embeddings::create)
            .named(
                "createEmbedding",
                "Mean of the final hidden states, scaled to length 1",
                json::<client_answers::Embeddings>(),
            )
            .takes::<embeddings::Body>()
            .fails(GENERATION_FAILURES),
    ];
    routes.extend(dialects());
    routes.extend(small_routes());
    routes
}

/// Other servers' chat APIs.
fn dialects() -> Vec<Route> {
    use super::super::dialects::{anthropic, ollama};
    vec![
        Route::post("/v1/messages", anthropic::messages)
            .named(
                "createMessage",
                "Anthropic's messages",
                json_or_events::<Value>(),
            )
            .takes::<anthropic::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/v1/messages/count_tokens", anthropic::count_tokens)
            .named(
                "countMessageTokens",
                "Count the tokens of Anthropic's messages",
                json::<Value>(),
            )
            .takes::<anthropic::Body>()
            .fails(BODY_FAILURES),
        Route::post("/api/chat", ollama::chat)
            .named("ollamaChat", "Ollama's chat", json::<Value>())
            .takes::<ollama::ChatBody>()
            .fails(GENERATION_FAILURES),
        Route::post("/api/generate", ollama::generate)
            .named("ollamaGenerate", "Ollama's generate", json::<Value>())
            .takes::<ollama::GenerateBody>()
            .fails(GENERATION_FAILURES),
        Route::post("/api/embed", ollama::embed::embed)
            .named("ollamaEmbed", "Ollama's embeddings", json::<Value>())
            .takes::<ollama::embed::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/api/embeddings", ollama::embed::older)
            .named(
                "ollamaEmbeddings",
                "Ollama's older route for the embedding of one text",
                json::<Value>(),
            )
            .takes::<ollama::embed::OlderBody>()
            .fails(GENERATION_FAILURES),
        Route::post("/api/show", ollama::show)
            .named(
                "ollamaShow",
                "What Ollama's clients ask about a model",
                json::<Value>(),
            )
            .takes::<ollama::ShowBody>()
            .fails(GENERATION_FAILURES),
        Route::get("/api/tags", ollama::tags)
            .named(
                "ollamaTags",
                "The served model, for Ollama's clients",
                json::<Value>(),
            )
            .fails(&[401, 429]),
        Route::get("/api/ps", ollama::running)
            .named(
                "ollamaRunning",
                "The loaded model, for Ollama's clients",
                json::<Value>(),
            )
            .fails(&[401, 429]),
        Route::get("/api/version", ollama::version)
            .named(
                "ollamaVersion",
                "The version, for Ollama's clients",
                json::<Value>(),
            )
            .fails(&[401, 429]),
    ]
}

/// Client routes that do not generate.
fn small_routes() -> Vec<Route> {
    vec![
        Route::post("/v1/moderations", moderations::create)
            .named(
                "createModeration",
                "Judge texts by the active policies",
                json::<client_answers::Moderation>(),
            )
            .takes::<moderations::Body>()
            .fails(BODY_FAILURES),
        Route::post("/tokenize", tokens::tokenize)
            .named(
                "tokenize",
                "Text or messages to token ids",
                json::<client_answers::Tokens>(),
            )
            .takes::<tokens::Body>()
            .fails(GENERATION_FAILURES),
        Route::post("/detokenize", tokens::detokenize)
            .named(
                "detokenize",
                "Token ids to text",
                json::<client_answers::Text>(),
            )
            .takes::<tokens::DetokenizeBody>()
            .fails(GENERATION_FAILURES),
        Route::get("/tokenizer_info", tokens::info)
            .named(
                "tokenizerInfo",
                "The chat template and the special tokens, if the operator allows it",
                json::<client_answers::TokenizerInfo>(),
            )
            .fails(&[401, 404, 429]),
        Route::get("/v1/models", models::list)
            .named(
                "listModels",
                "Served names",
                json::<client_answers::ModelList>(),
            )
            .fails(&[401, 429]),
        Route::get("/v1/models/{*id}", models::retrieve)
            .named(
                "retrieveModel",
                "One served name",
                json::<client_answers::Model>(),
            )
            .fails(&[401, 404, 429, 500, 503]),
    ]
}

pub(super) fn everyone() -> Vec<Route> {
    vec![
        Route::get("/health", service::health)
            .named(
                "health",
                "The process and its threads are alive",
                json::<client_answers::Health>(),
            )
            .fails(&[503])
            .uncounted(),
        Route::get("/ready", service::ready)
            .named(
                "ready",
                "Model and policies are loaded, the server takes requests, and something serves",
                json::<client_answers::Ready>(),
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
        Route::get("/playground.js", page::playground).uncounted(),
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
                json::<admin_answers::Policies>(),
            )
            .fails(READ_FAILURES),
        Route::get("/admin/v1/exam", admin::exam)
            .named(
                "retrieveExam",
                "What the last exams of what serves and of a candidate said",
                json::<admin_answers::ExamAnswer>(),
            )
            .fails(READ_FAILURES),
        Route::post("/admin/v1/exam", admin::examine)
            .named(
                "sitExam",
                "Have what serves sit the exam, in the background",
                json::<admin_answers::ExamAnswer>(),
            )
            .accepted()
            .fails(CHANGE_FAILURES),
        Route::get("/admin/v1/overview", overview::overview)
            .named(
                "overview",
                "Everything that the operators' page shows",
                json::<admin_answers::Overview>(),
            )
            .with(|operation| {
                operation.query = &[(
                    "seconds",
                    "How far back the traffic goes, in seconds. Default 3600.",
                )];
            })
            .fails(&[400, 401, 500])
            .uncounted(),
        Route::get("/admin/v1/log-level", admin::log_level)
            .named(
                "logLevel",
                "What is logged",
                json::<admin_answers::LogLevel>(),
            )
            .fails(READ_FAILURES),
        Route::put("/admin/v1/log-level", admin::set_log_level)
            .named(
                "setLogLevel",
                "Log something else until the next start",
                json::<admin_answers::LogLevel>(),
            )
            .takes::<admin::LogLevelRequest>()
            .fails(&[400, 401, 413, 500]),
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
                json::<admin_answers::Realignments>(),
            )
            .fails(READ_FAILURES),
        Route::post("/admin/v1/policies/explain", explain::explain)
            .named(
                "explainAnswer",
                "What each rule says about an answer, what matched where, and why it decides so",
                json::<admin_answers::Explanation>(),
            )
            .takes::<explain::Body>()
            .fails(&[400, 401, 413, 500, 503]),
        Route::post("/admin/v1/policies/extend", extend::extended)
            .named(
                "extendPolicy",
                "The file of an active policy with an example or a prompt more; nothing is written",
                json::<admin_answers::ExtendedPolicy>(),
            )
            .takes::<extend::Body>()
            .fails(&[400, 401, 404, 413, 500]),
        Route::post("/admin/v1/playground", playground::ask)
            .named(
                "tryPrompt",
                "Answer a prompt with any generation; the answer is not judged and not counted",
                json_or_events::<completion_answers::ChatCompletion>(),
            )
            .takes::<playground::Body>()
            .fails(&[400, 401, 404, 413, 429, 500, 503]),
        Route::post("/admin/v1/policies/clear", admin::clear_policies)
            .named(
                "clearPolicies",
                "Serve without policies, where the directory holds none",
                json::<admin_answers::Policies>(),
            )
            .fails(CHANGE_FAILURES),
        Route::post("/admin/v1/realignments", admin::start)
            .named(
                "startRealignment",
                "Realign to the active policy set, in the background",
                json::<admin_answers::Started>(),
            )
            .accepted()
            .fails(CHANGE_FAILURES),
        Route::get("/admin/v1/realignments/{id}", admin::realignment)
            .named(
                "retrieveRealignment",
                "One realignment, with its timeline",
                json::<admin_answers::Realignment>(),
            )
            .fails(LOOKUP_FAILURES),
        Route::post("/admin/v1/realignments/{id}/cancel", admin::cancel)
            .named(
                "cancelRealignment",
                "Stop a running realignment at its next step",
                json::<admin_answers::Cancelling>(),
            )
            .fails(CHANGE_FAILURES),
        Route::get("/admin/v1/realignments/{id}/events", admin::events)
            .named(
                "realignmentEvents",
                "Events of a realignment from now until its end",
                Answer::Events,
            )
            .fails(LOOKUP_FAILURES),
    ]
}

fn generations() -> Vec<Route> {
    vec![
        Route::get("/admin/v1/generations", admin::generations)
            .named(
                "listGenerations",
                "The generations on disk and in memory",
                json::<admin_answers::Generations>(),
            )
            .fails(READ_FAILURES),
        Route::post("/admin/v1/generations/activate", admin::activate)
            .named(
                "activateGeneration",
                "Make a generation serve",
                json::<admin_answers::Swap>(),
            )
            .takes::<admin::ActivateRequest>()
            .fails(&[400, 401, 404, 409, 413, 500]),
        Route::post("/admin/v1/generations/rollback", admin::rollback)
            .named(
                "rollbackGeneration",
                "Make the previous generation serve again",
                json::<admin_answers::Swap>(),
            )
            .may_take::<admin::RollbackRequest>()
            .fails(&[400, 401, 409, 413, 500]),
        Route::post("/admin/v1/generations/unpin", admin::unpin)
            .named(
                "unpinGeneration",
                "Let realignments replace what an operator activated",
                json::<admin_answers::Unpinned>(),
            )
            .fails(&[400, 401, 413, 500]),
        Route::post("/v1/load_lora_adapter", lora::load)
            .named(
                "loadLoraAdapter",
                "Load an adapter under a name of its own; what serves stays",
                Answer::Text("text/plain"),
            )
            .takes::<lora::LoadBody>()
            .fails(NAME_FAILURES),
        Route::post("/v1/unload_lora_adapter", lora::unload)
            .named(
                "unloadLoraAdapter",
                "Take the name of a loaded adapter away; answers that run go on",
                Answer::Text("text/plain"),
            )
            .takes::<lora::UnloadBody>()
            .fails(NAME_FAILURES),
        Route::get("/admin/v1/generations/history", admin::history)
            .named(
                "generationHistory",
                "What served, and who decided it",
                json::<admin_answers::History>(),
            )
            .fails(READ_FAILURES),
        Route::post("/admin/v1/adapters/gc", admin::collect)
            .named(
                "collectAdapters",
                "Remove what exceeds [retention], or show what would go",
                json::<Collected>(),
            )
            .may_take::<admin::CollectRequest>()
            .fails(&[400, 401, 403, 409, 413, 500]),
    ]
}
