//! Every JSON answer that the other tests receive is validated against the server's own
//! `/openapi.json`.

use std::collections::HashMap;
use std::sync::Mutex;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

/// A server's OpenAPI document.
pub(super) struct Document {
    document: Value,
    /// By method, path and status: to compile a schema takes longer than what is tested.
    compiled: Mutex<HashMap<String, (Schemas, SchemaIndex)>>,
}

impl Document {
    pub(super) fn new(document: Value) -> Document {
        assert_eq!(document["openapi"], "3.1.0", "{document}");
        Document {
            document,
            compiled: Mutex::default(),
        }
    }

    /// Fails unless the answer has a documented status and matches its schema. Undocumented paths
    /// (another listener's routes, the page, routes that do not exist) pass.
    pub(super) fn check(&self, method: &str, path: &str, status: u16, body: &Value) {
        let path = path.split('?').next().unwrap();
        let paths = self.document["paths"].as_object().unwrap();
        let Some((template, methods)) = paths.iter().find(|(known, _)| fits(known, path)) else {
            return;
        };
        let responses = &methods[method.to_lowercase()]["responses"];
        let mut response = &responses[status.to_string()];
        assert!(
            response.is_object(),
            "{method} {template} answered an undocumented {status}: {body}"
        );
        if let Some(reference) = response["$ref"].as_str() {
            response = self.document.pointer(&reference[1..]).unwrap();
        }
        let schema = &response["content"]["application/json"]["schema"];
        assert!(
            schema.is_object(),
            "{method} {template} {status} is no JSON"
        );
        let what = format!("{method} {template} {status}");
        self.validate(schema, body, &what);
    }

    fn validate(&self, schema: &Value, body: &Value, what: &str) {
        let mut compiled = self.compiled.lock().unwrap();
        let entry = compiled.entry(what.to_owned());
        let (schemas, index) = entry.or_insert_with(|| self.compile(schema, what));
        let found = schemas.validate(body, *index);
        let message = found.map_err(|error| format!("{error:#}")).err();
        drop(compiled);
        if let Some(error) = message {
            panic!("{what} is not as documented: {error}\n{body:#}");
        }
    }

    fn compile(&self, schema: &Value, what: &str) -> (Schemas, SchemaIndex) {
        let root = json!({"components": self.document["components"], "schema": schema});
        let at = "http://realign/document.json";
        let mut compiler = Compiler::new();
        compiler.add_resource(at, root).unwrap();
        let mut schemas = Schemas::new();
        let index = compiler.compile(&format!("{at}#/schema"), &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        (schemas, index)
    }
}

/// Whether a path matches a template; the last segment may contain slashes, as model names do.
fn fits(template: &str, path: &str) -> bool {
    let (mut known, mut segments) = (template.split('/'), path.split('/'));
    loop {
        match (known.next(), segments.next()) {
            (None, None) => return true,
            (Some(name), Some(segment)) if name == segment => {}
            (Some(name), Some(_)) if name.starts_with('{') => {}
            _ => return false,
        }
    }
}

#[test]
fn a_wrong_answer_is_noticed() {
    let model = json!({"type": "object", "required": ["id"], "properties": {
        "id": {"type": "string"}, "next": {"$ref": "#/components/schemas/Model"},
    }});
    let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Model"}}});
    let document = Document::new(json!({
        "openapi": "3.1.0",
        "paths": {"/v1/models/{id}": {"get": {"responses": {"200": {"content": content}}}}},
        "components": {"schemas": {"Model": model}},
    }));
    let check = |path: &str, status: u16, body: Value| {
        let checked = std::panic::AssertUnwindSafe(|| document.check("GET", path, status, &body));
        std::panic::catch_unwind(checked).is_ok()
    };
    let path = "/v1/models/tiny";
    assert!(check(path, 200, json!({"id": "a", "next": {"id": "b"}})));
    assert!(!check(path, 200, json!({"id": "a", "next": {"id": 5}})));
    assert!(!check(path, 200, json!({})));
    assert!(!check(path, 404, json!({})));
    assert!(check("/v1/other", 404, json!({})));
}
