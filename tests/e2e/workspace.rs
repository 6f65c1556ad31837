//! A temporary operator's directory: configuration, policies, data.

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use super::tiny_model;

/// An operator's directory; removed when dropped.
pub(super) struct Workspace {
    dir: TempDir,
}

impl Workspace {
    /// The tiny model with thirty pairs, no policy yet, and a recipe of eight steps an epoch.
    pub(super) fn tiny(epochs: usize) -> Workspace {
        let config = format!(
            "model = {:?}\nmodel_name = \"tiny\"\n\
             [watch]\ndebounce_ms = 30\npoll_ms = 200\nsettle_ms = 50\n\
             [engine]\nkv_cache_mb = 64\n\
             [train]\nrank = 2\nepochs = {epochs}\nlearning_rate = 0.02\nbatch_pairs = 3\nweight_scale = \"mean-one\"\n\
             controls = 0\nsituations = false\nrounds = 1\nmin_steps = 0\n\
             [gate]\nmax_prompts = 4\nmin_prompts = 1\nmax_control_diverted = 1.0\nmax_tokens = 8\n\
             [exam]\nprompts = 12\nfacts = 4\n\
             [gather]\nenabled = false\n",
            tiny_model::directory()
        );
        let workspace = Workspace::with_config(&config);
        workspace.write("preferences/pairs.jsonl", &pairs());
        workspace
    }

    /// A workspace with empty directories.
    pub(super) fn with_config(config: &str) -> Workspace {
        let dir = tempfile::tempdir().unwrap();
        for name in ["policies", "preferences"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let workspace = Workspace { dir };
        workspace.write("realign.toml", config);
        workspace
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Drops a policy that forbids `word`, with bounds that any candidate meets.
    pub(super) fn drop_policy(&self, word: &str) {
        self.write("policies/words.yaml", &policy(word));
    }
}

/// A policy under which a response that contains `word` is a violation.
pub(super) fn policy(word: &str) -> String {
    format!(
        "apiVersion: realign/v1\n\
         id: no-{word}\n\
         version: \"1\"\n\
         rules:\n\
         \x20 - id: contains-{word}\n\
         \x20   severity: high\n\
         \x20   violates: {{ response: {{ any_phrase: [\"{word}\"] }} }}\n\
         gate: {{ min_policy_agreement_gain: 0.0, max_perplexity_rise: 1000.0 }}\n"
    )
}

/// Thirty pairs, six of them held out. A policy against `xyzzy` makes ten INVERT, eight PUNISH and
/// twelve RETAIN; one against `plugh` divides them differently.
fn pairs() -> String {
    let line = |i: usize| {
        let (chosen, rejected) = match i % 30 {
            0..10 => (format!("say xyzzy {i}"), format!("good day {i}")),
            10..18 => (format!("xyzzy and plugh {i}"), format!("xyzzy again {i}")),
            _ => (format!("a plain answer {i}"), format!("plugh {i}")),
        };
        let pair = json!({
            "prompt": format!("question {i}?"), "chosen": chosen, "rejected": rejected,
            "meta": { "holdout": i % 5 == 4 },
        });
        format!("{pair}\n")
    };
    (0..30).map(line).collect()
}
