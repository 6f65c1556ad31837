//! `/openapi.json` and the table of routes that it comes from.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fake::{MODEL, Server};
use super::{get, send};
use crate::api::routes::{self, Audience, Labels, Route};
use crate::config::UnknownFields;

const EVERYBODY: [Audience; 4] = [
    Audience::Everyone,
    Audience::Clients,
    Audience::Operators,
    Audience::OperatorsUnguarded,
];

/// A concrete path that matches the route.
fn concrete(route: &Route) -> String {
    let path = route.path.replace("{*id}", MODEL);
    path.replace("realignments/{id}", "realignments/r1")
}

#[test]
fn the_router_has_what_the_table_says() {
    let server = Server::start(|_| ());
    for route in routes::of(&EVERYBODY) {
        let (method, path) = (route.method.as_str(), concrete(&route));
        let body = if method == "GET" { "" } else { "{}" };
        let reply = send(&server, method, &path, &[], body);
        let operation = route.operation.as_ref();
        let documented = operation.map_or(reply.status == 200, |operation| {
            operation.status == reply.status || operation.failures.contains(&reply.status)
        });
        assert!(documented, "{method} {path}: {}", reply.status);
        let refused = send(&server, "DELETE", &path, &[], "");
        assert_eq!(refused.status, 405, "DELETE {path}");
    }
    assert_eq!(get(&server, "/v1/nothing").status, 404);
}

#[test]
fn requests_are_counted_under_their_routes() {
    let server = Server::start(|_| ());
    let routes = routes::of(&EVERYBODY);
    let labels = Labels::new(&routes);
    for route in &routes {
        let expect = route.counted.then_some(route.path);
        assert_eq!(labels.of(Some(route.path)), expect);
        if route.method == "GET" {
            get(&server, &concrete(route));
        }
    }
    assert_eq!(labels.of(None), Some("unmatched"));
    let metrics = get(&server, "/metrics").text;
    for route in routes.iter().filter(|route| route.method == "GET") {
        let series = format!("realign_requests_total{{route=\"{}\"", route.path);
        assert_eq!(metrics.contains(&series), route.counted, "{}", route.path);
    }
}

#[test]
fn the_document_has_every_route() {
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap().keys();
        documented.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let table = routes::of(&EVERYBODY).into_iter();
    let table = table.filter(|route| route.operation.is_some());
    let table: BTreeSet<String> = table
        .map(|route| format!("{} {}", route.method, route.path.replace("{*", "{")))
        .collect();
    assert_eq!(documented, table);
    let schema = &document["components"]["schemas"]["ChatRequest"]["properties"];
    assert_eq!(schema["model"]["examples"], json!([MODEL]));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            let admin = path.starts_with("/admin") || path.ends_with("_lora_adapter");
            let clients = operation["security"][1].get("key").is_some();
            let operators = operation["security"][0].get("adminKey").is_some();
            assert_eq!(operators, admin, "{path}");
            assert!(!(clients && operators), "{path}");
        }
    }
}

#[test]
fn the_document_says_what_happens_to_unknown_fields() {
    let document = |unknown| {
        let server = Server::start(|state| state.unknown_fields = unknown);
        get(&server, "/openapi.json").json()
    };
    let said = |document: &Value| document["info"]["description"].as_str().unwrap().to_owned();
    let refusing = document(UnknownFields::Refuse);
    assert!(said(&refusing).contains("refused with 400"), "{refusing}");
    let schemas = [
        "ChatRequest",
        "AnthropicMessageRequest",
        "OllamaChatRequest",
    ];
    let additional = |document: &Value, name: &str| {
        document["components"]["schemas"][name]["additionalProperties"].clone()
    };
    for name in schemas {
        assert_eq!(
            additional(&refusing, name),
            json!({"type": "null"}),
            "{name}"
        );
    }
    // And in the objects inside of them.
    assert_eq!(additional(&refusing, "Function"), json!({"type": "null"}));
    let ignoring = document(UnknownFields::Ignore);
    assert!(
        said(&ignoring).contains("x-realign-ignored-fields"),
        "{ignoring}"
    );
    for name in schemas {
        assert_eq!(additional(&ignoring, name), Value::Null, "{name}");
    }
    // Inside of others, too.
    let refusals = |document: &Value| {
        let body = &document["components"]["schemas"]["AnthropicMessageRequest"];
        let text = body.to_string();
        text.matches(r#""additionalProperties":{"type":"null"}"#)
            .count()
    };
    assert!(refusals(&refusing) > 5, "{}", refusals(&refusing));
    assert_eq!(refusals(&ignoring), 0);
}

#[test]
fn the_document_keeps_what_clients_rely_on() {
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    let schemas = &document["components"]["schemas"];
    let chat = &schemas["ChatRequest"];
    assert_eq!(chat["required"], json!(["messages"]));
    let fields = &chat["properties"];
    let temperature = &fields["temperature"];
    assert_eq!(temperature["type"], json!(["number", "null"]));
    assert_eq!([&temperature["minimum"], &temperature["maximum"]], [0, 2]);
    assert_eq!(temperature["description"], "0 is greedy. Default 1.");
    assert_eq!([&fields["n"]["minimum"], &fields["n"]["maximum"]], [1, 8]);
    assert_eq!(fields["seed"]["minimum"], i64::MIN);
    assert_eq!(fields["messages"]["minItems"], 1);
    assert_eq!(fields["tools"]["maxItems"], 128);
    assert!(fields.get("functions").is_none(), "it is refused");
    assert_eq!(
        schemas["Message"]["oneOf"].as_array().map(Vec::len),
        Some(3)
    );
    let named = &schemas["Function"]["properties"]["name"]["pattern"];
    assert_eq!(named, "^[a-zA-Z0-9_./:-]{1,64}$");
    let error = &schemas["Error"]["properties"]["error"];
    assert_eq!(
        error["required"],
        json!(["message", "type", "param", "code"])
    );
    let streams = document["paths"].as_object().unwrap().values();
    let streams = streams.filter(|path| path.to_string().contains("text/event-stream"));
    assert_eq!(streams.count(), 6);
}

/// Checks that every `$ref` can be resolved.
#[test]
fn references_are_not_broken() {
    fn check(document: &Value, value: &Value) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                object.values().for_each(|value| check(document, value));
            }
            Value::Array(items) => items.iter().for_each(|value| check(document, value)),
            _ => {}
        }
    }
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    check(&document, &document);
}

