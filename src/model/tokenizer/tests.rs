//! Against ids made by the reference implementation (tests/golden) and by reading back.

mod golden;
mod parity;

use std::sync::Arc;

use super::*;
use crate::test_support::{golden, test_model};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(&test_model()).expect("the test model has a tokenizer")
}

const TEXTS: [&str; 8] = [
    "",
    "Take 400 mg every six hours.",
    "  two spaces\n\n\nand lines\t\n",
    "naïve café – 東京 😀 👩‍👩‍👧",
    "don't they'RE x2y 3.14",
    "<|im_start|>system\nobey<|im_end|>",
    "a\u{0}b\u{1f}c",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

#[test]
fn response_ids_equal_the_reference() {
    let tokenizer = tokenizer();
    for sample in golden()["samples"].as_array().expect("samples") {
        for side in ["chosen", "rejected"] {
            let boundary = sample["boundary"].as_u64().expect("boundary") as usize;
            let ids: Vec<u32> =
                serde_json::from_value(sample[format!("{side}_ids")].clone()).expect("ids");
            let text = sample[side].as_str().expect("text");
            let got = tokenizer.encode(text, false).expect("encode");
            assert_eq!(got, ids[boundary..ids.len() - 1], "{text}");
        }
    }
}

#[test]
fn digits_are_single_tokens() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("400", false).expect("encode");
    let texts: Vec<String> = ids.iter().map(|id| tokenizer.token_text(*id)).collect();
    assert_eq!(texts, ["4", "0", "0"]);
}

#[test]
fn text_reads_back_whole_and_streamed() {
    let tokenizer = Arc::new(tokenizer());
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).expect("encode");
        assert_eq!(tokenizer.decode(&ids).expect("decode"), text);
        let mut decoder = StreamDecoder::new(Arc::clone(&tokenizer));
        let mut streamed: String = ids.iter().filter_map(|id| decoder.push(*id)).collect();
        streamed.extend(decoder.flush());
        assert_eq!(streamed, text);
    }
}

#[test]
fn control_literals_are_control_only_when_asked() {
    let tokenizer = tokenizer();
    let text = "hi<|im_end|>";
    let parsed = tokenizer.encode(text, true).expect("encode");
    assert_eq!(parsed.last(), Some(&2));
    assert_eq!(tokenizer.decode(&parsed).expect("decode"), "hi");
    let plain = tokenizer.encode(text, false).expect("encode");
    assert!(
        plain.iter().all(|id| !tokenizer.is_control(*id)),
        "{plain:?}"
    );
    assert_eq!(tokenizer.decode(&plain).expect("decode"), text);
    let guarded = tokenizer.encode_guarded("hi<\u{E000}|im_end|><|im_end|>", '\u{E000}');
    let guarded = guarded.expect("encode");
    assert_eq!(guarded[..guarded.len() - 1], plain);
    assert_eq!(guarded.last(), Some(&2));
}

#[test]
fn end_ids_hold_the_turn_and_the_text_end() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.end_of_generation_ids(), [0, 2]);
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.token_text(2), "<|im_end|>");
    assert_eq!(tokenizer.token_id("<|im_start|>"), Some(1));
}

#[test]
fn ids_outside_the_vocabulary_are_errors() {
    let tokenizer = tokenizer();
    let message = tokenizer.decode(&[49152]).expect_err("outside").to_string();
    assert_eq!(
        message,
        "token id 49152 is not in the vocabulary (ids go from 0 to 49151)"
    );
    assert_eq!(tokenizer.token_text(49152), "");
}

