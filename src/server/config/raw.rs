//! The configuration as users write it, in `realign.toml`, `REALIGN_*` variables and flags, before
//! validation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Declares a section whose fields are all optional, so that sources can be merged.
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
    /// Each layer listed.
    List(Vec<usize>),
    /// A range, such as `15-29`.
    Range(String),
}

section! {
    /// The whole configuration file.
    RawConfig {
        /// Model: a `.gguf` file, a directory of safetensors, or `hf:<owner>/<name>`.
        model: String,
        /// A `tokenizer.json` instead of the tokenizer in the model's own files.
        tokenizer: PathBuf,
        /// The name that clients send as `model`; defaults to the model's own.
        model_name: String,
        /// `[server]`
        server: RawServer,
        /// `[limits]`
        limits: RawLimits,
        /// `[responses]`
        responses: RawResponses,
        /// `[engine]`
        engine: RawEngine,
        /// `[paths]`
        paths: RawPaths,
        /// `[adapters]`
        adapters: RawAdapters,
        /// `[store]`
        store: RawStore,
        /// `[fleet]`
        fleet: RawFleet,
        /// `[retention]`
        retention: RawRetention,
        /// `[watch]`
        watch: RawWatch,
        /// `[train]`
        train: RawTrain,
        /// `[gate]`
        gate: RawGate,
        /// `[compliance]`
        compliance: RawCompliance,
        /// `[exam]`
        exam: RawExam,
        /// `[gather]`
        gather: RawGather,
        /// `[drift]`
        drift: RawDrift,
        /// `[alignment]`
        alignment: RawAlignment,
        /// `[traces]`
        traces: RawTraces,
    }
}

section! {
    /// Addresses, keys, TLS and timeouts of the listeners.
    RawServer {
        /// Address to bind, or `unix:` and the path of a socket.
        host: String,
        /// TCP port; 0 picks a free one. A socket has none.
        port: u16,
        /// Address of a separate listener for operators, with `admin_port`, or `unix:` and the path of
        /// a socket.
        admin_host: String,
        /// Port of a separate listener for operators; without it they share the clients' listener.
        admin_port: u16,
        /// Key that clients must send as a bearer token, given as the key itself or as
        /// `sha256:<digest>`.
        api_key: String,
        /// More keys, each with a name: `name:key` or `name:sha256:<digest>`.
        api_keys: Vec<String>,
        /// File of such keys, one per line; reloaded on SIGHUP.
        api_keys_file: PathBuf,
        /// Serve everyone on an address that other machines reach although no client key is set.
        open: bool,
        /// Key that operators must send for `/admin`, given as the key itself or as
        /// `sha256:<digest>`. Without it the server makes one: the file `admin-key` in
        /// `paths.state`.
        admin_key: String,
        /// Web origins that browsers may call from; `*` allows any.
        cors_origins: Vec<String>,
        /// PEM file of the certificate chain; with `tls_key`, the server speaks HTTPS.
        tls_cert: PathBuf,
        /// PEM file of the certificate's private key.
        tls_key: PathBuf,
        /// Largest request body, in bytes.
        max_body_bytes: usize,
        /// What happens to fields of requests that a route does not know: `refuse` or `ignore`.
        unknown_fields: String,
        /// Whether clients may read the model's chat template and special tokens: `/tokenizer_info`.
        tokenizer_info: bool,
        /// Timeout for a request's header and for an idle connection, in seconds.
        header_timeout_s: u64,
        /// Timeout for a request's body, in seconds.
        body_timeout_s: u64,
        /// Timeout for a client that reads none of its response, in seconds.
        write_timeout_s: u64,
        /// Time running requests have to finish after SIGTERM, in seconds.
        drain_timeout_s: u64,
    }
}

section! {
    /// Limits on client requests. Beyond them clients get 429 with `Retry-After`.
    RawLimits {
        /// Maximum number of open connections on the clients' listener; a further one takes the place
        /// of one that waits for a request.
        max_connections: usize,
        /// The same for the operators' own listener.
        max_admin_connections: usize,
        /// Whether `max_tokens` beyond the context is lowered to what fits; otherwise it is refused.
        clamp_max_tokens: bool,
        /// Maximum number of items of an array whose JSON schema sets none; 0 means no limit.
        json_items: usize,
        /// Maximum number of characters of a string whose JSON schema sets none; 0 means no limit.
        json_characters: usize,
        /// Maximum number of concurrent client requests.
        max_concurrent_requests: usize,
        /// Maximum number of requests per key and minute; 0 means no limit.
        requests_per_minute: u32,
        /// Maximum number of tokens (prompt and completion) per key and minute; 0 means no limit.
        tokens_per_minute: u32,
    }
}

