//! What operators order, and what was done.

use serde::{Deserialize, Serialize};

use super::{Durable, Release};

/// Entries that are kept.
const MOST: usize = 100;

/// What an operator may order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// No rollout begins, and none goes on to its next stage or share.
    Pause,
    /// They do again.
    Resume,
    /// The rollout under way ends, and what serves goes on to serve.
    Abort,
    /// What was given up is tried again.
    Rollout,
}

impl Command {
    /// All of them.
    pub const ALL: [Command; 4] = [
        Command::Pause,
        Command::Resume,
        Command::Abort,
        Command::Rollout,
    ];

    /// Its name in the history, in paths and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::Abort => "abort",
            Command::Rollout => "rollout",
        }
    }
}

/// An operator's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is to be done.
    pub command: Command,
    /// The generation that is meant, if the operator said so.
    pub generation: Option<String>,
    /// Who orders it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in Unix seconds.
    pub at: u64,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who ordered it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When, in Unix seconds.
    pub at: u64,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in Unix seconds.
    pub at: u64,
    /// Who did it; `gateway` for what it did by itself.
    pub by: String,
    /// What: an operator's order, or `switch`, `give up`, `back` (by a canary), `leave` (a canary, for another
    /// release).
    pub act: String,
    /// What it is about.
    pub release: Option<Release>,
    /// Why.
    pub why: String,
}

impl Durable {
    /// Adds to the history.
    pub(super) fn remember(&mut self, entry: Entry) {
        self.history.push(entry);
        let surplus = self.history.len().saturating_sub(MOST);
        self.history.drain(..surplus);
    }
}
