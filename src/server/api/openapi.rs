//! `GET /openapi.json`: a listener's routes as an OpenAPI 3.1 document, derived from the types of
//! requests and answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Extension, OriginalUri};
use axum::http::{HeaderName, header};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::answers::client::Error;
use super::dialects::Errors;
use super::nested;
use super::request::ModelName;
use super::routes::{Answer, Audience, Operation, Route};
use crate::config::UnknownFields;

/// A listener's document as JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Document(Arc<str>);

/// `GET /openapi.json`.
pub(crate) async fn document(
    Extension(Document(text)): Extension<Document>,
    OriginalUri(uri): OriginalUri,
) -> ([(HeaderName, &'static str); 1], String) {
    let json = "application/json";
    let text = nested::with_server(text.to_string(), uri.path());
    ([(header::CONTENT_TYPE, json)], text)
}

impl Document {
    /// The document of these routes, for a server that serves `model`.
    pub(crate) fn new(routes: &[Route], model: &str, unknown: UnknownFields) -> Self {
        let text = describe(routes, unknown).to_string();
        let served = Value::from(model).to_string();
        let placeholder = Value::from(ModelName::SERVED).to_string();
        Self(text.replace(&placeholder, &served).into())
    }
}

/// Status, name and description of failures.
const FAILURES: [(u16, &str, &str); 8] = [
    (
        400,
        "BadRequest",
        "The request is wrong; `param` names the field.",
    ),
    (401, "Unauthorized", "No API key, or a wrong one."),
    (
        404,
        "NotFound",
        "No such model, route, realignment or generation.",
    ),
    (409, "Conflict", "The state does not allow it now."),
    (413, "TooLarge", "The body is larger than the server reads."),
    (429, "TooMany", "Too much is waiting; see Retry-After."),
    (500, "Failed", "The server failed."),
    (
        503,
        "Unavailable",
        "Loading, draining, or nothing may serve; see Retry-After.",
    ),
];

/// Two generators, because a type may accept more forms in requests than it has in answers.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self {
            requests: settings.clone().for_deserialize().into_generator(),
            answers: settings.for_serialize().into_generator(),
        }
    }

    /// The schemas of all types that were referred to.
    fn components(mut self) -> Map<String, Value> {
        let mut all = self.requests.take_definitions(true);
        for (name, schema) in self.answers.take_definitions(true) {
            debug_assert!(
                all.get(&name).is_none_or(|other| *other == schema),
                "{name} is the name of two schemas"
            );
            all.insert(name, schema);
        }
        all.sort_keys();
        all
    }
}

/// What happens to fields that a request's schema does not have.
fn unknown_fields(unknown: UnknownFields) -> &'static str {
    match unknown {
        UnknownFields::Refuse => {
            "OpenAI-compatible inference whose alignment is live. Where a request's schema has \
             `additionalProperties`, a field that it does not have is refused with 400, unless it \
             is null; other routes ignore such fields."
        }
        UnknownFields::Ignore => {
            "OpenAI-compatible inference whose alignment is live. Fields that a request's schema \
             does not have are ignored; the header `x-realign-ignored-fields` of the answer names \
             them."
        }
    }
}

/// Has requests that refuse unknown fields refuse them in all their objects.
fn refuse_unknown_inside(schemas: &mut Map<String, Value>) {
    let closed = json!({"type": "null"});
    let refuses = |schema: &Value| schema.get("additionalProperties") == Some(&closed);
    let roots = schemas.iter().filter(|(_, schema)| refuses(schema));
    let mut open: Vec<String> = roots.map(|(name, _)| name.clone()).collect();
    let mut known: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(name) = open.pop() {
        let mut named = Vec::new();
        if let Some(schema) = schemas.get_mut(&name) {
            close(schema, &closed, &mut named);
        }
        open.extend(named.into_iter().filter(|name| known.insert(name.clone())));
    }
}

/// Closes the objects of a schema, and collects the schemas that it refers to.
fn close(schema: &mut Value, closed: &Value, named: &mut Vec<String>) {
    match schema {
        Value::Object(keywords) => {
            let place = keywords.get("$ref").and_then(Value::as_str);
            let name = place.and_then(|place| place.strip_prefix("#/components/schemas/"));
            named.extend(name.map(str::to_owned));
            if keywords.contains_key("properties") {
                let entry = keywords.entry("additionalProperties");
                entry.or_insert_with(|| closed.clone());
            }
            keywords
                .values_mut()
                .for_each(|inside| close(inside, closed, named));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|inside| close(inside, closed, named)),
        _ => {}
    }
}

