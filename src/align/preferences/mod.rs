//! Preference data: rows in several formats → content-addressed pairs; the hold-out split.
//!
//! [`formats`] parses one line, [`lines`] reads a file within bounds, [`dataset`] reads files and directories, [`split`] divides pairs.

mod collect;
pub mod dataset;
mod formats;
mod inspect;
mod lines;
mod message;
mod open;
mod rows;
pub mod split;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use dataset::{
    Contradiction, Dataset, DatasetError, MAX_LINE_BYTES, NOT_READ, SkippedLine, for_each_pair,
    for_each_raw_line,
};
pub use inspect::{FileReport, inspect};
pub use message::Message;
pub(crate) use message::{Role, functions};
pub use split::{Split, split};

/// SHA-256 (64 hex digits) over a pair's prompt, responses and labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PairId(pub String);

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A line of a data file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LineSource {
    /// Path of the file, as it was given to the loader.
    pub file: PathBuf,
    /// Line number, from 1.
    pub line: usize,
}

impl fmt::Display for LineSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A preference pair: a preferred and a rejected response to one prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Content hash of prompt, responses and labels.
    pub id: PairId,
    /// The conversation so far; ends with a user message.
    pub prompt: Vec<Message>,
    /// The preferred response; never blank.
    pub chosen: String,
    /// The other response; never blank, and different from `chosen`.
    pub rejected: String,
    /// Category labels of the chosen response, sorted.
    pub chosen_labels: Vec<String>,
    /// Category labels of the rejected response, sorted.
    pub rejected_labels: Vec<String>,
    /// `meta.holdout`: whether the pair must (not) be held out; `None` leaves it to the split.
    pub holdout: Option<bool>,
    /// Where the pair was read from.
    pub source: LineSource,
    /// Both responses as messages, if one of them calls functions. Their texts have the calls too, in the
    /// form in which policies judge them; models write calls in the form of their templates.
    #[serde(skip)]
    pub(crate) calling: Option<Box<[Message; 2]>>,
}

impl Pair {
    /// The message of a response of this text, if one of the pair's responses calls functions.
    pub(crate) fn calling(&self, response: &str) -> Option<&Message> {
        let answers = self.calling.as_deref()?;
        // By their text: training may have exchanged the responses.
        answers.iter().find(|answer| answer.judged() == response)
    }

    /// The last user message: what the oracle judges as the prompt.
    pub fn prompt_text(&self) -> &str {
        let last = self
            .prompt
            .iter()
            .rev()
            .find(|message| message.role == Role::User);
        last.map_or("", |message| message.content.as_str())
    }

    /// Bytes of its texts: prompt, responses, labels, and the name of its file.
    fn memory_bytes(&self) -> u64 {
        let calling = self.calling.iter().flat_map(|answers| answers.iter());
        let messages = self.prompt.iter().chain(calling);
        let prompt: usize = messages.map(Message::memory_bytes).sum();
        let labels = self.chosen_labels.iter().chain(&self.rejected_labels);
        let labels: usize = labels.map(|l| l.len() + size_of::<String>()).sum();
        let responses = self.chosen.len() + self.rejected.len();
        (prompt + labels + responses + self.source.file.as_os_str().len()) as u64
    }

    /// SHA-256 over the conversation and both responses in lexical order, and whether `chosen`
    /// comes first in that order. Pairs with equal hashes and different orders contradict each
    /// other.
    pub fn unordered_hash(&self) -> ([u8; 32], bool) {
        let in_order = self.chosen <= self.rejected;
        let (first, second) = if in_order {
            (&self.chosen, &self.rejected)
        } else {
            (&self.rejected, &self.chosen)
        };
        let mut hasher = Sha256::new();
        hash_messages(&mut hasher, &self.prompt);
        hash_text(&mut hasher, first);
        hash_text(&mut hasher, second);
        (hasher.finalize().into(), in_order)
    }

    /// SHA-256 over the whole conversation before the response.
    pub fn prompt_hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hash_messages(&mut hasher, &self.prompt);
        hasher.finalize().into()
    }
}

/// The id of a pair with this prompt and these responses, each with its labels.
pub(crate) fn pair_id(prompt: &[Message], responses: [(&str, &[String]); 2]) -> PairId {
    let mut hasher = Sha256::new();
    hash_messages(&mut hasher, prompt);
    for (response, labels) in responses {
        hash_text(&mut hasher, response);
        hasher.update((labels.len() as u64).to_le_bytes());
        labels
            .iter()
            .for_each(|label| hash_text(&mut hasher, label));
    }
    PairId(hex::encode(hasher.finalize()))
}

fn hash_messages(hasher: &mut Sha256, messages: &[Message]) {
    hasher.update((messages.len() as u64).to_le_bytes());
    for message in messages {
        hash_text(hasher, message.role.as_str());
        hash_text(hasher, &message.content);
        if let Some(calling) = &message.calling {
            // No role begins like JSON, so this is not taken for another message.
            hash_text(hasher, &calling.text());
        }
    }
}

/// Hashes a text after its length, so that different sequences of texts cannot collide.
fn hash_text(hasher: &mut Sha256, text: &str) {
    hasher.update((text.len() as u64).to_le_bytes());
    hasher.update(text);
}