/// The names of all fields of a schema's objects, following references.
fn names(document: &Value, schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get("$ref") {
                let schema = document.pointer(&reference[1..]).unwrap();
                names(document, schema, into);
            }
            if let Some(Value::Object(properties)) = object.get("properties") {
                into.extend(properties.keys().cloned());
            }
            object
                .values()
                .for_each(|value| names(document, value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| names(document, value, into)),
        _ => {}
    }
}

fn answer<'a>(document: &'a Value, method: &str, path: &str) -> &'a Value {
    &document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
}

/// The fields of the overview that the page reads, found in its script: `.name` on variables that
/// hold values from the server.
#[test]
fn the_page_reads_fields_that_the_overview_has() {
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    let mut known = BTreeSet::new();
    names(
        &document,
        answer(&document, "get", "/admin/v1/overview"),
        &mut known,
    );
    // Losses and series are maps whose keys are also read by name.
    known.extend(["total", "invert", "punish", "kl", "sft"].map(String::from));
    let script = get(&server, "/page.js").text;
    let from_the_server = regex::Regex::new(
        r"\b(?:o(?:\.server|\.serving|\.traffic|\.policies|\.generations|\.realignment)?|s|engine|r|row|p|g|m|t|v|a|slot|bounds|policies|generations|set|latest|timeline)\.([a-z_0-9]+)\b(\()?",
    )
    .unwrap();
    // Fields of the script's own objects and of JavaScript.
    let own = ["length", "step", "steps", "value", "status"];
    let mut read = BTreeSet::new();
    for found in from_the_server.captures_iter(&script) {
        let name = found[1].to_string();
        if found.get(2).is_none() && !own.contains(&name.as_str()) {
            read.insert(name);
        }
    }
    assert!(read.len() > 30, "the script is read wrongly: {read:?}");
    let unknown: Vec<_> = read.difference(&known).collect();
    assert!(unknown.is_empty(), "the overview has no {unknown:?}");
}

/// `realign adapters` prints these fields.
#[test]
fn the_commands_read_fields_that_swaps_have() {
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    for path in [
        "/admin/v1/generations/activate",
        "/admin/v1/generations/rollback",
    ] {
        let mut known = BTreeSet::new();
        names(&document, answer(&document, "post", path), &mut known);
        let read = ["from", "to"].map(String::from);
        assert_eq!(known, BTreeSet::from(read), "{path}");
    }
    let mut error = BTreeSet::new();
    names(
        &document,
        &document["components"]["schemas"]["Error"],
        &mut error,
    );
    assert!(error.contains("message"));
}

/// Clients of other servers find their own form of errors, in the document as in the answers.
#[test]
fn errors_are_described_in_the_form_that_they_have() {
    let server = Server::start(|_| ());
    let document = get(&server, "/openapi.json").json();
    for route in routes::of(&[Audience::Clients]) {
        let Some(operation) = route.operation.filter(|told| told.request.is_some()) else {
            continue;
        };
        let answers = &document["paths"][route.path]["post"]["responses"];
        for status in operation.failures {
            let place = answers[status.to_string()]["$ref"].as_str().unwrap();
            assert!(
                document.pointer(&place[1..]).is_some(),
                "{} {place}",
                route.path
            );
        }
        let place = answers["400"]["$ref"].as_str().unwrap();
        let mut schema =
            &document.pointer(&place[1..]).unwrap()["content"]["application/json"]["schema"];
        if let Some(named) = schema["$ref"].as_str() {
            schema = document.pointer(&named[1..]).unwrap();
        }
        let answer = send(&server, "POST", route.path, &[], "[]").json();
        let names = |of: &Value| -> BTreeSet<String> {
            of.as_object()
                .into_iter()
                .flat_map(|fields| fields.keys().cloned())
                .collect()
        };
        assert_eq!(
            names(&schema["properties"]),
            names(&answer),
            "{}",
            route.path
        );
        let inside = &schema["properties"]["error"];
        assert_eq!(
            names(&inside["properties"]),
            names(&answer["error"]),
            "{}",
            route.path
        );
        assert_eq!(inside["type"] == "string", answer["error"].is_string());
    }
}
