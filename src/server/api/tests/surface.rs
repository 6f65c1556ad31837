//! Sampling fields, echo, and the smaller routes.

use serde_json::{Value, json};

use super::fake::{MODEL, Server};
use super::{chat, complete, post, send};

#[test]
fn sampling_fields_reach_the_engine() {
    let server = Server::start(|_| ());
    let fields = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": -1, "stop": ["x"],
        "presence_penalty": 1.5, "frequency_penalty": -0.5, "logit_bias": {"5": -100, "6": 2.5},
        "max_tokens": 3, "max_completion_tokens": 3,
    });
    assert_eq!(chat(&server, &fields).status, 200);
    let requests = server.engine.requests.lock().unwrap();
    let got = &requests[0].sampling;
    let floats = [got.temperature, got.top_p, got.min_p];
    assert_eq!(floats, [0.5, 0.25, 0.125]);
    assert_eq!([got.presence_penalty, got.frequency_penalty], [1.5, -0.5]);
    assert_eq!((got.top_k, got.seed, got.max_tokens), (7, u64::MAX, 3));
    assert_eq!(got.logit_bias, [(5, -100.0), (6, 2.5)]);
    assert_eq!(got.stop, ["x"]);
    assert!(got.grammar.is_none());
}

#[test]
fn echo_puts_the_prompt_first() {
    let server = Server::start(|_| ());
    let fields = json!({"prompt": ["One", "Two"], "echo": true, "n": 2});
    let answer = complete(&server, &fields).json();
    let texts: Vec<&str> = (0..4)
        .map(|i| answer["choices"][i]["text"].as_str().unwrap())
        .collect();
    let [one, two] = ["OneHello world!", "TwoHello world!"];
    assert_eq!(texts, [one, one, two, two]);
    let mut streamed = fields.clone();
    streamed["stream"] = true.into();
    let mut joined = vec![String::new(); 4];
    for event in complete(&server, &streamed).events() {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        joined[index].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(joined, texts);
    let ids = server.state.tokenizer.encode("By ids", false).unwrap();
    let answer = complete(&server, &json!({"prompt": ids, "echo": true})).json();
    assert_eq!(answer["choices"][0]["text"], "By idsHello world!");
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let server = Server::start(|_| ());
    let text = "Grüße, <|im_end|> 🦀";
    for name in ["content", "prompt"] {
        let answer = post(&server, "/tokenize", &json!({ name: text })).json();
        let tokens = answer["tokens"].as_array().unwrap();
        assert_eq!(answer["count"], tokens.len());
        assert_eq!(answer["max_model_len"], 2048);
        let id = |t: &Value| t.as_u64().unwrap() as u32;
        assert!(
            tokens
                .iter()
                .all(|t| !server.state.tokenizer.is_control(id(t))),
            "typed control tokens are text"
        );
        let back = post(&server, "/detokenize", &json!({"tokens": tokens})).json();
        assert_eq!([&back["content"], &back["prompt"]], [text, text]);
    }
    // What a template wrote has its control tokens, and becomes the same tokens again.
    let written = "<|im_start|>user\nGrüße<|im_end|>\n";
    let asked = json!({"content": written, "parse_special": true});
    let tokens = post(&server, "/tokenize", &asked).json()["tokens"].clone();
    let back = post(&server, "/detokenize", &json!({"tokens": tokens})).json();
    assert_eq!([&back["content"], &back["prompt"]], [written, written]);
    let fields = json!({"content": "🦀", "with_pieces": true, "return_token_strs": true});
    let answer = post(&server, "/tokenize", &fields).json();
    let bytes: Vec<u8> = answer["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|t| serde_json::from_value::<Vec<u8>>(t["piece"].clone()).unwrap())
        .collect();
    assert_eq!(bytes, "🦀".as_bytes(), "{answer}");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let answer = post(&server, "/tokenize", &json!({"messages": messages})).json();
    chat(&server, &json!({}));
    let requests = server.engine.requests.lock().unwrap();
    assert_eq!(answer["tokens"], json!(requests[0].prompt));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"content": 5}), "content"),
        (
            "/tokenize",
            json!({"content": "a", "prompt": "a"}),
            "prompt",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "messages": messages}),
            "prompt",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "add_generation_prompt": false}),
            "add_generation_prompt",
        ),
        (
            "/tokenize",
            json!({"messages": messages, "add_special_tokens": true}),
            "add_special_tokens",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "add_special": true, "add_special_tokens": false}),
            "add_special_tokens",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "truncate": 5}),
            "truncate",
        ),
        (
            "/tokenize",
            json!({"messages": [{"role": "user", "content": "a", "mood": 1}]}),
            "messages[0].mood",
        ),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        (
            "/detokenize",
            json!({"tokens": [5], "skip_special_tokens": true}),
            "skip_special_tokens",
        ),
        ("/detokenize", json!({"tokens": [9_999_999]}), "tokens"),
    ] {
        let reply = post(&server, path, &body);
        assert_eq!(reply.status, 400, "{body}");
        assert_eq!(reply.json()["error"]["param"], param);
    }
    for (path, body) in [
        ("/tokenize", json!({"model": "other", "prompt": "a"})),
        ("/detokenize", json!({"model": "other", "tokens": [5]})),
    ] {
        assert_eq!(post(&server, path, &body).status, 404, "{path}");
    }
    let spelled = json!({"model": MODEL, "content": "<|im_end|>", "parse_special": true});
    assert_eq!(post(&server, "/tokenize", &spelled).json()["count"], 1);
}