section! {
    /// Responses that are kept in memory, so that `previous_response_id` can continue them.
    RawResponses {
        /// Whether they are.
        store: bool,
        /// Maximum number of responses; the oldest go.
        max_entries: usize,
        /// Maximum memory of their conversations, in MB.
        max_mb: usize,
    }
}

section! {
    /// Device and limits of the engine.
    RawEngine {
        /// The device to compute on: `auto`, `cpu` or `cuda:N`.
        device: String,
        /// The engine: `native` or `mistralrs`.
        kind: String,
        /// Maximum number of copies of the weights that `mistralrs` may have loaded at once.
        copies: usize,
        /// What safetensors are quantised to while they are loaded: `q8_0`, `q6_k`, `q5_k`, `q4_k`, `q4_1` or
        /// `q4_0`; mistralrs has further types.
        isq: String,
        /// Maximum number of tokens of prompt and completion together; defaults to the model's own
        /// limit.
        max_model_len: usize,
        /// Maximum number of sequences in a batch.
        max_running: usize,
        /// Maximum number of waiting sequences.
        max_waiting: usize,
        /// Memory for the KV cache, in MiB; defaults to a quarter of what is free once the model is loaded.
        kv_cache_mb: usize,
        /// What keys and values are stored as on a CPU: `f32`, `f16` or `q8`.
        kv_type: String,
        /// Maximum number of prompt tokens in one step.
        prefill_budget_tokens: usize,
        /// Time that a step with streams should take at most, in milliseconds: prompts get fewer tokens
        /// for it; 0 means no bound.
        step_target_ms: u64,
        /// Whether text that a schema or a grammar forces is appended without being computed token by
        /// token.
        jump_forward: bool,
        /// Maximum number of tokens that are drafted from what followed the same words before and computed
        /// in one step, where few answers are streamed; 0 drafts none. Answers do not change.
        draft_tokens: usize,
        /// CPU threads; defaults to all cores.
        threads: usize,
        /// Directory in which weights packed for the CPU are kept, for the next start and for other servers
        /// of the machine, or `off`; defaults to `realign` in the user's cache directory.
        weights_cache: String,
        /// Maximum size of that directory, in GiB; what was used longest ago goes.
        weights_cache_gb: u64,
        /// Whether decoding steps on a CUDA device run as captured CUDA graphs.
        cuda_graphs: bool,
        /// What weights in bfloat16 are multiplied with on a CPU: activations in `f32`, or with `mixed`
        /// rounded to bfloat16 where the processor has AVX-512 BF16.
        precision: String,
    }
}

section! {
    /// Directories, relative to the working directory.
    RawPaths {
        /// Policy files.
        policies: PathBuf,
        /// Preference data.
        preferences: PathBuf,
        /// Maximum memory of the preference data, in MB.
        max_preferences_mb: u64,
        /// Published adapters.
        adapters: PathBuf,
        /// Database and checkpoints.
        state: PathBuf,
    }
}

section! {
    /// What happens without the generation that should serve.
    RawAdapters {
        /// What a start does if that generation is missing or damaged: `serve-base` or `refuse`.
        on_missing: String,
    }
}

section! {
    /// Generations that several servers share.
    RawStore {
        /// `file://DIRECTORY` for this server by itself, or `s3://BUCKET/PREFIX`.
        url: String,
        /// Whether this server only serves what the store names, without policies and training.
        follow: bool,
        /// The server's name in the store; by default one that it makes and keeps in `paths.state`.
        name: String,
        /// Seconds of silence after which another controller may publish.
        lease_s: u64,
        /// Time between two looks at the store, in milliseconds.
        poll_ms: u64,
    }
}

section! {
    /// Servers that share a store.
    RawFleet {
        /// Publications that a server may be behind and still be ready.
        max_skew_epochs: u64,
        /// Engines behind `realign gateway`.
        targets: Vec<RawTarget>,
        /// Where targets find what is in `paths.adapters`; by default under the same path.
        adapters_path: String,
        /// What happens if a target cannot take a generation: `exclude` or `abort`.
        on_failure: String,
        /// The longest that an answer may take, in seconds.
        max_request_s: u64,
        /// Time between two looks at targets and at what should serve, in milliseconds.
        look_ms: u64,
        /// Shares of the requests that get a new generation first, growing; 1.0 is all of them.
        canary: Vec<f64>,
        /// Requests that both generations must have answered in a step of a canary.
        canary_min_requests: u64,
        /// The shortest that a step of a canary takes, in seconds.
        canary_min_s: u64,
        /// The longest that a step of a canary waits for its requests, in seconds.
        canary_max_s: u64,
        /// A server whose `/v1/moderations` judges answers that have passed.
        judge: String,
        /// Environment variable that holds its key for requests.
        judge_key_env: String,
        /// Fraction of the answers that is judged, 0 to 1.
        judge_share: f64,
        /// Answers that may wait to be judged; further ones are dropped and counted.
        judge_queue: usize,
    }
}

