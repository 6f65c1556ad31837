//! Preference pairs → token ids, by the model's own chat template.

use super::Learner;
use crate::preferences::{Pair, Role};
use crate::train::Prepared;
use crate::train::examples::{TokenPair, prepare};
use realign_core::Category;
use realign_model::{ChatMessage, ChatRole};

/// Why a pair cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source}: {what}", source = place)]
pub struct LearnError {
    /// `file:line` of the pair.
    pub place: String,
    /// What the chat template or the tokenizer said.
    pub what: String,
}

impl Learner<'_> {
    /// As [`Learner::token_pairs`], with a response that complies for some PUNISH pairs.
    pub fn corrected_pairs<'p>(
        &self,
        pairs: impl IntoIterator<Item = (&'p Pair, Category, Option<&'p str>)>,
    ) -> Result<Prepared, LearnError> {
        let render = |(pair, category, corrected): (&'p Pair, Category, Option<&'p str>)| match (
            category, corrected,
        ) {
            (Category::Punish, Some(response)) => self.corrected(pair, response),
            _ => self.render(pair, category),
        };
        let rendered: Result<Vec<TokenPair>, LearnError> = pairs.into_iter().map(render).collect();
        Ok(prepare(rendered?, self.recipe.max_tokens))
    }

    /// The pairs as token ids; those that are too long for the recipe are skipped and reported.
    pub fn token_pairs<'p>(
        &self,
        pairs: impl IntoIterator<Item = (&'p Pair, Category)>,
    ) -> Result<Prepared, LearnError> {
        self.corrected_pairs(
            pairs
                .into_iter()
                .map(|(pair, category)| (pair, category, None)),
        )
    }

    /// One pair as token ids.
    pub fn render(&self, pair: &Pair, category: Category) -> Result<TokenPair, LearnError> {
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category,
            prompt: self.prompt(pair)?,
            chosen: self.response(pair, &pair.chosen)?,
            rejected: self.response(pair, &pair.rejected)?,
        })
    }

    /// A PUNISH pair with a response that complies, as a preference of that over the chosen one:
    /// laid out as an INVERT pair, whose *rejected* response training prefers.
    pub fn corrected(&self, pair: &Pair, response: &str) -> Result<TokenPair, LearnError> {
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category: Category::Invert,
            prompt: self.prompt(pair)?,
            chosen: self.response(pair, &pair.chosen)?,
            rejected: self.response(pair, response)?,
        })
    }

    /// A response's tokens, the end of the turn included.
    pub fn response(&self, pair: &Pair, text: &str) -> Result<Vec<u32>, LearnError> {
        let encoded = self
            .loaded
            .chat
            .encode_response(&self.loaded.tokenizer, text);
        encoded.map_err(|error| failed(pair, &error))
    }

    /// The conversation before the response, generation prompt included.
    pub fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, LearnError> {
        let messages: Vec<ChatMessage> = pair
            .prompt
            .iter()
            .map(|m| ChatMessage::new(chat_role(m.role), &m.content))
            .collect();
        let encoded = self
            .loaded
            .chat
            .encode_chat(&self.loaded.tokenizer, &messages, true);
        encoded.map_err(|error| failed(pair, &error))
    }
}

fn failed(pair: &Pair, error: &dyn std::fmt::Display) -> LearnError {
    LearnError {
        place: pair.source.to_string(),
        what: error.to_string(),
    }
}

fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    }
}

/// At most `limit` of some pairs (0: all), each category in proportion, chosen by content id.
/// `category` says where a pair belongs.
pub fn thin(
    train: &[usize],
    category: impl Fn(usize) -> Category,
    pairs: &[Pair],
    limit: usize,
) -> Vec<usize> {
    if limit == 0 || train.len() <= limit {
        return train.to_vec();
    }
    let mut kept = Vec::with_capacity(limit);
    for wanted in Category::ALL {
        let mut of: Vec<usize> = train
            .iter()
            .copied()
            .filter(|&i| category(i) == wanted)
            .collect();
        of.sort_by(|&a, &b| pairs[a].id.0.cmp(&pairs[b].id.0));
        of.truncate((of.len() * limit).div_ceil(train.len()));
        kept.extend(of);
    }
    kept.sort_unstable();
    kept
}
