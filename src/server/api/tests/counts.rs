//! What answers say about their tokens: ids, counts so far, how likely a prompt is, what ended a text.

use serde_json::{Value, json};

use super::fake::{Script, Server};
use super::{Reply, chat, complete, get};

fn prompt(server: &Server) -> Value {
    let requests = server.engine.requests.lock().unwrap();
    json!(requests.last().unwrap().prompt)
}

/// The values of a field in all choices of all chunks.
fn all(events: &[Value], field: &str) -> Vec<Value> {
    let choices = events.iter().filter_map(|e| e["choices"].as_array());
    let values = choices
        .flatten()
        .flat_map(|choice| choice[field].as_array());
    values.flatten().cloned().collect()
}

#[test]
fn token_ids_are_returned_whole_and_streamed() {
    let server = Server::start(|_| ());
    let asked = json!({"return_token_ids": true});
    let answer = chat(&server, &asked).json();
    assert_eq!(answer["prompt_token_ids"], prompt(&server));
    assert_eq!(answer["choices"][0]["token_ids"], json!([100, 101]));
    let answer = complete(&server, &asked).json();
    assert_eq!(answer["choices"][0]["prompt_token_ids"], prompt(&server));
    assert_eq!(answer["choices"][0]["token_ids"], json!([100, 101]));

    let asked = json!({"return_token_ids": true, "stream": true, "n": 2});
    let events = chat(&server, &asked).events();
    assert_eq!(events[0]["prompt_token_ids"], prompt(&server));
    assert_eq!(events[1]["prompt_token_ids"], prompt(&server));
    assert!(events[2].get("prompt_token_ids").is_none());
    assert_eq!(all(&events, "token_ids").len(), 4);
    let events = complete(&server, &asked).events();
    let first = &events[0]["choices"][0];
    assert_eq!(
        (&first["text"], &first["prompt_token_ids"]),
        (&json!(""), &prompt(&server))
    );
    assert_eq!(all(&events, "token_ids").len(), 4);

    let plain = [chat(&server, &json!({})), complete(&server, &json!({}))];
    assert!(plain.iter().all(|reply| !reply.text.contains("token_ids")));
}

#[test]
fn every_chunk_has_the_counts_so_far_if_asked() {
    let server = Server::start(|_| ());
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    for ask in [chat as fn(&Server, &Value) -> Reply, complete] {
        let reply = ask(&server, &json!({"stream": true, "stream_options": options}));
        let events = reply.events();
        let count = |event: &Value, name: &str| event["usage"][name].as_u64().unwrap();
        let length = prompt(&server).as_array().unwrap().len() as u64;
        assert!(
            events
                .iter()
                .all(|event| count(event, "prompt_tokens") == length)
        );
        let made: Vec<u64> = events
            .iter()
            .map(|e| count(e, "completion_tokens"))
            .collect();
        assert!(
            made.is_sorted() && made.contains(&1) && made.last() == Some(&3),
            "{made:?}"
        );
    }
    let alone = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    let refused = chat(&server, &alone);
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.json()["error"]["param"],
        "stream_options.continuous_usage_stats"
    );
    let without = json!({"stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(chat(&server, &without).events()[0]["usage"], Value::Null);
}

#[test]
fn a_conversation_is_scored_as_a_text_is() {
    let server = Server::start(|_| ());
    let answer = chat(&server, &json!({"prompt_logprobs": 1})).json();
    let scored = answer["prompt_logprobs"].as_array().unwrap();
    let ids = prompt(&server);
    assert_eq!(scored.len(), ids.as_array().unwrap().len());
    assert_eq!(
        (&scored[0], &scored[1][ids[1].to_string()]["rank"]),
        (&Value::Null, &json!(1))
    );
    let streamed = chat(&server, &json!({"prompt_logprobs": 1, "stream": true}));
    assert_eq!(streamed.json()["error"]["param"], "prompt_logprobs");
    let top = |reply: Reply| reply.json()["choices"][0]["logprobs"].clone();
    assert!(top(complete(&server, &json!({"logprobs": 20})))["tokens"].is_array());
    assert_eq!(complete(&server, &json!({"logprobs": 21})).status, 400);
}

#[test]
fn what_ended_a_text_is_named() {
    let server = Server::start(|_| ());
    for ask in [chat as fn(&Server, &Value) -> Reply, complete] {
        server.script([
            Script::Say(&["a"]),
            Script::Cut(&["a"]),
            Script::Say(&["a"]),
        ]);
        let stopped = ask(&server, &json!({"stop": ["END"]})).json();
        assert_eq!(stopped["choices"][0]["stop_reason"], "END");
        let cut = ask(&server, &json!({"stop": ["END"]})).json();
        assert!(cut["choices"][0].get("stop_reason").is_none(), "{cut}");
        let events = ask(&server, &json!({"stop": "END", "stream": true})).events();
        let last = events.last().unwrap();
        assert_eq!(last["choices"][0]["stop_reason"], "END", "{last}");
    }
}

#[test]
fn the_tokenizer_is_shown_if_the_operator_allows_it() {
    let closed = get(&Server::start(|_| ()), "/tokenizer_info");
    assert_eq!(closed.status, 404);
    assert!(
        closed.text.contains("server.tokenizer_info"),
        "{}",
        closed.text
    );
    let server = Server::start(|state| state.tokenizer_info = true);
    let shown = get(&server, "/tokenizer_info").json();
    assert!(
        shown["chat_template"]
            .as_str()
            .unwrap()
            .contains("messages")
    );
    assert_eq!(shown["eos_token"], "<|im_end|>");
    assert_eq!(shown["model_max_length"], 2048);
    let added = shown["added_tokens_decoder"].as_object().unwrap();
    assert!(
        added
            .values()
            .any(|token| token["content"] == "<|im_start|>")
    );
}
