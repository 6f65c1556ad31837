//! Grammars that an answer must follow, compiled once per request and matched token by token.
//!
//! Compiling and every step are bounded in work, so a hostile schema costs an error and little
//! time. Masks are computed on bytes: the model may split the text into tokens differently from the
//! tokenizer.

mod digits;
mod gbnf;
#[cfg(test)]
mod tests;
mod text;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use realign_model::Tokenizer;

use digits::Digits;
pub use text::{Grammar, GrammarTextError, choice_rule, regex_rule};

/// Work and memory that one grammar may take. A schema of a few hundred fields takes a tenth.
const MAX_GRAMMAR_SYMBOLS: usize = 100_000;
/// About ten milliseconds of building.
const COMPILE_FUEL: u64 = 500_000;
/// About four milliseconds of one step: how long one sequence may delay the rest of its batch.
const STEP_FUEL: u64 = 50_000;
const STEP_ITEMS: usize = 20_000;
/// One to two kilobytes each.
const MAX_LEXER_STATES: usize = 20_000;
/// Stack for compiling a grammar that is not flat, in bytes: the library follows references and
/// groups by recursion. Of it, a definition takes up to 8 KiB and a group up to 3 KiB.
const DEEP_STACK: usize = 128 << 20;
/// Definitions and groups that fit any thread's stack.
const FLAT: usize = 128;
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
pub struct Constraint {
    matcher: Arc<Mutex<Matcher>>,
    tokenizer: Arc<Tokenizer>,
    digits: Option<Digits>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.matcher, &other.matcher)
    }
}

impl Constraint {
    /// Ends numbers after tens of digits, in the JSON after this mark, or from the beginning if that is empty.
    #[must_use]
    pub fn ending_numbers(self, after: &'static str) -> Self {
        let digits = Some(Digits::after(after));
        Self { digits, ..self }
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
        if depth_bound(lark) <= FLAT {
            return self.compile_here(lark);
        }
        let refused = |why: String| GrammarError::Refused(why);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(DEEP_STACK);
            let compiling = thread.spawn_scoped(scope, || self.compile_here(lark));
            let compiling = compiling.map_err(|e| refused(format!("no thread for it: {e}")))?;
            let panicked = |_| Err(refused("it cannot be compiled".into()));
            compiling.join().unwrap_or_else(panicked)
        })
    }

    fn compile_here(&self, lark: &str) -> Result<Constraint, GrammarError> {
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
        Ok(Constraint {
            matcher: Arc::new(Mutex::new(matcher)),
            tokenizer: Arc::clone(&self.tokenizer),
            digits: None,
        })
    }
}

/// More than the number of definitions and groups that can be nested in a grammar.
fn depth_bound(lark: &str) -> usize {
    let opens = |byte: &u8| matches!(byte, b'\n' | b'(' | b'[');
    lark.bytes().filter(|byte| opens(byte)).count()
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
pub struct GrammarState {
    matcher: Matcher,
    tokenizer: Arc<Tokenizer>,
    digits: Option<Digits>,
}

impl GrammarState {
    /// The state before the first token.
    pub fn new(constraint: &Constraint) -> Self {
        let prototype = &constraint.matcher;
        let prototype = prototype.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            matcher: prototype.deep_clone(),
            tokenizer: Arc::clone(&constraint.tokenizer),
            digits: constraint.digits.clone(),
        }
    }

    /// Copies the logits of the tokens that may come next; all others become minus infinity.
    ///
    /// # Errors
    /// If the grammar cannot be followed further within its bounds.
    pub fn mask(&mut self, logits: &[f32], into: &mut Vec<f32>) -> Result<(), GrammarError> {
        let mask = self.matcher.compute_mask_or_eos();
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
        if !any {
            return Err(GrammarError::Refused("no token can come next".into()));
        }
        if let Some(digits) = &self.digits {
            digits.limit(into, &self.tokenizer);
        }
        Ok(())
    }

    /// The text that has to come next, whatever the model makes likely; empty where it has a choice.
    pub fn forced(&mut self) -> String {
        let bytes = self.matcher.compute_ff_bytes();
        // Control tokens stand for themselves behind a byte that no text has.
        let whole = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        // How many digits a number may have is counted token by token.
        let counted = |c: char| self.digits.is_some() && c.is_ascii_digit();
        whole.split(counted).next().unwrap_or_default().to_owned()
    }

    /// Consumes the drawn token. Returns whether the text is complete and nothing may follow.
    ///
    /// # Errors
    /// As [`GrammarState::mask`].
    pub fn accept(&mut self, id: u32) -> Result<bool, GrammarError> {
        self.matcher
            .consume_token(id)
            .map_err(|e| GrammarError::Refused(short(&format!("{e:#}"))))?;
        if let Some(digits) = self
            .digits
            .as_mut()
            .filter(|_| !self.tokenizer.is_control(id))
        {
            digits.read(self.tokenizer.token_bytes(id));
        }
        Ok(self.matcher.is_stopped())
    }
}