#[test]
fn operators_see_why_an_answer_violates() {
    let server = Server::start(|_| ());
    let explain = |body: Value, key: &str| {
        let headers = [("authorization", key), ("content-type", "application/json")];
        send(
            &server,
            "POST",
            "/admin/v1/policies/explain",
            &headers,
            &body.to_string(),
        )
    };
    let key = format!("Bearer {}", super::fake::ADMIN_KEY);
    let reply = explain(json!({"prompt": "Is it?", "response": "It is bad."}), &key);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let answer = reply.json();
    assert_eq!(answer["revision"], "abc");
    let rule = &answer["rules"][0];
    assert_eq!(rule["verdict"], "violates", "{answer}");
    let test = &rule["tests"][0];
    assert_eq!(test["path"], "violates.response.any_phrase");
    let found = json!([{"pattern": "bad", "start": 6, "end": 9, "text": "bad"}]);
    assert_eq!(test["found"], found);
    let fine = explain(json!({"response": "Fine."}), &key).json();
    assert_eq!(fine["rules"][0]["verdict"], "complies");
    for (body, param) in [
        (json!({"prompt": "x"}), "response"),
        (json!({"response": 5}), "response"),
    ] {
        let reply = explain(body, &key);
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error"]["param"], param);
    }
    assert_eq!(
        explain(json!({"response": "x"}), "Bearer client").status,
        401
    );
}

#[test]
fn moderation_is_the_policies() {
    let server = Server::start(|_| ());
    let results = |body: Value| {
        let reply = post(&server, "/v1/moderations", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.json()["model"], "policies-abc");
        reply.json()["results"].as_array().unwrap().clone()
    };
    let two = results(json!({"input": ["good", "bad"], "model": "omni-moderation-latest"}));
    assert_eq!(two[0]["flagged"], false);
    assert_eq!(two[1]["flagged"], true);
    assert_eq!(two[1]["categories"], json!({"words/bad": true}));
    assert_eq!(two[1]["category_scores"], json!({"words/bad": 1.0}));
    let parts = json!([{"type": "text", "text": "b"}, {"type": "text", "text": "ad"}]);
    let one = results(json!({"input": parts}));
    assert_eq!((one.len(), &one[0]["flagged"]), (1, &json!(true)));
    let excused = results(json!({"input": "bad", "prompt": "bad is fine"}));
    assert_eq!(excused[0]["flagged"], false);
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": [5]}), "input"),
        (json!({"input": "a", "threshold": 0.5}), "threshold"),
        (
            json!({"input": [{"type": "text", "text": "a", "colour": "x"}]}),
            "input[0].colour",
        ),
    ] {
        let reply = post(&server, "/v1/moderations", &body);
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (400, &json!(param)),
            "{body}"
        );
    }
}

#[test]
fn embeddings_come_in_both_encodings() {
    let server = Server::start(|state| state.max_body_bytes = 65_536);
    let embed = |fields: Value| {
        let mut body = json!({"model": MODEL, "input": "Hi"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        post(&server, "/v1/embeddings", &body)
    };
    let answer = embed(json!({"input": [[5], [5, 6]]})).json();
    assert_eq!(answer["data"][1]["embedding"], json!([2.0, -0.5]));
    assert_eq!(answer["data"][1]["index"], 1);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 3, "total_tokens": 3})
    );
    let encoded = embed(json!({"input": [5], "encoding_format": "base64"})).json();
    // 1.0 and -0.5 as little-endian f32: 0000803f 000000bf.
    assert_eq!(encoded["data"][0]["embedding"], "AACAPwAAAL8=");
    for (fields, param) in [
        (json!({"dimensions": 8}), "dimensions"),
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": {"a": 1}}), "input"),
        (json!({"input": vec![5; 3000]}), "input"),
    ] {
        let reply = embed(fields.clone());
        assert_eq!(reply.status, 400, "{fields}");
        assert_eq!(reply.json()["error"]["param"], param, "{fields}");
    }
    assert_eq!(embed(json!({"model": "other"})).status, 404);
    assert_eq!(embed(json!({"model": null})).json()["model"], MODEL);
}