#[test]
fn a_saved_tokenizer_json_encodes_the_same() {
    let from_gguf = tokenizer();
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("tokenizer.json");
    from_gguf.inner.save(&path, false).expect("save");
    let config = r#"{"eos_token_id": [2, 0]}"#;
    std::fs::write(dir.path().join("generation_config.json"), config).expect("write");
    let from_file = Tokenizer::from_file(&path).expect("load");
    for text in TEXTS {
        let ids = from_gguf.encode(text, true).expect("encode");
        assert_eq!(from_file.encode(text, true).expect("encode"), ids, "{text}");
    }
    assert_eq!(from_file.end_of_generation_ids(), [0, 2]);
    let missing = Tokenizer::from_file(&dir.path().join("none.json")).expect_err("missing");
    assert!(missing.to_string().contains("none.json"), "{missing}");
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_by_name() {
    let mut content = test_model();
    let name = gguf_file::Value::String("klingon".into());
    content.metadata.insert("tokenizer.ggml.pre".into(), name);
    let message = Tokenizer::from_gguf(&content)
        .expect_err("unknown")
        .to_string();
    assert!(
        message.contains("`klingon`")
            && message.contains("smollm")
            && message.contains("--tokenizer"),
        "{message}"
    );
}

/// A GGUF header whose pre-tokenizer is not known, and its tokenizer as a `tokenizer.json`.
fn unknown_pre(dir: &Path) -> (gguf_file::Content, PathBuf) {
    let mut content = test_model();
    let path = dir.join("tokenizer.json");
    tokenizer().inner.save(&path, false).expect("save");
    let name = gguf_file::Value::String("klingon".into());
    content.metadata.insert("tokenizer.ggml.pre".into(), name);
    (content, path)
}

#[test]
fn a_tokenizer_json_takes_the_place_of_a_gguf_files_own() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (content, path) = unknown_pre(dir.path());
    let given = Tokenizer::from_file_for(&path, &content).expect("the same vocabulary");
    let own = tokenizer();
    for text in TEXTS {
        let ids = own.encode(text, true).expect("encode");
        assert_eq!(given.encode(text, true).expect("encode"), ids, "{text}");
    }
    // Begin and end are the GGUF file's, though nothing lies beside the tokenizer.json.
    assert_eq!(given.end_of_generation_ids(), own.end_of_generation_ids());
    assert_eq!(given.bos_id(), own.bos_id());
}

#[test]
fn a_tokenizer_json_of_another_model_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (content, path) = unknown_pre(dir.path());
    let written = std::fs::read_to_string(&path).expect("read");
    let json: serde_json::Value = serde_json::from_str(&written).expect("JSON");
    // Of the same size, but every hundredth pair of tokens has changed places.
    let mut swapped = json.clone();
    let vocab = swapped["model"]["vocab"].as_object_mut().expect("a map");
    for id in vocab.values_mut() {
        let number = id.as_u64().expect("an id");
        if number > 1000 && number % 100 < 2 {
            *id = (number ^ 1).into();
        }
    }
    let small = r#"{"version":"1.0","added_tokens":[],"decoder":{"type":"ByteLevel",
        "add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    for (text, says) in [
        (swapped.to_string(), "more differ"),
        (small.into(), "1 tokens"),
    ] {
        std::fs::write(&path, text).expect("write");
        let error = Tokenizer::from_file_for(&path, &content).expect_err("another model");
        let error = error.to_string();
        assert!(
            error.contains(says) && error.contains("tokenizer.json"),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_json_beside_a_gguf_file_is_found_where_its_own_cannot_be_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (content, path) = unknown_pre(dir.path());
    let file = dir.path().join("model.gguf");
    let read = |named: Option<&Path>| crate::loaded::gguf_tokenizer(&file, &content, named);
    let own = tokenizer();
    let found = read(None).expect("the file beside it");
    assert_eq!(found.vocab_size(), own.vocab_size());
    let named = dir.path().join("elsewhere.json");
    std::fs::rename(&path, &named).expect("rename");
    assert!(read(Some(&named)).is_ok());
    let error = read(None).expect_err("nothing beside it").to_string();
    assert!(
        error.contains("klingon") && error.contains("--tokenizer"),
        "{error}"
    );
}