/// Takes the refusal of unknown fields out of the schemas, those inside of others too.
fn allow_unknown(schemas: &mut Map<String, Value>) {
    for schema in schemas.values_mut() {
        match schema {
            Value::Object(inside) => {
                if inside.get("additionalProperties") == Some(&json!({"type": "null"})) {
                    inside.remove("additionalProperties");
                }
                allow_unknown(inside);
            }
            Value::Array(items) => {
                let objects = items.iter_mut().filter_map(Value::as_object_mut);
                objects.for_each(allow_unknown);
            }
            _ => {}
        }
    }
}

fn describe(routes: &[Route], unknown: UnknownFields) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for route in routes {
        let Some(operation) = &route.operation else {
            continue;
        };
        let path = route.path.replace("{*", "{");
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_lowercase()] = describe_one(route, operation, &mut schemas);
    }
    let error = schemas.answers.subschema_for::<Error>().to_value();
    let described = routes.iter().filter(|route| route.operation.is_some());
    let forms: Vec<Errors> = described.map(|route| Errors::of(route.path)).collect();
    let mut responses = Map::new();
    for form in Errors::ALL.into_iter().filter(|form| forms.contains(form)) {
        let content = json!({"application/json": {"schema": form.schema(&error)}});
        for (_, name, description) in FAILURES {
            let response = json!({"description": description, "content": content});
            responses.insert(format!("{}{name}", form.prefix()), response);
        }
    }
    let mut components = schemas.components();
    match unknown {
        UnknownFields::Refuse => refuse_unknown_inside(&mut components),
        UnknownFields::Ignore => allow_unknown(&mut components),
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "realign",
            "version": env!("CARGO_PKG_VERSION"),
            "description": unknown_fields(unknown),
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "adminKey": {
                    "type": "http", "scheme": "bearer",
                    "description": "The operators' key.",
                },
            },
            "responses": responses,
            "schemas": components,
        },
    })
}

fn describe_one(route: &Route, operation: &Operation, schemas: &mut Schemas) -> Value {
    let mut described = json!({"operationId": operation.id, "summary": operation.summary});
    if let Some(request) = operation.request {
        let schema = request(&mut schemas.requests);
        described["requestBody"] = json!({
            "required": !operation.may_be_empty,
            "content": {"application/json": {"schema": schema}},
        });
    }
    let mut responses = Map::new();
    let success = json!({
        "description": "The answer.",
        "content": content(operation.answer, schemas),
    });
    responses.insert(operation.status.to_string(), success);
    for status in operation.failures {
        if let Some((_, name, _)) = FAILURES.iter().find(|(known, _, _)| known == status) {
            let form = Errors::of(route.path).prefix();
            let reference = json!({"$ref": format!("#/components/responses/{form}{name}")});
            responses.insert(status.to_string(), reference);
        }
    }
    described["responses"] = responses.into();
    match route.audience {
        Audience::Clients => described["security"] = json!([{}, {"key": []}]),
        Audience::Operators => described["security"] = json!([{"adminKey": []}]),
        Audience::Everyone | Audience::OperatorsUnguarded => {}
    }
    let parameters = parameters(route, operation);
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    described
}

fn content(answer: Answer, schemas: &mut Schemas) -> Value {
    match answer {
        Answer::Json(schema) => {
            json!({"application/json": {"schema": schema(&mut schemas.answers)}})
        }
        Answer::JsonOrEvents(schema) => json!({
            "application/json": {"schema": schema(&mut schemas.answers)},
            "text/event-stream": {},
        }),
        Answer::Events => json!({"text/event-stream": {}}),
        Answer::Text(media_type) => json!({media_type: {"schema": {"type": "string"}}}),
    }
}

fn parameters(route: &Route, operation: &Operation) -> Vec<Value> {
    let mut parameters = Vec::new();
    for segment in route.path.split('/') {
        let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        let Some(name) = name else { continue };
        let mut parameter = json!({
            "name": name.trim_start_matches('*'),
            "in": "path",
            "required": true,
            "schema": {"type": "string", "minLength": 1},
        });
        if route.audience == Audience::Clients {
            parameter["example"] = ModelName::SERVED.into();
        }
        parameters.push(parameter);
    }
    for (name, description) in operation.query {
        parameters.push(json!({
            "name": name,
            "in": "query",
            "description": description,
            "schema": {"type": "integer", "minimum": 0, "maximum": u64::MAX},
        }));
    }
    parameters
}
