//! Requests that share a KV cache, or compete for it, on a real (if random) model.

use serde_json::{Value, json};

use super::engine;
use super::server::{Answer, Server};
use super::serving::with_two_generations;
use super::workspace::Workspace;

fn with_engine(settings: &str) -> Workspace {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml");
    let engine = format!("[engine]\n{settings}");
    workspace.write(
        "realign.toml",
        &config.replace("[engine]\nkv_cache_mb = 64", &engine),
    );
    workspace
}

fn cached(answer: &Answer) -> u64 {
    let details = &answer.body["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap()
}

fn ask(server: &Server<'_>, fields: &Value) -> Answer {
    let mut body = json!({ "model": "tiny" });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    server.post("/v1/completions", &body)
}

#[test]
fn a_prompt_is_found_again_by_its_own_generation_only() {
    if engine::lacks("prompts are not found again: its prefix cache is off") {
        return;
    }
    let workspace = Workspace::tiny(4);
    let (server, base, trained) = with_two_generations(&workspace);
    let (base, trained) = (format!("tiny@{base}"), format!("tiny@{trained}"));
    let prompt = "the same long question, asked again and again. ".repeat(8);
    let first = [&base, &trained].map(|model| server.chat(model, &prompt, 40));
    assert_eq!(first.each_ref().map(cached), [0, 0]);
    assert_ne!(
        first[0].text(),
        first[1].text(),
        "the two generations answer alike: this test shows nothing"
    );
    let hits = server.metric("realign_prefix_cache_hits_total", "");
    for (model, before) in [&base, &trained].into_iter().zip(&first) {
        let again = server.chat(model, &prompt, 40);
        assert_eq!(again.text(), before.text());
        let tokens = again.body["usage"]["prompt_tokens"].as_u64().unwrap();
        assert!(tokens - cached(&again) <= 16, "{}", again.body["usage"]);
    }
    let more = server.metric("realign_prefix_cache_hits_total", "") - hits;
    assert!(more > 600.0, "{more} tokens");
    assert_eq!(server.metric("realign_kv_cache_usage_ratio", ""), 0.0);
}

#[test]
fn sequences_that_outgrow_the_cache_answer_as_if_they_ran_alone() {
    if engine::lacks("it has no bounded cache of keys and values, so nothing is preempted") {
        return;
    }
    // The cache holds 4,096 tokens; the eight sequences together reach more than 5,000.
    let workspace = with_engine("kv_cache_mb = 1");
    let server = Server::start(&workspace);
    let body = |i: usize| {
        let top_p = [1.0, 0.9][i % 2];
        json!({
            "prompt": format!("{i} and so on. ").repeat(6), "max_tokens": 560, "seed": i,
            "temperature": 0.8, "top_p": top_p, "ignore_eos": true,
        })
    };
    let text = |answer: Answer| {
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["choices"][0]["text"]
            .as_str()
            .unwrap()
            .to_string()
    };
    let together: Vec<String> = std::thread::scope(|scope| {
        let server = &server;
        let start = |i| scope.spawn(move || text(ask(server, &body(i))));
        let threads: Vec<_> = (0..8).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let preemptions = server.metric("realign_preemptions_total", "");
    assert!(preemptions > 0.0, "nothing was preempted");
    for (i, together) in together.iter().enumerate() {
        assert_eq!(*together, text(ask(&server, &body(i))), "sequence {i}");
    }
}

#[test]
fn the_context_length_is_kept_and_filled() {
    let workspace = with_engine("max_model_len = 200\nkv_cache_mb = 1");
    let server = Server::start(&workspace);
    // A random model may end its turn at any token.
    let fields = json!({
        "messages": [{ "role": "user", "content": "hello" }], "model": "tiny", "ignore_eos": true,
    });
    let whole = server.post("/v1/chat/completions", &fields);
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert_eq!(whole.body["choices"][0]["finish_reason"], "length");
    assert_eq!(whole.body["usage"]["total_tokens"], 200);
    for (prompt, max_tokens) in [(250, 1), (200, 1)] {
        let refused = ask(
            &server,
            &json!({ "prompt": "x".repeat(prompt), "max_tokens": max_tokens }),
        );
        assert_eq!(refused.status, 400, "{}", refused.body);
        let error = &refused.body["error"];
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        assert_eq!(error["param"], "prompt", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("200 tokens"), "{message}");
    }
    // More than fits is lowered to what does.
    for max_tokens in [10, 11] {
        let fits = ask(
            &server,
            &json!({ "prompt": "x".repeat(190), "max_tokens": max_tokens }),
        );
        assert_eq!(fits.status, 200, "{}", fits.body);
        let written = &fits.body["usage"]["completion_tokens"];
        assert!(written.as_u64() <= Some(10), "{written}");
    }
}