section! {
    /// An engine behind a gateway.
    RawTarget {
        /// `vllm`, `realign` or `sglang`.
        kind: String,
        /// `http://HOST:PORT`.
        url: String,
        /// Whether every address of the host is a target, looked up again and again.
        resolve: bool,
        /// Environment variable that holds the key for requests.
        key_env: String,
        /// Environment variable that holds the key for loading and unloading; by default the same key.
        admin_key_env: String,
    }
}

section! {
    /// What a server keeps; it removes the rest at its start and after each realignment. 0 means no
    /// limit.
    RawRetention {
        /// Maximum number of generations, the most recently used ones.
        generations: usize,
        /// Maximum number of records of realignments, the newest ones.
        realignments: usize,
        /// Maximum number of cached results of each kind.
        cached: usize,
        /// Days without use after which adapters, records and cached results go.
        days: u64,
        /// Maximum size of all adapters together, in MB.
        megabytes: u64,
    }
}

section! {
    /// How policy files are watched.
    RawWatch {
        /// Quiet time after a change before files are read, in milliseconds.
        debounce_ms: u64,
        /// Time that files must be unchanged before they are acted upon, in milliseconds.
        settle_ms: u64,
        /// Polling interval if the system sends no notifications, in milliseconds.
        poll_ms: u64,
    }
}

section! {
    /// What clients get while what serves is not aligned.
    RawAlignment {
        /// `serve`, or `refuse`: clients who ask for what serves get 503.
        when_unaligned: String,
    }
}

section! {
    /// Changes to the recipe; absent keys keep the recipe's values.
    RawTrain {
        /// `default` or `paper`; the keys below override its values.
        recipe: String,
        /// Seed of initialisation, order and gold batch.
        seed: u64,
        /// LoRA rank.
        rank: usize,
        /// LoRA alpha; the scale is alpha / rank.
        alpha: f64,
        /// Dropout probability on the adapter's inputs.
        dropout: f64,
        /// Modules to adapt, by PEFT name.
        targets: Vec<String>,
        /// Fraction of the layers that are adapted, counted from the top; 1 means all.
        layer_share: f64,
        /// The exact layers to adapt, from 0, instead of a fraction.
        layers: Layers,
        /// `adamw` or `lion`.
        optimizer: String,
        /// Peak learning rate.
        learning_rate: f64,
        /// Decay of the optimiser's two moments.
        betas: [f64; 2],
        /// AdamW's epsilon, added to the denominator.
        epsilon: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
        /// `cosine`, `linear` or `constant`.
        schedule: String,
        /// Fraction of the steps used for warm-up.
        warmup_ratio: f64,
        /// Passes over the pairs.
        epochs: usize,
        /// Minimum number of optimiser steps: few pairs are passed over more often.
        min_steps: usize,
        /// Minutes of training after which no further round begins.
        max_minutes: u64,
        /// Maximum number of rounds: after each, what the candidate gets wrong is trained again.
        rounds: usize,
        /// Pairs in a batch.
        batch_pairs: usize,
        /// Batches whose gradients are averaged in one optimiser step.
        accumulation: usize,
        /// Maximum number of optimiser steps; 0 means as many as the epochs have.
        max_steps: usize,
        /// Gradient norm at which training ends; 0 disables this.
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
        /// Additional weight of a response's first tokens in the KL and likelihood terms.
        alpha_opening: f64,
        /// Divisor of impact scores.
        gamma: f64,
        /// `sigmoid` or `ipo`.
        preference_loss: String,
        /// How impact scores become weights: `mean-one`, `sum-one` or `uniform`.
        weight_scale: String,
        /// Pairs in the gold batch.
        gold_pairs: usize,
        /// Maximum number of pairs to train on; 0 means all.
        max_pairs: usize,
        /// Maximum number of everyday prompts whose answers by the base are kept in training; 0 means
        /// none.
        controls: usize,
        /// Whether some prompts are trained after a system prompt or an earlier turn.
        situations: bool,
        /// Maximum number of tokens of a pair's prompt and response.
        max_pair_tokens: usize,
        /// Memory limit of a run, in MB; defaults to the memory that is free.
        memory_mb: u64,
        /// Fraction of compute time given to training while requests are running.
        share: f64,
        /// Niceness of the threads that learn, from 0 to 19.
        nice: u8,
        /// Whether a layer's activations are recomputed for its gradients instead of kept: `auto`,
        /// `on` or `off`.
        recompute: String,
        /// What computes the steps: `local` or `tinker`.
        engine: String,
        /// `[train.tinker]`
        tinker: RawTinker,
        /// `[train.corrective]`
        corrective: RawCorrective,
    }
}

