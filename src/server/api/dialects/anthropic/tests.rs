//! What becomes of Anthropic's requests.

use serde_json::{Value, json};

use super::super::super::chat;
use super::super::super::error::ApiError;
use super::super::super::request;
use super::{Body, Places, translated};

fn translate_all(body: Value) -> Result<(Value, Places), ApiError> {
    let (read, _) = request::read_all::<Body>(&body)?;
    translated(read)
}

fn asked(body: Value) -> Value {
    let translated = translate_all(body);
    translated.unwrap_or_else(|e| panic!("{e}")).0
}

fn refused(body: Value) -> String {
    let refused = translate_all(body).err();
    refused.map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_conversation_with_tools_is_translated() {
    let chat = asked(json!({
        "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "Be brief."}],
        "stop_sequences": ["x"], "thinking": {"type": "disabled"},
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]},
                {"type": "text", "text": "So?"}]},
        ],
    }));
    assert_eq!(
        chat["messages"],
        json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
            {"role": "tool", "tool_call_id": "t1", "content": "2"},
            {"role": "user", "content": "So?"},
        ])
    );
    assert_eq!(chat["tool_choice"], "required");
    assert_eq!(chat["parallel_tool_calls"], false);
    assert_eq!(chat["enable_thinking"], false);
    assert_eq!(
        (&chat["max_completion_tokens"], &chat["stop"]),
        (&json!(9), &json!(["x"]))
    );
}

#[test]
fn what_cannot_be_done_is_named() {
    let said = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let result = json!([{"type": "text", "text": 1}]);
    let offered = |tool: Value| json!({"messages": [], "tools": [tool]});
    for (body, says) in [
        (
            said(json!({"type": "image", "source": {}})),
            "`messages[0].content[0].type` of the value `image`",
        ),
        (
            said(json!({"type": "text"})),
            "`messages[0].content[0].text`",
        ),
        (
            said(json!({"type": "text", "text": ["a"]})),
            "`messages[0].content[0].text`",
        ),
        (
            json!({"messages": [{"role": "assistant", "content":
                [{"type": "tool_use", "name": "f", "input": "{}"}]}]}),
            "`messages[0].content[0].input`",
        ),
        (
            said(json!({"type": "thinking", "thinking": "Hm."})),
            "`messages[0].content[0].type`",
        ),
        (
            said(json!({"type": "tool_result", "content": result})),
            "`messages[0].content[0].content[0].text`",
        ),
        (json!({"messages": [], "system": 5}), "`system`"),
        (
            json!({"messages": [], "tool_choice": {"type": "tool"}}),
            "`tool_choice.name`",
        ),
        (
            offered(json!({"name": "f", "defer_loading": true})),
            "`tools[0].defer_loading`",
        ),
        (
            offered(json!({"name": "f", "input_examples": [{}]})),
            "`tools[0].input_examples`",
        ),
        (
            offered(json!({"name": "b", "type": "bash_20250124"})),
            "bash_20250124",
        ),
    ] {
        let error = refused(body.clone());
        assert!(error.contains(says), "{body}: {error}");
    }
}

#[test]
fn errors_have_the_numbers_of_the_messages_as_they_were_sent() {
    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": "1"});
    let text = json!({"type": "text", "text": "So?"});
    let body = json!({"system": "Be brief.", "messages": [
        {"role": "user", "content": "Hi"}, {"role": "user", "content": [result, text]},
        {"role": "robot", "content": "Hello"}]});
    let (chat, places) = translate_all(body).unwrap();
    let error = chat::ChatRequest::read(&chat).unwrap_err();
    assert!(error.to_string().contains("`messages[4].role`"), "{error}");
    let error = places.named(error);
    assert!(error.to_string().contains("`messages[2].role`"), "{error}");
}

#[test]
fn what_the_format_has_under_other_names_is_done() {
    let chat = asked(json!({
        "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "no such file", "is_error": true}]}],
        "tools": [{"name": "f", "strict": true, "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "stream": true,
        "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    }));
    assert_eq!(chat["messages"][0]["content"], "Error: no such file");
    let called = json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]});
    let called = &asked(called)["messages"][0]["tool_calls"][0]["function"];
    assert_eq!(called["arguments"], "{}");
    assert_eq!(chat["tools"][0]["function"]["strict"], true);
    assert_eq!(chat["thinking_token_budget"], 1024);
    assert_eq!(chat["reasoning_effort"], "xhigh");
    assert_eq!(
        chat["response_format"]["json_schema"]["schema"]["type"],
        "object"
    );
    assert_eq!(chat["stream_options"]["continuous_usage_stats"], true);
    let off = json!({"messages": [], "thinking": {"type": "disabled", "budget_tokens": 9}});
    assert_eq!(asked(off).get("thinking_token_budget"), None);
}

#[test]
fn what_is_wrong_with_a_tool_is_named_as_in_the_format() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [
        {"name": "f", "input_schema": {"type": "object"}},
        {"name": "g", "input_schema": 5}]});
    let (chat, places) = translate_all(body).unwrap();
    let error = chat::ChatRequest::read(&chat).unwrap_err();
    let error = places.named(error).to_string();
    assert!(error.contains("`tools[1].input_schema` must be"), "{error}");
    let server_tool = json!({"messages": [], "tools": [{"type": "bash_20250124", "name": "bash"}]});
    assert!(refused(server_tool).contains("`tools[0]` of the type `bash_20250124`"));
    for (display, passes) in [("summarized", true), ("omitted", false)] {
        let thinking = json!({"type": "enabled", "budget_tokens": 9, "display": display});
        let error = refused(json!({"messages": [], "thinking": thinking}));
        assert_eq!(error.is_empty(), passes, "{error}");
    }
}
