//! Against ids that `tests/golden/make_tokenizers.py` had the reference implementations make.

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use serde_json::Value as Json;

use super::*;

/// The directory of the golden files, or the one that REALIGN_GOLDEN_TOKENIZERS names: the script
/// can make far more cases than the repository should hold.
fn read(name: &str) -> Json {
    let committed = crate::test_support::root().join("tests/golden");
    let dir = std::env::var_os("REALIGN_GOLDEN_TOKENIZERS").map_or(committed, PathBuf::from);
    let bytes = std::fs::read(dir.join(name)).expect("a golden file");
    serde_json::from_slice(&bytes).expect("golden JSON")
}

fn check(name: &str, tokenizer: &Tokenizer, parse_special: bool) {
    let golden = read("tokenizers.json");
    let texts = golden["texts"].as_array().expect("texts");
    let ids = golden["ids"][name].as_array().expect("ids");
    assert_eq!(texts.len(), ids.len());
    for (text, expect) in texts.iter().zip(ids) {
        let text = text.as_str().expect("a text");
        let expect: Vec<u32> = serde_json::from_value(expect.clone()).expect("ids");
        let got = tokenizer.encode(text, parse_special).expect("encode");
        assert_eq!(got, expect, "{name}: {text:?}");
    }
}

#[test]
fn the_default_model_encodes_as_the_reference() {
    check("smollm", &tokenizer(), false);
    check("smollm_special", &tokenizer(), true);
}

#[test]
fn every_pre_tokenizer_splits_as_the_reference() {
    for pre in ["gpt-2", "qwen2", "llama-bpe"] {
        let mut content = test_model();
        let name = Value::String(pre.into());
        content.metadata.insert("tokenizer.ggml.pre".into(), name);
        check(pre, &Tokenizer::from_gguf(&content).expect(pre), false);
    }
}

/// A GGUF header with one of the trained vocabularies.
fn tiny(variant: &str) -> Content {
    let vocabulary = &read("tiny_sentencepiece.json")[variant];
    let array = |key: &str, entry: fn(&Json) -> Value| {
        let entries = vocabulary[key].as_array().expect(key).iter();
        Value::Array(entries.map(entry).collect())
    };
    let prefix = vocabulary["add_space_prefix"].as_bool().expect("a flag");
    let metadata = [
        ("model", Value::String("llama".into())),
        (
            "tokens",
            array("tokens", |t| {
                Value::String(t.as_str().expect("text").into())
            }),
        ),
        (
            "scores",
            array("scores", |s| Value::F32(s.as_f64().expect("score") as f32)),
        ),
        (
            "token_type",
            array("types", |t| Value::I32(t.as_i64().expect("type") as i32)),
        ),
        ("add_space_prefix", Value::Bool(prefix)),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
    ];
    Content {
        magic: VersionedMagic::GgufV3,
        metadata: metadata
            .into_iter()
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
            .collect(),
        tensor_infos: Default::default(),
        tensor_data_offset: 0,
    }
}

#[test]
fn sentencepiece_vocabularies_encode_as_the_reference() {
    for variant in ["plain", "space_prefix", "unused", "no_bytes", "tied"] {
        let tokenizer = Tokenizer::from_gguf(&tiny(variant)).expect(variant);
        check(&format!("tiny_{variant}"), &tokenizer, false);
    }
}

#[test]
fn sentencepiece_texts_read_back() {
    let texts = read("tokenizers.json")["texts"].clone();
    let texts: Vec<String> = serde_json::from_value(texts).expect("texts");
    let plain = Tokenizer::from_gguf(&tiny("plain")).expect("plain");
    let prefixed = Tokenizer::from_gguf(&tiny("space_prefix")).expect("prefixed");
    for text in texts {
        // The mark and the space are one character to SentencePiece.
        let expect = text.replace('▁', " ");
        let ids = plain.encode(&text, false).expect("encode");
        assert_eq!(plain.decode(&ids).expect("decode"), expect);
        let ids = prefixed.encode(&text, false).expect("encode");
        let prefix = if text.is_empty() { "" } else { " " };
        assert_eq!(
            prefixed.decode(&ids).expect("decode"),
            format!("{prefix}{expect}")
        );
    }
}

#[test]
fn sentencepiece_prompts_begin_once_and_control_tokens_stay_apart() {
    let tokenizer = Tokenizer::from_gguf(&tiny("space_prefix")).expect("tokenizer");
    assert_eq!(tokenizer.end_of_generation_ids(), [2]);
    let text = tokenizer.encode("the boat", false).expect("encode");
    let prompt = tokenizer.encode_prompt("the boat").expect("encode");
    assert_eq!(prompt, [&[1], &text[..]].concat());
    // A template writes begin-of-text itself: it is parsed, and nothing is added.
    let parsed = tokenizer.encode("<s>the boat<turn>the boat", true);
    let expect = [&[1], &text[..], &[3], &text[..]].concat();
    assert_eq!(parsed.expect("encode"), expect);
    let typed = tokenizer.encode_prompt("<s>the boat").expect("encode");
    assert_eq!(typed.iter().filter(|id| **id == 1).count(), 1);
}

#[test]
fn a_wrong_vocabulary_is_refused_by_key() {
    let cases: [(&str, Option<Value>, &str); 7] = [
        (
            "model",
            Some(Value::String("t5".into())),
            "`t5`; supported: gpt2",
        ),
        ("model", None, "missing"),
        ("tokens", None, "missing"),
        ("scores", None, "missing"),
        ("scores", Some(Value::Array(vec![])), "0 entries for 480"),
        (
            "token_type",
            Some(Value::Array(vec![])),
            "0 entries for 480",
        ),
        ("bos_token_id", Some(Value::U32(480)), "not an id below 480"),
    ];
    for (key, value, expect) in cases {
        let mut content = tiny("plain");
        let key = format!("tokenizer.ggml.{key}");
        content.metadata.remove(&key);
        content
            .metadata
            .extend(value.map(|value| (key.clone(), value)));
        let error = Tokenizer::from_gguf(&content).expect_err(&key).to_string();
        assert!(error.contains(&key) && error.contains(expect), "{error}");
    }
}

/// The second real model, where `make model-gemma` fetched it.
fn gemma() -> Option<Content> {
    let path = "models/gemma-3-270m.Q4_K_M.gguf";
    let path = crate::test_support::root().join(path);
    let mut file = std::fs::File::open(path).ok()?;
    Some(Content::read(&mut file).expect("the model is GGUF"))
}

#[test]
fn gemma_encodes_as_the_reference() {
    let Some(content) = gemma() else {
        eprintln!("skipped: `make model-gemma` fetches the model");
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&content).expect("tokenizer");
    check("gemma", &tokenizer, false);
    let prompt = tokenizer.encode_prompt("The capital of France is");
    assert_eq!(prompt.expect("encode"), [2, 818, 5279, 529, 7001, 563]);
    assert_eq!(tokenizer.end_of_generation_ids(), [1, 106]);
    assert_eq!(tokenizer.vocab_size(), 262_144);
    let turn = tokenizer.encode("<bos><start_of_turn>user\nhi<end_of_turn>\n", true);
    assert_eq!(turn.expect("encode"), [2, 105, 2364, 107, 2202, 106, 107]);
}