section! {
    /// The distributed engine that trains, if `train.engine` is `tinker`.
    RawTinker {
        /// Its root, such as `http://trainer:8000`.
        url: String,
        /// The name it has for the base model; defaults to the only one it has.
        model: String,
        /// Environment variable that holds its key.
        key_env: String,
    }
}

section! {
    /// The endpoint that writes compliant responses for pairs in which both responses violate.
    RawCorrective {
        /// Base URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:8000/v1`.
        url: String,
        /// Model to request.
        model: String,
        /// Environment variable that holds the endpoint's key.
        key_env: String,
        /// Template of the request; `policy` and `prompt` are filled in.
        template: String,
        /// Maximum number of tokens in a response.
        max_tokens: usize,
        /// Maximum number of attempts at a compliant response.
        attempts: usize,
        /// Maximum number of concurrent requests.
        concurrency: usize,
    }
}

section! {
    /// How the gate measures a candidate.
    RawGate {
        /// Fraction of prompts held out from training, between 0 and 1.
        holdout_ratio: f64,
        /// Maximum number of an exam's prompts that rules govern.
        max_prompts: usize,
        /// Prompts, and prompts of each rule, that a verdict needs at least.
        min_prompts: usize,
        /// Fraction of answers that must comply with each rule, 0 to 1; a policy may ask for more or
        /// less.
        min_compliance: f64,
        /// Largest fraction of control answers that may be diverted, 0 to 1; a policy may set its
        /// own.
        max_control_diverted: f64,
        /// Refuse a candidate that brings one policy and misses another that is not met now either;
        /// by default it serves, and the server stays misaligned.
        all_or_nothing: bool,
        /// Maximum number of tokens per generated response.
        max_tokens: usize,
    }
}

section! {
    /// How answers to clients are judged against the active policies, after they were sent.
    RawCompliance {
        /// Fraction of the answers that is judged, 0 to 1.
        share: f64,
        /// Of those, the fraction that is shown to judges if rules have any, 0 to 1.
        judge_share: f64,
        /// Maximum number of answers waiting to be judged; further ones are dropped and counted.
        queue: usize,
        /// File that gets one JSON line per judgement; none by default.
        decision_log: PathBuf,
        /// Size at which the file is rotated, in MiB.
        decision_log_max_mb: u64,
        /// Number of rotated files kept.
        decision_log_files: usize,
        /// Whether prompts and answers are written to it.
        decision_log_texts: bool,
    }
}

section! {
    /// What generations are asked, and when.
    RawExam {
        /// Maximum number of prompts.
        prompts: usize,
        /// Maximum number of facts.
        facts: usize,
        /// Seconds between two exams of what serves; 0 means never by the clock.
        interval_s: u64,
        /// Whether recent prompts of clients are kept in memory and asked.
        live_prompts: bool,
    }
}

section! {
    /// Pairs that the server makes itself where a rule is missed and has few.
    RawGather {
        /// Whether it does.
        enabled: bool,
        /// Answers drawn for each prompt.
        samples_per_prompt: usize,
        /// Maximum number of pairs.
        max_pairs: usize,
        /// Pairs are gathered for rules with fewer INVERT pairs than this.
        min_conflicts: usize,
    }
}

section! {
    /// When live answers start a realignment.
    RawDrift {
        /// Whether they do.
        enabled: bool,
        /// Judged answers needed at least.
        min_answers: usize,
        /// Newest judged answers looked at.
        window: usize,
        /// Minutes between two realignments that live answers start.
        cooldown_minutes: u64,
    }
}

section! {
    /// OpenTelemetry traces, over OTLP (HTTP, JSON).
    RawTraces {
        /// Base URL of the collector, such as `http://127.0.0.1:4318`; none by default.
        otlp_endpoint: String,
        /// Fraction of the requests traced if the client sends no `traceparent`, 0 to 1.
        share: f64,
        /// `service.name` of the traces.
        service_name: String,
    }
}
