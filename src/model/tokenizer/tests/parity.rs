//! Against `tokenizers` and llama.cpp on texts that are hard to split:
//! `tests/golden/make_tokenizer_parity.py`.

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokenizers::{OffsetReferential, PreTokenizedString};

use super::super::pre::{self, Pre};
use super::*;

fn golden_file(name: &str) -> Json {
    let path = crate::test_support::root().join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn parity() -> Json {
    golden_file("tokenizer_parity.json")
}

fn strings(value: &Json) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// As the script makes them.
fn hard_texts(pool: &[String], count: usize) -> Vec<String> {
    const RANGES: [(u32, u32); 12] = [
        (0x20, 0x7F),
        (0x9, 0xE),
        (0xA0, 0x250),
        (0x370, 0x530),
        (0x900, 0x980),
        (0xE00, 0xE80),
        (0x2000, 0x2070),
        (0x2580, 0x2590),
        (0x3000, 0x3100),
        (0x4E00, 0x9FA6),
        (0xAC00, 0xD7A4),
        (0x1F300, 0x1F650),
    ];
    let mut state = 20_261_129u64;
    let mut below = |limit: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let mut text = || {
        let mut text = String::new();
        for _ in 0..1 + below(4) {
            if below(8) == 0 {
                let (low, high) = RANGES[below(RANGES.len())];
                text.extend(char::from_u32(low + below((high - low) as usize) as u32));
            } else {
                let source = &pool[below(pool.len())];
                let start = below(source.chars().count().max(1));
                text.extend(source.chars().skip(start).take(1 + below(24)));
            }
        }
        text
    };
    (0..count).map(|_| text()).collect()
}

fn pool(golden: &Json) -> Vec<String> {
    let mut pool = strings(&golden_file("tokenizers.json")["texts"]);
    pool.extend(strings(&golden["shared"]));
    pool
}

fn hex_digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[test]
fn every_named_pre_tokenizer_splits_as_llama_cpp_and_the_models_own_files_say() {
    let golden = parity();
    let mut texts = pool(&golden);
    texts.extend(hard_texts(&texts, 300));
    let mut named = Vec::new();
    for group in golden["splits"].as_array().unwrap() {
        let expect = group["pieces"].as_str().unwrap();
        assert_eq!(expect.len(), 6 * texts.len());
        for name in strings(&group["names"]) {
            let steps = Pre::named(&name).expect("a name of llama.cpp").steps();
            let steps = steps.expect("the regexes compile");
            for (i, text) in texts.iter().enumerate() {
                let mut pieces = PreTokenizedString::from(text.as_str());
                steps.pre_tokenize(&mut pieces).unwrap();
                let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
                let pieces: Vec<&str> = pieces.iter().map(|(piece, ..)| *piece).collect();
                let digest = hex_digest(&pieces.join("\u{1f}"));
                assert_eq!(
                    digest[..6],
                    expect[6 * i..6 * i + 6],
                    "{name}, {text:?}: {pieces:?}"
                );
            }
            named.push(name);
        }
    }
    named.sort();
    let mut known: Vec<&str> = pre::names().collect();
    known.sort_unstable();
    assert_eq!(named, known);
}

/// A GGUF header with the part of a vocabulary that llama.cpp's test strings ask for.
fn header(vocabulary: &Json) -> Content {
    let texts = |key: &str| {
        let texts = strings(&vocabulary[key]).into_iter();
        Value::Array(texts.map(Value::String).collect())
    };
    let types = vocabulary["types"].as_array().unwrap().iter();
    let types = types.map(|t| Value::I32(t.as_i64().unwrap() as i32));
    let mut metadata = vec![
        ("tokens", texts("tokens")),
        ("merges", texts("merges")),
        ("token_type", Value::Array(types.collect())),
        (
            "model",
            Value::String(vocabulary["model"].as_str().unwrap().into()),
        ),
    ];
    let pre = vocabulary["pre"].as_str();
    metadata.extend(pre.map(|pre| ("pre", Value::String(pre.into()))));
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
fn llama_cpps_test_strings_have_its_token_ids() {
    let golden = parity();
    for (name, vocabulary) in golden["vocabularies"].as_object().unwrap() {
        let tokenizer = Tokenizer::from_gguf(&header(vocabulary)).expect(name);
        let ids: Vec<u32> = serde_json::from_value(vocabulary["ids"].clone()).unwrap();
        let texts = match vocabulary["texts"].as_str() {
            Some(_) => strings(&golden["shared"]),
            None => strings(&vocabulary["texts"]),
        };
        let expect = vocabulary["expect"].as_array().unwrap();
        assert_eq!(texts.len(), expect.len());
        for (text, expect) in texts.iter().zip(expect) {
            let expect: Vec<u32> = serde_json::from_value(expect.clone()).unwrap();
            let got = tokenizer.encode(text, false).expect("encode");
            let read = tokenizer.decode(&got).expect("decode");
            let got: Vec<u32> = got.iter().map(|id| ids[*id as usize]).collect();
            assert_eq!(got, expect, "{name}: {text:?}");
            assert_eq!(read, *text, "{name}");
        }
    }
}

#[test]
fn a_file_that_names_no_pre_tokenizer_has_the_default() {
    let golden = parity();
    let mut unnamed = header(&golden["vocabularies"]["gpt-2"]);
    let mut named = header(&golden["vocabularies"]["gpt-2"]);
    unnamed.metadata.remove(pre::KEY);
    let default = Value::String("default".into());
    named.metadata.insert(pre::KEY.into(), default);
    let unnamed = Tokenizer::from_gguf(&unnamed).unwrap();
    let named = Tokenizer::from_gguf(&named).unwrap();
    // Digits go by threes from the left, and signs apart from the space before them.
    let ids = unnamed.encode(" 33333 =", false).unwrap();
    assert_eq!(ids, named.encode(" 33333 =", false).unwrap());
    let pieces: Vec<String> = ids.iter().map(|id| unnamed.token_text(*id)).collect();
    assert_eq!(pieces.concat(), " 33333 =");
    assert_eq!(pieces.last().map(String::as_str), Some("="));
}

/// Real `tokenizer.json` files, which are too large for the repository.
#[test]
fn real_tokenizers_encode_and_decode_as_the_reference() {
    let Some(directory) = std::env::var_os("REALIGN_TOKENIZERS").map(PathBuf::from) else {
        eprintln!("skipped: REALIGN_TOKENIZERS names no directory (see make_tokenizer_parity.py)");
        return;
    };
    let golden = parity();
    let texts = hard_texts(&pool(&golden), 2000);
    for (family, expect) in golden["families"].as_object().unwrap() {
        let path = directory.join(family).join("tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_file(&path).expect(family));
        for row in expect["sample"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(row[1].clone()).unwrap();
            let got = tokenizer.encode(text, true).expect("encode");
            assert_eq!(got, ids, "{family}: {text:?}");
            let read = tokenizer.decode(&ids).expect("decode");
            assert_eq!(read, row[2].as_str().unwrap(), "{family}: {text:?}");
        }
        let (mut rows, mut decoded) = (String::new(), String::new());
        for text in &texts {
            let ids = tokenizer.encode(text, true).expect("encode");
            let listed: Vec<String> = ids.iter().map(u32::to_string).collect();
            rows += &format!("{}\n", listed.join(","));
            let read = tokenizer.decode(&ids).expect("decode");
            let mut stream = StreamDecoder::new(Arc::clone(&tokenizer));
            let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
            streamed.extend(stream.flush());
            assert_eq!(streamed, read, "{family}: {text:?}");
            decoded += &format!("{read}\0");
        }
        assert_eq!(hex_digest(&rows), expect["ids"], "{family}: ids");
        assert_eq!(hex_digest(&decoded), expect["decoded"], "{family}: texts");
    }
}

/// As Gemma 3's file has them: runs of spaces are added tokens that are not special.
#[test]
fn added_tokens_go_through_the_decoders_steps_whole_and_streamed() {
    let text = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
        {"id":4,"content":"▁▁","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":false},
        {"id":5,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},
        "pre_tokenizer":null,"post_processor":null,
        "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"}]},
        "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,
            "end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,
            "vocab":{"<unk>":0,"a":1,"▁":2,"<0x0A>":3},"merges":[]}}"#;
    let tokenizer = Arc::new(Tokenizer::from_json(text).unwrap());
    let ids = [1, 4, 1, 2, 4, 5, 3, 1];
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a  a   \na");
    let mut stream = StreamDecoder::new(Arc::clone(&tokenizer));
    let pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id)).collect();
    assert_eq!(pieces, ["a", "  ", "a", " ", "  ", "\n", "a"]);
    assert_eq!(tokenizer.token_text(4), "  ");
}
