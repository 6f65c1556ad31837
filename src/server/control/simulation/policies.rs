//! The policy files of a simulation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use realign_align::policy::{PolicySet, Snapshot};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    /// A policy against a word.
    Policy(&'static str),
    /// One that only a judge can test.
    Judged(&'static str),
    /// The beginning of a policy, which is a policy by itself.
    Cut(&'static str),
    /// No YAML.
    Broken,
}

/// Names without the ending, to contents.
pub(super) type Files = BTreeMap<&'static str, Content>;

/// What the id of a policy begins with that needs a judge.
const JUDGED: &str = "judged";

impl Content {
    fn text(self) -> String {
        let (kind, word) = match self {
            Content::Policy(word) | Content::Cut(word) => ("no", word),
            Content::Judged(word) => (JUDGED, word),
            Content::Broken => return "rules: [\n".into(),
        };
        let start = format!(
            "apiVersion: realign/v1\nid: {kind}-{word}\nversion: \"1\"\nrules:\n\
             \x20 - id: contains-{word}\n\
             \x20   severity: high\n\
             \x20   violates: {{ response: {{ any_phrase: [\"{word}\"] }} }}"
        );
        if matches!(self, Content::Cut(_)) {
            return start;
        }
        format!("{start}\ngate: {{ max_perplexity_rise: 1000.0 }}\n")
    }
}

pub(super) fn snapshot(files: &Files) -> Snapshot {
    let files: BTreeMap<String, String> = files
        .iter()
        .map(|(name, content)| (format!("{name}.yaml"), content.text()))
        .collect();
    Snapshot::from_json(&serde_json::to_string(&files).unwrap()).unwrap()
}

/// The revision of the set that the files define; `None` if they define none.
pub(super) fn revision(files: &Files) -> Option<String> {
    thread_local! {
        static KNOWN: RefCell<BTreeMap<Files, Option<String>>> = const { RefCell::new(BTreeMap::new()) };
    }
    let load = || {
        let set = snapshot(files).load(Path::new("policies")).ok()?;
        Some(set.revision().to_owned())
    };
    KNOWN.with_borrow_mut(|known| known.entry(files.clone()).or_insert_with(load).clone())
}

/// How many times `settle` the files have to rest.
pub(super) fn rest(files: &Files) -> u32 {
    let cut = files.values().any(|c| matches!(c, Content::Cut(_)));
    if cut { 4 } else { 1 }
}

pub(super) fn needs_judge(set: &PolicySet) -> bool {
    set.policies().iter().any(|p| p.id.starts_with(JUDGED))
}

/// Whether a judge has to answer before the files become active.
pub(super) fn are_judged(files: &Files) -> bool {
    files.values().any(|c| matches!(c, Content::Judged(_)))
}
