//! Grammars that an answer must follow, compiled once per request and matched token by token.
//!
//! Compiling and every step are bounded in work, so a hostile schema costs an error and little
//! time. Masks are computed on bytes: the model may split the text into tokens differently from the
//! tokenizer.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use realign_model::Tokenizer;

/// Work and memory that one grammar may take. A schema of a few hundred fields takes a tenth.
const MAX_GRAMMAR_SYMBOLS: usize = 100_000;
/// About ten milliseconds of building.
const COMPILE_FUEL: u64 = 500_000;
/// About four milliseconds of one step: how long one sequence may delay the rest of its batch.
const STEP_FUEL: u64 = 50_000;
const STEP_ITEMS: usize = 20_000;
/// One to two kilobytes each.
const MAX_LEXER_STATES: usize = 20_000;
/// Longest reason that is passed on: the library's may quote the whole grammar.
const MAX_REASON_CHARS: usize = 300;

/// Why a grammar was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It cannot be compiled: wrong, unsatisfiable, or beyond the bounds.
    #[error("{0}")]
    Refused(String),
    /// The model's vocabulary cannot be constrained.
    #[error("grammars cannot be used with this model: {0}")]
    Vocabulary(String),
}

/// Compiles grammars for one tokenizer. What all of them share is built on first use.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A compiled grammar; clones share it. Each sequence has a [`GrammarState`] of its own.
#[derive(Clone)]
pub struct Constraint(Arc<Mutex<Matcher>>);

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Grammars {
    /// Grammars over this tokenizer's vocabulary.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            factory: OnceLock::new(),
        }
    }

    /// Compiles a grammar in llguidance's Lark dialect. Takes milliseconds, the first time several
    /// hundred: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`GrammarError`].
    pub fn compile(&self, lark: &str) -> Result<Constraint, GrammarError> {
        let factory = self
            .factory
            .get_or_init(|| factory(&self.tokenizer))
            .as_ref()
            .map_err(Clone::clone)?;
        let grammar = TopLevelGrammar::from_lark(lark.to_string());
        let refused = |reason: &str| GrammarError::Refused(short(reason));
        let parser = factory
            .create_parser(grammar)
            .map_err(|e| refused(&format!("{e:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first step shows what compiling does not, such as that no text satisfies the grammar.
        let mask = matcher.compute_mask_or_eos();
        let mask = mask.map_err(|e| refused(&format!("{e:#}")))?;
        if mask.is_zero() {
            return Err(refused("no text satisfies it"));
        }
        Ok(Constraint(Arc::new(Mutex::new(matcher))))
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, GrammarError> {
    let unusable = |why: &str| GrammarError::Vocabulary(why.into());
    let ends = tokenizer.end_of_generation_ids();
    let first = *ends
        .first()
        .ok_or_else(|| unusable("it has no end-of-turn token"))?;
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
        .map(|id| {
            if tokenizer.is_control(id) {
                // The marker that no text contains keeps control tokens out of every grammar.
                [
                    &[TokTrie::SPECIAL_TOKEN_MARKER],
                    tokenizer.token_text(id).as_bytes(),
                ]
                .concat()
            } else {
                tokenizer.token_bytes(id).to_vec()
            }
        })
        .collect();
    let info = TokRxInfo::new(words.len() as u32, first);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
    let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory =
        ParserFactory::new_simple(&env).map_err(|e| unusable(&short(&format!("{e:#}"))))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: STEP_FUEL,
        step_max_items: STEP_ITEMS,
        max_lexer_states: MAX_LEXER_STATES,
        max_grammar_size: MAX_GRAMMAR_SYMBOLS,
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// The first line, truncated: what follows is a backtrace or the grammar.
fn short(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    line.chars().take(MAX_REASON_CHARS).collect()
}

/// A sequence's position in a grammar.
pub struct GrammarState(Matcher);

impl GrammarState {
    /// The state before the first token.
    pub fn new(constraint: &Constraint) -> Self {
        let prototype = constraint.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self(prototype.deep_clone())
    }

    /// Copies the logits of the tokens that may come next; all others become minus infinity.
    ///
    /// # Errors
    /// If the grammar cannot be followed further within its bounds.
    pub fn mask(&mut self, logits: &[f32], into: &mut Vec<f32>) -> Result<(), GrammarError> {
        let mask = self.0.compute_mask_or_eos();
        let mask = mask.map_err(|e| GrammarError::Refused(short(&format!("{e:#}"))))?;
        into.clear();
        into.resize(logits.len(), f32::NEG_INFINITY);
        let mut any = false;
        mask.iter_set_entries(|id| {
            if let (Some(to), Some(from)) = (into.get_mut(id), logits.get(id)) {
                *to = *from;
                any = true;
            }
        });
        if any {
            Ok(())
        } else {
            Err(GrammarError::Refused("no token can come next".into()))
        }
    }

    /// Consumes the drawn token. Returns whether the text is complete and nothing may follow.
    ///
    /// # Errors
    /// As [`GrammarState::mask`].
    pub fn accept(&mut self, id: u32) -> Result<bool, GrammarError> {
        self.0
            .consume_token(id)
            .map_err(|e| GrammarError::Refused(short(&format!("{e:#}"))))?;
        Ok(self.0.is_stopped())
    }
}

#[cfg(test)]
mod tests {
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
    fn takes(
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
        let ends = state.0.is_stopped()
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
        for schema in hostile.iter().map(schema) {
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
}
