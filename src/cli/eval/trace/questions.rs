//! Inputs of the measurements besides the held-out prompts: everyday questions, a text for
//! perplexity, and multiple-choice items.

use std::path::Path;

use super::TraceArgs;
use super::inputs::DRAW_SEED;
use crate::{CliError, read_input, require};
use realign_align::exam::ScoredQuestion as Question;
use realign_align::gate::HeldOutPrompt;
use realign_lab::evaluation::GENERAL_QUESTIONS;
use realign_lab::evaluation::capability::{self, Item, ItemError};
use realign_model::{ChatMessage, LoadedModel, Tokenizer};

/// Tokens of a window of the perplexity text.
const WINDOW: usize = 256;

/// The everyday questions, rendered by the model's chat template.
pub(super) fn general(loaded: &LoadedModel) -> Result<Vec<HeldOutPrompt>, CliError> {
    let prompt = |question: &str| {
        let messages = [ChatMessage::user(question)];
        let tokens = loaded.chat.encode_chat(&loaded.tokenizer, &messages, true);
        Ok(HeldOutPrompt {
            text: question.to_owned(),
            tokens: tokens.map_err(|error| CliError::Eval(error.to_string()))?,
        })
    };
    GENERAL_QUESTIONS.lines().map(prompt).collect()
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, CliError> {
    let encoded = tokenizer.encode(text, false);
    encoded.map_err(|error| CliError::Eval(error.to_string()))
}

/// The perplexity text in windows, each predicted from its first token.
pub(super) fn windows(args: &TraceArgs, tokenizer: &Tokenizer) -> Result<Vec<Question>, CliError> {
    let Some(path) = &args.perplexity else {
        return Ok(Vec::new());
    };
    require(path, "a text file (--perplexity)")?;
    let text = read_input(path)?;
    // Tokens have at most 16 characters on average, so this is enough text.
    let most = args.perplexity_tokens.saturating_mul(16);
    let cut = text.char_indices().nth(most).map_or(text.len(), |(i, _)| i);
    let mut tokens = encode(tokenizer, &text[..cut])?;
    tokens.truncate(args.perplexity_tokens);
    let whole = tokens.chunks(WINDOW).filter(|window| window.len() > 1);
    let question = |window: &[u32]| Question {
        prompt: window[..1].to_vec(),
        continuations: vec![window[1..].to_vec()],
    };
    Ok(whole.map(question).collect())
}

/// The drawn multiple-choice items with their tokenised questions.
pub(super) fn items(
    args: &TraceArgs,
    tokenizer: &Tokenizer,
) -> Result<Vec<(Item, Vec<Question>)>, CliError> {
    let Some(path) = &args.capability else {
        return Ok(Vec::new());
    };
    require(path, "a file of multiple-choice items (--capability)")?;
    let text = read_input(path)?;
    let mut items = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let parsed = capability::parse(line);
        let at =
            |error: ItemError| CliError::Eval(format!("{}:{}: {error}", path.display(), index + 1));
        items.extend(parsed.map_err(at)?);
    }
    let drawn = capability::stratified(items, args.capability_items, DRAW_SEED);
    let with_questions = |item: Item| {
        let questions = questions(&item, tokenizer, path)?;
        Ok((item, questions))
    };
    drawn.into_iter().map(with_questions).collect()
}

/// One question per choice, or a single one for all if they share their context.
fn questions(item: &Item, tokenizer: &Tokenizer, path: &Path) -> Result<Vec<Question>, CliError> {
    let mut questions: Vec<Question> = Vec::new();
    for (context, continuation) in &item.choices {
        let prompt = tokenizer
            .encode_prompt(context)
            .map_err(|error| CliError::Eval(error.to_string()))?;
        let continuation = encode(tokenizer, continuation)?;
        if prompt.is_empty() || continuation.is_empty() {
            return Err(CliError::Eval(format!(
                "{}: an item of {} has an empty context or choice",
                path.display(),
                item.task
            )));
        }
        match questions.last_mut().filter(|q| q.prompt == prompt) {
            Some(question) => question.continuations.push(continuation),
            None => questions.push(Question {
                prompt,
                continuations: vec![continuation],
            }),
        }
    }
    Ok(questions)
}
