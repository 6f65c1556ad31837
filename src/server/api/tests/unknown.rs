//! Fields inside of messages, parts, functions and other objects: done, listed as without effect, or
//! refused by their path.

use serde_json::{Value, json};

use super::fake::{MODEL, Server};
use super::post;
use crate::config::UnknownFields;
use realign_model::ChatTemplate;

/// A request of each route, with a field that asks for nothing anywhere.
fn bodies() -> [(&'static str, Value); 4] {
    let function =
        json!({"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": false});
    let chat = json!({
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "name": "ada", "content": "Hi"},
            {"role": "assistant", "content": "Well.", "refusal": null, "annotations": [], "audio": null,
                "function_call": null, "parsed": null, "provider_specific_fields": {}, "reasoning_details": [],
                "tool_calls": [{"index": 0, "id": "c", "type": "function",
                    "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}]},
            {"role": "tool", "tool_call_id": "c", "name": "f", "content": [{"type": "text", "text": "1"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "So?", "annotations": []}]}],
        "tools": [{"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false},
    });
    let responses = json!({
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}],
                "encrypted_content": "x", "status": null},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": "final_answer",
                "content": [{"type": "output_text", "text": "Well.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "id": "fco_1", "call_id": "c", "status": "completed",
                "output": [{"type": "input_text", "text": "1"}]}],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "tool_choice": {"type": "function", "name": "f"},
    });
    let cached = json!({"type": "ephemeral"});
    let claude = json!({
        "max_tokens": 9, "metadata": {"user_id": "u"}, "service_tier": "auto",
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "system": [{"type": "text", "text": "s", "cache_control": cached, "citations": null}],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Well.", "citations": null},
                {"type": "tool_use", "id": "c", "name": "f", "input": {}, "caller": {"type": "direct"}, "cache_control": cached}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "is_error": false, "cache_control": cached,
                    "content": [{"type": "text", "text": "1"}]},
                {"type": "text", "text": "So?", "cache_control": cached}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": cached, "type": "custom",
            "eager_input_streaming": true, "allowed_callers": ["direct"], "defer_loading": false}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "thinking": {"type": "disabled"}, "output_config": {"effort": "high"},
    });
    let ollama = json!({
        "messages": [
            {"role": "user", "content": "Hi", "images": []},
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [
                {"type": "function", "id": "c", "function": {"index": 0, "name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_name": "f", "tool_call_id": "c", "content": "1"}],
        "tools": [{"type": "function", "function": function}],
        "options": {"num_ctx": 512}, "stream": false,
    });
    [
        ("/v1/chat/completions", chat),
        ("/v1/responses", responses),
        ("/v1/messages", claude),
        ("/api/chat", ollama),
    ]
}

/// The body with one more field at a place.
fn with(body: &Value, place: &str, field: &str) -> Value {
    let mut body = body.clone();
    body["model"] = MODEL.into();
    let inside = body
        .pointer_mut(place)
        .unwrap_or_else(|| panic!("no {place}"));
    inside[field] = json!("x");
    body
}

/// `/messages/0/content` as errors write it.
fn path(place: &str, field: &str) -> String {
    let steps = place.split('/').skip(1);
    let path = steps.fold(String::new(), |path, step| match step.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => step.to_owned(),
        Err(_) => format!("{path}.{step}"),
    });
    format!("{path}.{field}")
}

