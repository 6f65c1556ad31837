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

        impl $name {
            /// The names of its keys, in order.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($field)),+];
        }
    };
}

/// Layers of a model, counted from 0: a list, or `first-last` with both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// One by one.
    List(Vec<usize>),
    /// A range, such as `15-29`.
    Range(String),
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
        /// `[limits]`
        limits: RawLimits,
        /// `[engine]`
        engine: RawEngine,
        /// `[paths]`
        paths: RawPaths,
        /// `[watch]`
        watch: RawWatch,
        /// `[train]`
        train: RawTrain,
        /// `[gate]`
        gate: RawGate,
        /// `[compliance]`
        compliance: RawCompliance,
        /// `[traces]`
        traces: RawTraces,
    }
}

section! {
    /// Where and how to listen, and for whom.
    RawServer {
        /// Address to bind.
        host: String,
        /// TCP port; 0 picks a free one.
        port: u16,
        /// Address of the operators' own listener; needs `admin_port`.
        admin_host: String,
        /// Port of the operators' own listener; without it they share the clients'.
        admin_port: u16,
        /// Key clients must send as a bearer token: the key, or `sha256:` and its digest.
        api_key: String,
        /// Further keys, each with a name: `name:key` or `name:sha256:<digest>`.
        api_keys: Vec<String>,
        /// File of such keys, one a line; read again on SIGHUP.
        api_keys_file: PathBuf,
        /// Key operators must send for `/admin`: the key, or `sha256:` and its digest.
        admin_key: String,
        /// Web origins that browsers may call from; `*` is any.
        cors_origins: Vec<String>,
        /// PEM file of the certificate chain; with `tls_key`, the server speaks HTTPS.
        tls_cert: PathBuf,
        /// PEM file of the certificate's private key.
        tls_key: PathBuf,
        /// Largest request body, in bytes.
        max_body_bytes: usize,
        /// Time for a request's header, and for an idle connection, in seconds.
        header_timeout_s: u64,
        /// Time for a request's body, in seconds.
        body_timeout_s: u64,
        /// Time a client may take none of its answer, in seconds.
        write_timeout_s: u64,
        /// Time running requests have to finish after SIGTERM, in seconds.
        drain_timeout_s: u64,
    }
}

section! {
    /// What clients may ask for at most. Beyond it they get 429 with `Retry-After`.
    RawLimits {
        /// Most open connections; further ones wait in the system's backlog.
        max_connections: usize,
        /// Most client requests at once.
        max_concurrent_requests: usize,
        /// Most requests of one key in a minute; 0 is no limit.
        requests_per_minute: u32,
        /// Most tokens (prompt and completion) of one key in a minute; 0 is no limit.
        tokens_per_minute: u32,
    }
}

section! {
    /// Bounds of the engine.
    RawEngine {
        /// What computes: `auto`, `cpu` or `cuda:N`.
        device: String,
        /// What computes answers: `native` or `mistralrs`.
        kind: String,
        /// Most copies of the weights that `mistralrs` may have loaded at once.
        copies: usize,
        /// Quantisation that `mistralrs` applies to safetensors while it loads them.
        isq: String,
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
        /// Whether a CUDA device runs decoding steps as recorded graphs of kernels.
        cuda_graphs: bool,
    }
}

section! {
    /// Directories, relative to the working directory.
    RawPaths {
        /// Policy files.
        policies: PathBuf,
        /// Preference data.
        preferences: PathBuf,
        /// Most preference data that a server holds, in MB of text.
        max_preferences_mb: u64,
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
    RawTrain {
        /// `default` or `paper`; what follows is changed in it.
        recipe: String,
        /// Seed of initialisation, order and gold batch.
        seed: u64,
        /// LoRA rank.
        rank: usize,
        /// LoRA alpha; the scale is alpha / rank.
        alpha: f64,
        /// Share of the adapter's inputs that training drops.
        dropout: f64,
        /// Modules to adapt, by PEFT name.
        targets: Vec<String>,
        /// Share of the layers that are adapted, from the top; 1 is all.
        layer_share: f64,
        /// Exactly the layers to adapt, from 0, instead of a share.
        layers: Layers,
        /// `adamw` or `lion`.
        optimizer: String,
        /// Peak learning rate.
        learning_rate: f64,
        /// Decay of the optimiser's two moments.
        betas: [f64; 2],
        /// What AdamW adds to the denominator.
        epsilon: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
        /// `cosine`, `linear` or `constant`.
        schedule: String,
        /// Share of the steps that warm up.
        warmup_ratio: f64,
        /// Passes over the pairs.
        epochs: usize,
        /// Pairs in a batch.
        batch_pairs: usize,
        /// Batches whose gradients one step averages.
        accumulation: usize,
        /// Most optimiser steps; 0 is all that the epochs hold.
        max_steps: usize,
        /// Gradient norm at which training ends; 0 is never.
        stop_gradient_norm: f64,
        /// Gradient norm above which gradients are scaled down.
        clip_norm: f64,
        /// Rise of the smoothed loss, as a ratio, that ends a run as diverged.
        max_loss_ratio: f64,
        /// `f32` or `mixed`.
        precision: String,
        /// Temperature of the preference loss.
        beta: f64,
        /// Weight of the KL term.
        alpha_kl: f64,
        /// Weight of the likelihood term.
        alpha_sft: f64,
        /// Divisor of impact scores.
        gamma: f64,
        /// `sigmoid` or `ipo`.
        preference_loss: String,
        /// How impact scores become weights: `mean-one`, `sum-one` or `uniform`.
        weight_scale: String,
        /// Pairs in the gold batch.
        gold_pairs: usize,
        /// Most pairs to train on; 0 is all.
        max_pairs: usize,
        /// Most tokens of a pair's prompt and response.
        max_pair_tokens: usize,
        /// Most memory that a run may take, in MB; unset is what the machine has free.
        memory_mb: u64,
        /// Share of the time that learning gets from running requests.
        share: f64,
        /// Whether a layer's intermediate results are computed again for its gradients instead of
        /// kept: `auto`, `on` or `off`.
        recompute: String,
        /// `[train.corrective]`
        corrective: RawCorrective,
    }
}

section! {
    /// Who writes compliant responses for pairs of which both responses violate.
    RawCorrective {
        /// Base URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:8000/v1`.
        url: String,
        /// Model to ask.
        model: String,
        /// Environment variable that holds the key.
        key_env: String,
        /// Template of the request; `policy` and `prompt` are filled in.
        template: String,
        /// Most tokens of a response.
        max_tokens: usize,
        /// Attempts at a response that complies.
        attempts: usize,
        /// Requests at once.
        concurrency: usize,
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

section! {
    /// How answers to clients are judged against the active policies, after they were sent.
    RawCompliance {
        /// Share of the answers that is judged, 0 to 1.
        share: f64,
        /// Answers that may wait to be judged; further ones are dropped and counted.
        queue: usize,
        /// File of one JSON line for each judgement; none by default.
        decision_log: PathBuf,
        /// Size at which the file is rotated, in MiB.
        decision_log_max_mb: u64,
        /// Rotated files that are kept.
        decision_log_files: usize,
        /// Whether prompts and answers are written to it.
        decision_log_texts: bool,
    }
}

section! {
    /// OpenTelemetry traces, over OTLP (HTTP, JSON).
    RawTraces {
        /// Collector, such as `http://127.0.0.1:4318`; none by default.
        otlp_endpoint: String,
        /// Share of the requests that is traced where the client does not say, 0 to 1.
        share: f64,
        /// `service.name` of the traces.
        service_name: String,
    }
}
