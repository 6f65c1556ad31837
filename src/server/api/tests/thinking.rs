//! Thoughts, and how a conversation is rendered.

use std::sync::Arc;

use serde_json::{Value, json};

use super::fake::{MODEL, Script, Server};
use super::{chat, post};
use realign_model::ChatTemplate;

const THINKS: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% if enable_thinking is defined and not enable_thinking %}\
    <think></think>{% endif %}{% endif %}";

fn start() -> Server {
    Server::start(|state| {
        let template = ChatTemplate::new(THINKS, &state.tokenizer).unwrap();
        state.chat = Arc::new(template);
    })
}

#[test]
fn thoughts_come_apart_from_the_answer() {
    let said = || Script::Say(&["<thi", "nk>Hm", "m.</think>", "\n\n", "Yes."]);
    let server = start();
    server.script([said(), said(), said()]);
    let answer = chat(&server, &json!({})).json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        message["content"], "Yes.!",
        "the script's end is the engine's"
    );
    assert_eq!(message["reasoning_content"], "Hmm.");
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() >= Some(1));
    let events = chat(&server, &json!({"stream": true})).events();
    let all = |field: &str| -> String {
        let parts = events
            .iter()
            .filter_map(|e| e["choices"][0]["delta"][field].as_str());
        parts.collect()
    };
    assert_eq!(
        (all("content").as_str(), all("reasoning_content").as_str()),
        ("Yes.!", "Hmm.")
    );
    let off = chat(&server, &json!({"enable_thinking": false})).json();
    let content = off["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        content.contains("<think>"),
        "the template ended the thoughts: {content}"
    );
}

#[test]
fn a_budget_of_thoughts_reaches_the_engine_where_there_may_be_thoughts() {
    let server = start();
    let budget = || {
        let requests = server.engine.requests.lock().unwrap();
        requests.last().unwrap().sampling.thinking.clone()
    };
    for fields in [
        json!({"thinking_token_budget": 7}),
        json!({"thinking_budget": 7}),
        json!({"thinking_budget_tokens": 7}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
        let budget = budget().unwrap();
        assert_eq!((budget.tokens, budget.opened), (7, false));
        let closing = server.state.tokenizer.decode(&budget.closing).unwrap();
        assert_eq!(closing, "\n</think>\n\n");
    }
    let body = json!({"model": MODEL, "input": "Hi", "thinking_token_budget": 7});
    assert_eq!(post(&server, "/v1/responses", &body).status, 200);
    assert!(budget().is_some());
    let claude = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}],
        "thinking": {"type": "enabled", "budget_tokens": 7}});
    assert_eq!(post(&server, "/v1/messages", &claude).status, 200);
    assert!(budget().is_some());
    for fields in [
        json!({}),
        json!({"thinking_budget_tokens": -1}),
        json!({"thinking_budget": 7, "enable_thinking": false}),
        json!({"thinking_budget": 7, "regex": "a"}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
        assert_eq!(budget(), None, "{fields}");
    }
}

#[test]
fn responses_have_thoughts_as_items() {
    let said = || Script::Say(&["<think>Hm", "m.</think>", "\n\n", "Yes."]);
    let server = start();
    server.script([said(), said()]);
    let mut body = json!({"model": MODEL, "input": "Hi", "reasoning": {"effort": "high"}});
    let whole = post(&server, "/v1/responses", &body).json();
    let thoughts = |of: &Value| {
        let item = &of["output"][0];
        (item["type"].clone(), item["content"][0]["text"].clone())
    };
    let expect = (json!("reasoning"), json!("Hmm."));
    assert_eq!(thoughts(&whole), expect);
    assert_eq!(whole["output"][1]["content"][0]["text"], "Yes.!");
    assert_eq!(whole["reasoning"]["effort"], "high");
    let counted = &whole["usage"]["output_tokens_details"]["reasoning_tokens"];
    assert!(counted.as_u64() >= Some(1), "{counted}");

    body["stream"] = true.into();
    let streamed = post(&server, "/v1/responses", &body);
    let events: Vec<Value> = streamed
        .text
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    let of = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
    let deltas = of("response.reasoning_text.delta").map(|e| e["delta"].as_str().unwrap());
    assert_eq!(deltas.collect::<String>(), "Hmm.");
    assert_eq!(
        of("response.reasoning_text.done").next().unwrap()["text"],
        "Hmm."
    );
    let completed = of("response.completed").next().unwrap();
    assert_eq!(thoughts(&completed["response"]), expect);
}

/// The prompt that the engine got last.
fn prompt(server: &Server) -> String {
    let requests = server.engine.requests.lock().unwrap();
    let prompt = &requests.last().unwrap().prompt;
    server.state.tokenizer.decode(prompt).unwrap()
}

