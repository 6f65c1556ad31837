//! What can be generated under grammars, and how long they take.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use realign_model::test_support::test_model;

fn grammars() -> (Arc<Tokenizer>, Grammars) {
    let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
    (tokenizer.clone(), Grammars::new(tokenizer))
}

fn schema(value: &Value) -> String {
    format!("start: %json {value}")
}

/// Whether the text can be generated, and whether it can end there.
pub(super) fn takes(
    (tokenizer, grammars): &(Arc<Tokenizer>, Grammars),
    lark: &str,
    text: &str,
) -> (bool, bool) {
    let mut state = GrammarState::new(&grammars.compile(lark).unwrap());
    let logits = vec![0.0; tokenizer.vocab_size()];
    let mut masked = Vec::new();
    for id in tokenizer.encode(text, false).unwrap() {
        if state.mask(&logits, &mut masked).is_err() || masked[id as usize].is_infinite() {
            return (false, false);
        }
        state.accept(id).unwrap();
    }
    let end = tokenizer.end_of_generation_ids()[0] as usize;
    let ends = state.matcher.is_stopped()
        || state.mask(&logits, &mut masked).is_ok() && masked[end].is_finite();
    (true, ends)
}

#[test]
fn only_what_the_schema_allows_can_be_generated() {
    let all = grammars();
    let lark = schema(&json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": false,
    }));
    let cases = [
        (r#"{"name":"Ann","age":7}"#, (true, true)),
        (r#"{"name":"Ann","#, (true, false)),
        (r#"{"name":7"#, (false, false)),
        (r#"{"age":7"#, (false, false)),
        ("Sure", (false, false)),
    ];
    for (text, expected) in cases {
        assert_eq!(takes(&all, &lark, text), expected, "{text}");
    }
}

#[test]
fn control_tokens_only_end_the_text() {
    let (tokenizer, grammars) = grammars();
    let mut state = GrammarState::new(&grammars.compile("start: /(.|\\n)*/").unwrap());
    let logits = vec![0.0; tokenizer.vocab_size()];
    let mut masked = Vec::new();
    state.mask(&logits, &mut masked).unwrap();
    for (id, literal) in tokenizer.control_tokens() {
        let ends = tokenizer.end_of_generation_ids().contains(&id);
        assert_eq!(masked[id as usize].is_finite(), ends, "{literal}");
    }
}

#[test]
fn hostile_schemas_are_refused_or_harmless_and_always_quick() {
    let (tokenizer, grammars) = grammars();
    grammars.compile(&schema(&json!({}))).unwrap();
    let logits = vec![0.0; tokenizer.vocab_size()];
    let mut nested = json!({"type": "string"});
    for _ in 0..40 {
        nested = json!({"anyOf": [nested.clone(), {"type": "array", "items": nested}]});
        if nested.to_string().len() > 60_000 {
            break;
        }
    }
    let fields: serde_json::Map<String, Value> = (0..2000)
        .map(|i| {
            (
                format!("field{i}"),
                json!({"type": "string", "pattern": "^(a|b)*c$"}),
            )
        })
        .collect();
    let all_of: Vec<Value> = (0..60)
        .map(|i| json!({"anyOf": [{"minimum": i}, {"maximum": i}]}))
        .collect();
    let hostile = [
        nested,
        json!({"type": "object", "properties": fields}),
        json!({"allOf": all_of, "type": "number"}),
        json!({"type": "string", "pattern": "^((a{1,200}){1,200}){1,200}$"}),
        json!({"type": "string", "pattern": "(x+x+)+y"}),
        json!({"type": "string", "pattern": "^(.*a.{500}|.*b.{500})$"}),
        json!({"type": "string", "minLength": 1_000_000_000_u64}),
        json!({"type": "array", "minItems": 100_000_000, "items": {"type": "integer"}}),
        json!({"type": "array", "maxItems": 100_000_000, "items": {"type": "integer"}}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        json!({"$ref": "http://example.com/schema.json"}),
        json!({"enum": (0..8000).collect::<Vec<_>>()}),
        json!({"type": "integer", "multipleOf": 999_999_937, "minimum": 3}),
        json!({"type": "strin"}),
        json!({"not": {}}),
    ];
    let chain = |name: &str| {
        let link = |i: usize| format!("{name}{i}: {name}{}\n", i + 1);
        let links: String = (0..1900).map(link).collect();
        format!("start: {name}0\n{links}{name}1900: \"a\"\n")
    };
    let groups = format!("start: {}\"a\"{}\n", "(".repeat(2000), ")".repeat(2000));
    let grammars_sent = [chain("r"), chain("T"), groups];
    for schema in hostile.iter().map(schema).chain(grammars_sent) {
        let shown: String = schema.chars().take(90).collect();
        let started = Instant::now();
        let compiled = grammars.compile(&schema);
        let took = started.elapsed();
        println!("{took:?} {} {shown}", compiled.is_ok());
        assert!(
            took < Duration::from_secs(3),
            "compiling took {took:?}: {shown}"
        );
        let Ok(constraint) = compiled else { continue };
        let mut state = GrammarState::new(&constraint);
        let mut masked = Vec::new();
        for _ in 0..20 {
            let started = Instant::now();
            if state.mask(&logits, &mut masked).is_err() {
                break;
            }
            let took = started.elapsed();
            assert!(
                took < Duration::from_millis(700),
                "a step took {took:?}: {shown}"
            );
            let next = masked.iter().position(|l| l.is_finite()).unwrap();
            if !matches!(state.accept(next as u32), Ok(false)) {
                break;
            }
        }
    }
}

#[test]
fn a_number_in_json_ends_after_tens_of_digits_if_it_can() {
    let (tokenizer, grammars) = grammars();
    let logits = vec![0.0; tokenizer.vocab_size()];
    let digits = |value: &Value, mark: &'static str| {
        let constraint = grammars.compile(&schema(value)).unwrap();
        let mut state = GrammarState::new(&constraint.ending_numbers(mark));
        let mut masked = Vec::new();
        for id in tokenizer.encode("0.", false).unwrap() {
            state.accept(id).unwrap();
        }
        let three = tokenizer.encode("3", false).unwrap()[0];
        let mut allowed = || {
            state.mask(&logits, &mut masked).unwrap();
            masked[three as usize].is_finite() && state.accept(three).is_ok()
        };
        (0..60).take_while(|_| allowed()).count()
    };
    let number = json!({"type": "number", "minimum": 0, "maximum": 5});
    assert_eq!(digits(&number, ""), 32);
    assert_eq!(digits(&number, "<tool_call>"), 60);
}
