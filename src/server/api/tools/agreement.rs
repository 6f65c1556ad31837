//! Whether what grammars let through is what checks take: answers of a model that draws by chance.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::check::tests::oracle;
use super::check::{Verdict, check};
use super::schema::{enforceable, resolve};
use super::*;
use realign_engine::grammar::{GrammarState, Grammars};
use realign_model::Tokenizer;
use realign_model::test_support::test_model;

/// Tokens of an answer; one that is longer is cut.
const MOST_TOKENS: usize = 300;

/// A text that the grammar lets through; `None` if it does not end.
pub(super) fn drawn(
    tokenizer: &Tokenizer,
    grammars: &Grammars,
    lark: &str,
    rng: &mut StdRng,
) -> Option<String> {
    let constraint = grammars
        .compile(lark)
        .unwrap_or_else(|e| panic!("{e}: {lark}"));
    let mut state = GrammarState::new(&constraint);
    let logits = vec![0.0; tokenizer.vocab_size()];
    let (mut masked, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..MOST_TOKENS {
        state.mask(&logits, &mut masked).unwrap();
        let allowed: Vec<u32> = (0..masked.len() as u32)
            .filter(|id| masked[*id as usize].is_finite())
            .collect();
        // Short tokens, and those that close something, so that answers end.
        let closes = |id: &&u32| {
            let token = tokenizer.token_bytes(**id);
            token.len() < 4
                && token
                    .iter()
                    .all(|byte| b"\"}]{[,: 0123456789".contains(byte))
        };
        let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
        let from = match !closing.is_empty() && rng.random_bool(0.6) {
            true => &closing,
            false => &allowed,
        };
        let ends = allowed
            .iter()
            .find(|id| tokenizer.end_of_generation_ids().contains(id));
        let id = match ends.filter(|_| rng.random_bool(0.5)) {
            Some(end) => *end,
            None => from[rng.random_range(0..from.len())],
        };
        if tokenizer.end_of_generation_ids().contains(&id) {
            return String::from_utf8(bytes).ok();
        }
        bytes.extend_from_slice(tokenizer.token_bytes(id));
        if state.accept(id).unwrap() {
            return String::from_utf8(bytes).ok();
        }
    }
    None
}

#[test]
fn drawn_answers_are_valid_or_there_is_a_notice() {
    let kind = || json!({"enum": ["a", "b"]});
    let object = |more: Value| {
        let mut schema = json!({"type": "object", "additionalProperties": false, "properties": {
            "k": kind(), "n": {"type": "integer", "minimum": 0, "maximum": 9}, "f": {"type": "boolean"},
        }});
        schema
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        schema
    };
    // Whether all of it is enforced.
    let schemas = [
        (
            object(
                json!({"if": {"properties": {"k": {"const": "a"}}, "required": ["k"]}, "then": {"required": ["n"]}, "else": {"required": ["f"]}}),
            ),
            true,
        ),
        (
            object(
                json!({"if": {"properties": {"f": {"const": true}}}, "then": {"required": ["n"]}}),
            ),
            true,
        ),
        (
            object(
                json!({"allOf": [{"if": {"properties": {"k": {"enum": ["b"]}}}, "else": {"properties": {"n": {"minimum": 5}}, "required": ["n"]}}]}),
            ),
            true,
        ),
        (
            object(json!({"dependentRequired": {"k": ["n"], "n": ["f"]}})),
            true,
        ),
        (
            object(
                json!({"dependentSchemas": {"k": {"properties": {"n": {"const": 3}}, "required": ["n"]}}}),
            ),
            true,
        ),
        (object(json!({"not": {"required": ["k"]}})), true),
        (
            object(
                json!({"oneOf": [{"required": ["k"]}, {"required": ["n"]}, {"required": ["f"]}]}),
            ),
            true,
        ),
        (object(json!({"propertyNames": {"maxLength": 1}})), false),
        (
            json!({"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "boolean"}, "maxProperties": 2}),
            true,
        ),
        (
            json!({"enum": ["a", "b", "c"], "not": {"enum": ["b", "c"]}}),
            true,
        ),
        (json!({"type": "boolean", "not": {"const": true}}), true),
        (
            json!({"$defs": {"base": {"properties": {"n": {"type": "null"}}, "required": ["n"]}}, "type": "object", "$ref": "#/$defs/base", "properties": {"f": {"type": "boolean"}}, "unevaluatedProperties": false}),
            true,
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"n": {"type": "null"}}, "required": ["n"]}, {"required": ["f"]}], "properties": {"f": {"type": "boolean"}}, "unevaluatedProperties": false}),
            false,
        ),
        (
            json!({"type": "array", "allOf": [{"prefixItems": [{"type": "null"}]}], "unevaluatedItems": {"type": "boolean"}, "maxItems": 3}),
            true,
        ),
        (
            json!({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": true, "maxItems": 3}),
            false,
        ),
        (
            json!({"type": "array", "items": {"enum": [1, 2, 3]}, "contains": {"const": 3}, "maxItems": 3}),
            false,
        ),
        (
            json!({"type": "number", "multipleOf": 0.25, "minimum": -2, "exclusiveMaximum": 3}),
            true,
        ),
        (
            json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 5}, {"type": "integer", "minimum": 3, "maximum": 9}]}),
            false,
        ),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y"}}, "required": ["a"], "additionalProperties": false, "$defs": {"x/y": {"type": "array", "maxItems": 2, "items": {"$ref": "#end"}}, "z": {"$anchor": "end", "const": "z"}}}),
            true,
        ),
        (
            json!({"$id": "http://x.example/tree", "$dynamicAnchor": "node", "type": "object", "properties": {"c": {"type": "array", "maxItems": 1, "items": {"$dynamicRef": "#node"}}}, "additionalProperties": false}),
            true,
        ),
        (json!({"type": "string", "pattern": "^(?!b)[ab]$"}), false),
    ];
    let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
    let grammars = Grammars::new(tokenizer.clone());
    let mut rng = StdRng::seed_from_u64(1);
    let mut invalid = 0;
    for (schema, enforced) in &schemas {
        let resolved = resolve(schema).unwrap();
        let effort = [Effort::Most, Effort::AnyOf].into_iter().find(|effort| {
            let lark = schema_alone(&resolved, *effort, Bounds::default());
            grammars.compile(&lark).is_ok()
        });
        let effort = effort.unwrap_or_else(|| panic!("{schema}"));
        let (_, notices) = enforceable(&resolved, effort, Bounds::default());
        assert_eq!(notices.is_empty(), *enforced, "{schema}: {notices:?}");
        let lark = schema_alone(&resolved, effort, Bounds::default());
        let answers = (0..12).filter_map(|_| drawn(&tokenizer, &grammars, &lark, &mut rng));
        let answers: Vec<String> = answers.collect();
        assert!(answers.len() > 6, "{schema}: {answers:?}");
        for answer in answers {
            let found = check(&resolved, &answer);
            invalid += usize::from(matches!(found, Verdict::Invalid { .. }));
            assert!(
                found == Verdict::Valid || !enforced,
                "{schema}: {answer}: {found:?}"
            );
            let value = serde_json::from_str(&answer).unwrap();
            if let Some(expected) = oracle(schema, &value) {
                assert_eq!(
                    found == Verdict::Valid,
                    expected,
                    "{schema}: {answer}: {found:?}"
                );
            }
        }
    }
    assert!(invalid > 5, "the check finds nothing");
}
