//! Whether rules judge what a model thinks before it answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::Exchange;
use super::explain::TestExplanation;
use super::sha256_json;
use realign_core::thoughts::answer_of;

/// Whether a policy's rules see what a model thinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// Rules judge the answer without it.
    #[default]
    Ignore,
    /// It is part of the response.
    Judge,
}

impl Thinking {
    /// What is judged of a response.
    pub(super) fn seen(self, response: &str) -> &str {
        match self {
            Thinking::Ignore => answer_of(response),
            Thinking::Judge => response,
        }
    }

    /// What is judged of an exchange.
    pub(crate) fn sees<'a>(self, exchange: &Exchange<'a>) -> Exchange<'a> {
        Exchange {
            response: self.seen(exchange.response),
            ..*exchange
        }
    }

    /// The hash of a rule with this setting, given that of its conditions.
    pub(super) fn hash_of(self, conditions: String) -> String {
        match self {
            Thinking::Ignore => conditions,
            Thinking::Judge => sha256_json(&(conditions, self)),
        }
    }
}

/// Moves what was found in a part of a response to its place in the whole: `hidden` is what precedes it.
pub(super) fn place_in_whole(tests: &mut [TestExplanation], hidden: &str) {
    let by = hidden.chars().count();
    let in_response =
        |test: &&mut TestExplanation| test.path.split('.').any(|part| part == "response");
    for found in tests
        .iter_mut()
        .filter(in_response)
        .flat_map(|test| &mut test.found)
    {
        found.start += by;
        found.end += by;
    }
}