#[test]
fn fields_that_contradict_each_other_are_both_named() {
    let server = start();
    for (fields, names) in [
        (
            json!({"chat_template_kwargs": {"enable_thinking": true}, "enable_thinking": false}),
            ["chat_template_kwargs.enable_thinking", "enable_thinking"],
        ),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "high"}),
            ["chat_template_kwargs.enable_thinking", "reasoning_effort"],
        ),
        (
            json!({"chat_template_kwargs": {"thinking": true}, "reasoning_effort": "none"}),
            ["chat_template_kwargs.thinking", "reasoning_effort"],
        ),
        (
            json!({"enable_thinking": true, "reasoning_effort": "minimal"}),
            ["enable_thinking", "reasoning_effort"],
        ),
        (
            json!({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"}),
            ["chat_template_kwargs.reasoning_effort", "reasoning_effort"],
        ),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        for name in names {
            assert!(reply.text.contains(&format!("`{name}`")), "{}", reply.text);
        }
    }
    for fields in [
        json!({"chat_template_kwargs": {"enable_thinking": false}, "enable_thinking": false}),
        json!({"chat_template_kwargs": {"thinking": false}, "reasoning_effort": "none"}),
        json!({"chat_template_kwargs": {"reasoning_effort": "none"}}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
        assert!(prompt(&server).ends_with("<think></think>"), "{fields}");
    }
    // With Anthropic's, an effort is no wish to think.
    let claude = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}],
        "thinking": {"type": "disabled"}, "output_config": {"effort": "high"}});
    let reply = post(&server, "/v1/messages", &claude);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(prompt(&server).ends_with("<think></think>"));
}

#[test]
fn a_model_whose_template_has_no_switch_is_made_to_end_its_thoughts() {
    let always = "{% for m in messages %}{{ m.content }}{% endfor %}assistant: <think>\n";
    let server = Server::start(|state| {
        let template = ChatTemplate::new(always, &state.tokenizer).unwrap();
        state.chat = Arc::new(template);
    });
    let budget = |fields: &Value| {
        assert_eq!(chat(&server, fields).status, 200, "{fields}");
        let requests = server.engine.requests.lock().unwrap();
        let thinking = requests.last().unwrap().sampling.thinking.clone();
        thinking.map(|budget| (budget.tokens, budget.opened))
    };
    // A template that never closes thoughts is none of a model that thinks.
    assert_eq!(budget(&json!({"reasoning_effort": "none"})), None);
    let always = format!("{always}{{# </think> #}}");
    let server = Server::start(|state| {
        let template = ChatTemplate::new(&always, &state.tokenizer).unwrap();
        state.chat = Arc::new(template);
    });
    let budget = |fields: &Value| {
        assert_eq!(chat(&server, fields).status, 200, "{fields}");
        let requests = server.engine.requests.lock().unwrap();
        let thinking = requests.last().unwrap().sampling.thinking.clone();
        thinking.map(|budget| (budget.tokens, budget.opened))
    };
    assert_eq!(
        budget(&json!({"reasoning_effort": "none"})),
        Some((0, true))
    );
    assert_eq!(
        budget(&json!({"enable_thinking": false, "thinking_budget": 9})),
        Some((0, true))
    );
    assert_eq!(budget(&json!({"enable_thinking": true})), None);
}

/// Functions that may be called leave the text free.
#[test]
fn thoughts_before_a_call_are_no_part_of_the_text() {
    const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    let server = start();
    let said = || Script::Exactly(&["<think>Hm.</think>", "\n\n", CALL]);
    server.script([said(), said()]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let answer = chat(&server, &json!({"tools": tools})).json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "Hm.", "{message}");
    assert_eq!(message["content"], Value::Null);
    assert_eq!(message["tool_calls"][0]["function"]["name"], "f");
    let body = json!({"model": MODEL, "input": "Hi", "tools": [{"type": "function", "name": "f"}]});
    let output = post(&server, "/v1/responses", &body).json()["output"].clone();
    let kinds: Vec<&Value> = output
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["type"])
        .collect();
    assert_eq!(kinds, ["reasoning", "function_call"], "{output}");
}

#[test]
fn a_message_that_begins_with_thoughts_is_continued_in_them() {
    let server = start();
    server.script([Script::Say(&["so.", "</think>", "Yes."])]);
    let begun = json!({"continue_final_message": true, "messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nOkay, "}]});
    let message = chat(&server, &begun).json()["choices"][0]["message"].clone();
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("so."), &json!("Yes.!"))
    );
}

#[test]
fn fields_of_the_template_are_followed_or_named() {
    let server = start();
    for fields in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"reasoning_effort": "none"}),
        json!({"reasoning_effort": "minimal", "enable_thinking": false}),
    ] {
        assert_eq!(chat(&server, &fields).status, 200, "{fields}");
        let requests = server.engine.requests.lock().unwrap();
        let prompt = &requests.last().unwrap().prompt;
        assert!(
            server
                .state
                .tokenizer
                .decode(prompt)
                .unwrap()
                .ends_with("<think></think>"),
            "{fields}"
        );
    }
    let two =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let continued = json!({"messages": two, "continue_final_message": true});
    assert_eq!(chat(&server, &continued).status, 200);
    let prompt = server
        .engine
        .requests
        .lock()
        .unwrap()
        .last()
        .unwrap()
        .prompt
        .clone();
    assert!(
        server
            .state
            .tokenizer
            .decode(&prompt)
            .unwrap()
            .ends_with("Well, ")
    );
    for (fields, param) in [
        (json!({"continue_final_message": true}), "messages"),
        (
            json!({"messages": two, "continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
        (
            json!({"chat_template_kwargs": {"messages": []}}),
            "chat_template_kwargs",
        ),
        (
            json!({"chat_template_kwargs": {"colour": "red"}}),
            "chat_template_kwargs",
        ),
        (json!({"reasoning_effort": "immense"}), "reasoning_effort"),
    ] {
        let reply = chat(&server, &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.text);
        assert_eq!(
            reply.json()["error"]["param"],
            param,
            "{fields}: {}",
            reply.text
        );
    }
}