/// All objects that a request has, but for schemas and other values that clients choose.
fn objects(value: &Value, place: String, found: &mut Vec<String>) {
    const WHOLE: [&str; 7] = [
        "parameters",
        "input_schema",
        "cache_control",
        "arguments",
        "parsed_arguments",
        "provider_specific_fields",
        "context_management",
    ];
    if WHOLE
        .iter()
        .any(|name| place.ends_with(&format!("/{name}")))
    {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, inside) in fields {
                objects(inside, format!("{place}/{name}"), found);
            }
            // What a call is given is the client's own.
            let free = place.ends_with("/input") && fields.is_empty();
            if !place.is_empty() && !free {
                found.push(place);
            }
        }
        Value::Array(items) => {
            for (index, inside) in items.iter().enumerate() {
                objects(inside, format!("{place}/{index}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn what_clients_send_and_send_back_is_taken() {
    let server = Server::start(|_| ());
    for (route, mut body) in bodies() {
        body["model"] = MODEL.into();
        let reply = post(&server, route, &body);
        assert_eq!(reply.status, 200, "{route}: {}", reply.text);
    }
}

#[test]
fn an_unknown_field_is_refused_by_its_path_wherever_it_is() {
    // A template that shows functions field by field.
    let template = "{% if tools %}{% for t in tools %}<tool_call>{{ t.function.name }}\
        {{ t.function.description }}{{ t.function.parameters | tojson }}{% endfor %}{% endif %}\
        {% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.mood }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}\n{% endfor %}";
    let server = Server::start(|state| {
        let template = ChatTemplate::new(template, &state.tokenizer).unwrap();
        state.chat = std::sync::Arc::new(template);
    });
    let mut tried = 0;
    for (route, body) in bodies() {
        let mut places = Vec::new();
        objects(&body, String::new(), &mut places);
        for place in places {
            let reply = post(&server, route, &with(&body, &place, "sprachregler"));
            assert_eq!(reply.status, 400, "{route} {place}: {}", reply.text);
            let named = format!("`{}`", path(&place, "sprachregler"));
            assert!(
                reply.text.contains(&named),
                "{route}: {named}: {}",
                reply.text
            );
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
    let (route, chat) = &bodies()[0];
    let read = post(&server, route, &with(chat, "/messages/1", "mood"));
    assert_eq!(read.status, 200, "the template reads it: {}", read.text);
}

#[test]
fn what_a_template_shows_of_a_function_may_be_anything() {
    // The server's own description of functions shows them as they are.
    let server = Server::start(|_| ());
    let (route, chat) = &bodies()[0];
    let shown = post(&server, route, &with(chat, "/tools/0/function", "return"));
    assert_eq!(shown.status, 200, "{}", shown.text);
    for (place, field) in [
        ("/tools/0", "defer_loading"),
        ("/tools/0/function", "defer_loading"),
    ] {
        let refused = post(&server, route, &with(chat, place, field));
        assert!(
            refused.text.contains(&path(place, field)),
            "{}",
            refused.text
        );
    }
}

#[test]
fn ignored_fields_are_named_with_their_paths() {
    let server = Server::start(|state| state.unknown_fields = UnknownFields::Ignore);
    for (route, body) in bodies() {
        let place = if route == "/v1/responses" {
            "/input/0"
        } else {
            "/messages/0"
        };
        let reply = post(&server, route, &with(&body, place, "colour"));
        assert_eq!(reply.status, 200, "{route}: {}", reply.text);
        assert_eq!(
            reply.header("x-realign-ignored-fields"),
            path(place, "colour")
        );
    }
}

/// Two fields for one thing, and values that are written in another way.
#[test]
fn fields_for_the_same_thing_may_agree() {
    let server = Server::start(|_| ());
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let responses = json!({"input": "Hi"});
    let claude = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9});
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    for (route, body, fields, refused) in [
        (
            "/v1/chat/completions",
            &chat,
            json!({"max_tokens": 3, "max_completion_tokens": 3}),
            None,
        ),
        (
            "/v1/chat/completions",
            &chat,
            json!({"max_tokens": 3, "max_completion_tokens": 4}),
            Some("max_tokens"),
        ),
        (
            "/v1/chat/completions",
            &chat,
            json!({"thinking_budget": 3, "thinking_token_budget": 4}),
            Some("thinking_budget"),
        ),
        (
            "/v1/chat/completions",
            &chat,
            json!({"max_tokens": 3.0, "n": 1.0, "seed": -4.0}),
            None,
        ),
        (
            "/v1/chat/completions",
            &chat,
            json!({"max_tokens": 3.5}),
            Some("max_tokens"),
        ),
        ("/v1/responses", &responses, json!({"max_tokens": 3}), None),
        (
            "/v1/responses",
            &responses,
            json!({"max_tokens": 3, "max_output_tokens": 4}),
            Some("max_tokens"),
        ),
        ("/v1/responses", &responses, json!({"n": 2}), Some("n")),
        (
            "/v1/responses",
            &responses,
            json!({"include": ["reasoning.encrypted_content"]}),
            None,
        ),
        (
            "/v1/responses",
            &responses,
            json!({"include": ["everything"]}),
            Some("include[0]"),
        ),
        (
            "/v1/messages",
            &claude,
            json!({"output_format": format, "output_config": {"format": format}}),
            Some("output_format"),
        ),
    ] {
        let mut body = body.clone();
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        let reply = post(&server, route, &body);
        assert_eq!(
            reply.status,
            if refused.is_some() { 400 } else { 200 },
            "{fields}: {}",
            reply.text
        );
        let named = refused.is_none_or(|name| reply.text.contains(&format!("`{name}`")));
        assert!(named, "{fields}: {}", reply.text);
    }
}

#[test]
fn fields_that_ask_for_something_are_refused_in_any_place() {
    let server = Server::start(|_| ());
    for (route, place, field, value) in [
        (0, "/messages/1", "tool_calls", json!([{"id": "c"}])),
        (1, "/text", "verbosity", json!("low")),
        (
            2,
            "/messages/1/content/2",
            "citations",
            json!({"enabled": true}),
        ),
        (
            2,
            "/messages/1/content/3",
            "caller",
            json!({"type": "code_execution_20250825"}),
        ),
        (
            2,
            "/tools/0",
            "allowed_callers",
            json!(["code_execution_20250825"]),
        ),
        (
            2,
            "",
            "context_management",
            json!({"edits": [{"type": "clear_tool_uses_20250919"}]}),
        ),
        (3, "/messages/0", "images", json!(["AAAA"])),
    ] {
        let (route, mut body) = bodies()[route].clone();
        body.pointer_mut(place).unwrap()[field] = value;
        let reply = post(&server, route, &body);
        assert_eq!(reply.status, 400, "{route} {place}: {}", reply.text);
        assert!(
            reply.text.contains(field),
            "{route} {place}: {}",
            reply.text
        );
    }
}
