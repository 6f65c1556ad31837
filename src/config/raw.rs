//! What a user may write: `realign.toml`, `REALIGN_*` variables and flags, before any checking.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Declares a section whose fields are all optional, so that sources can be laid over each other.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$fdoc])* #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>),+
        }
    };
}

section! {
    /// The whole file.
    RawConfig {
        /// Model: a `.gguf` file, a directory of safetensors, or `hf:<owner>/<name>`.
        model: String,
        /// The name clients use; defaults to the model's.
        model_name: String,
        /// `[server]`
        server: RawServer,
        /// `[engine]`
        engine: RawEngine,
        /// `[paths]`
        paths: RawPaths,
        /// `[watch]`
        watch: RawWatch,
        /// `[train]`
        train: TrainConfig,
        /// `[gate]`
        gate: RawGate,
    }
}

section! {
    /// Where and how to listen.
    RawServer {
        /// Address to bind.
        host: String,
        /// TCP port; 0 picks a free one.
        port: u16,
        /// Key clients must send as a bearer token.
        api_key: String,
        /// Key operators must send for `/admin`.
        admin_key: String,
        /// Largest request body, in bytes.
        max_body_bytes: usize,
    }
}

section! {
    /// Bounds of the engine.
    RawEngine {
        /// Most tokens of prompt and completion together; defaults to the model's own limit.
        max_model_len: usize,
        /// Most sequences in a batch.
        max_running: usize,
        /// Most sequences that wait.
        max_waiting: usize,
        /// Memory for the KV cache, in MiB.
        kv_cache_mb: usize,
        /// Most prompt tokens in one step.
        prefill_budget_tokens: usize,
        /// CPU threads; defaults to all cores.
        threads: usize,
    }
}

section! {
    /// Directories, relative to the working directory.
    RawPaths {
        /// Policy files.
        policies: PathBuf,
        /// Preference data.
        preferences: PathBuf,
        /// Published adapters.
        adapters: PathBuf,
        /// Database and checkpoints.
        state: PathBuf,
    }
}

section! {
    /// How policy files are watched.
    RawWatch {
        /// Quiet time after a change before files are read, in milliseconds.
        debounce_ms: u64,
        /// Time between looks when the system sends no notifications, in milliseconds.
        poll_ms: u64,
    }
}

section! {
    /// Deviations from the recipe; what is absent is the recipe's.
    TrainConfig {
        /// `default` or `paper`.
        recipe: String,
        /// Seed of initialisation, order and gold batch.
        seed: u64,
        /// LoRA rank.
        rank: usize,
        /// LoRA alpha; the scale is alpha / rank.
        alpha: f64,
        /// Share of the layers that are adapted, from the top; 1 is all.
        layer_share: f64,
        /// Peak learning rate.
        learning_rate: f64,
        /// Passes over the conflicts.
        epochs: usize,
        /// Temperature of the preference loss.
        beta: f64,
        /// Weight of the KL term.
        alpha_kl: f64,
        /// Weight of the likelihood term.
        alpha_sft: f64,
        /// Modules to adapt, by PEFT name.
        targets: Vec<String>,
        /// Most pairs to train on; 0 is all.
        max_pairs: usize,
        /// Most tokens of a pair's prompt and response.
        max_pair_tokens: usize,
        /// How impact scores become weights: `mean-one`, `sum-one` or `uniform`.
        weight_scale: String,
        /// Pairs in a step.
        batch_pairs: usize,
    }
}

section! {
    /// How a candidate is measured.
    RawGate {
        /// Share of prompts held out from training, between 0 and 1.
        holdout_ratio: f64,
        /// Most held-out prompts to generate for.
        max_prompts: usize,
        /// Most tokens per generated response.
        max_tokens: usize,
    }
}
