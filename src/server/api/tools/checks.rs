//! Which schema a finished answer, or a call in it, is checked against. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check::{Verdict, check};
use super::{AnswerFormat, Built, Tools};

/// Characters of what a check says that are passed on: keywords and names come from clients.
const MOST_SAID: usize = 300;

/// The schemas of a request as they were sent, but for their references, which are pointers.
#[derive(Debug)]
pub(crate) struct Checks {
    text: Option<Schema>,
    calls: BTreeMap<String, Schema>,
}

#[derive(Debug)]
struct Schema {
    schema: Value,
    /// Whether the grammar enforces all of it.
    enforced: bool,
}

/// What a check has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Whether the answer is invalid, or could not be checked.
    pub(crate) invalid: bool,
    pub(crate) text: String,
}

impl Checks {
    /// `left` says which schemas, by the name of the function or `None`, are not enforced completely.
    pub(crate) fn new(
        tools: &Tools,
        format: &AnswerFormat,
        left: impl Fn(Option<&str>) -> bool,
    ) -> Option<Self> {
        let with = |schema: &Value, of: Option<&str>| Schema {
            schema: schema.clone(),
            enforced: !left(of),
        };
        let text = match format {
            AnswerFormat::Json { schema, .. } => Some(with(schema, None)),
            _ => None,
        };
        let callable = tools.allowed().filter(|_| tools.callable());
        let calls = callable.map(|t| (t.name.clone(), with(&t.parameters, Some(&t.name))));
        let checks = Self {
            text,
            calls: calls.collect(),
        };
        (checks.text.is_some() || !checks.calls.is_empty()).then_some(checks)
    }

    /// Checks a finished answer: its calls, or its text if there are none.
    pub(crate) fn answer<'a>(
        &self,
        text: &str,
        calls: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<Finding> {
        let mut called = false;
        for (name, arguments) in calls {
            called = true;
            let schema = self.calls.get(name);
            let found = schema.and_then(|schema| schema.finding(name, arguments));
            if found.is_some() {
                return found;
            }
        }
        let schema = self.text.as_ref().filter(|_| !called)?;
        schema.finding(Built::ANSWER, text)
    }
}

impl Schema {
    fn finding(&self, of: &str, text: &str) -> Option<Finding> {
        let (invalid, said) = match check(&self.schema, text) {
            Verdict::Valid => return None,
            Verdict::Invalid { keyword, path } => {
                (true, format!("{of} violates {keyword} at #{path}"))
            }
            // What the grammar enforces needs no check.
            Verdict::Unknown(_) if self.enforced => return None,
            Verdict::Unknown(why) => (false, format!("{of} is not checked: {why}")),
        };
        let text = said.chars().take(MOST_SAID).collect();
        Some(Finding { invalid, text })
    }
}
