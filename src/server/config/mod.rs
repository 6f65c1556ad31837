//! Configuration: `realign.toml`, then `REALIGN_*` variables, then flags; later ones win.
//!
//! [`load`] reads a [`RawConfig`], [`Config::resolve`] checks it and fills in defaults. The rest of
//! the program sees only [`Config`], which never changes.

mod address;
pub mod admin_key;
mod exam;
mod fleet;
pub mod keys;
mod load;
mod observe;
mod raw;
mod responses;
mod retention;
mod server;
mod starter;
mod store;
#[cfg(test)]
mod tests;
mod train;
mod weights;

use std::path::PathBuf;
use std::time::Duration;

pub use address::Address;
pub use exam::{DriftConfig, ExamConfig, GatherConfig};
pub use fleet::{FleetConfig, JudgeConfig, TargetConfig, TargetKeys};
#[cfg(test)]
pub(crate) use load::load_embedded_alone;
pub(crate) use load::nearest;
pub use load::{load, load_embedded, recipe_file};
pub use observe::{ComplianceConfig, TracesConfig};
pub use raw::{
    Layers, RawAdapters, RawAlignment, RawCompliance, RawConfig, RawCorrective, RawDrift,
    RawEngine, RawExam, RawFleet, RawGate, RawGather, RawLimits, RawPaths, RawResponses,
    RawRetention, RawServer, RawStore, RawTarget, RawTinker, RawTraces, RawTrain, RawWatch,
};
pub use responses::ResponsesConfig;
pub use retention::{OnMissing, RetentionConfig};
pub use server::{LimitsConfig, ServerConfig, TlsFiles, UnknownFields};
pub use starter::starter_file;
pub use store::StoreConfig;
pub use train::{TrainConfig, TrainEngine};
pub use weights::WeightsPlace;

use realign_align::train::recipe::RecipeError;
use realign_backend::DeviceChoice;
use realign_model::{KvType, ModelChoice, Precision, Quantisation};

/// The file read when none is named.
pub(crate) const DEFAULT_FILE: &str = "realign.toml";
/// The model served when none is named.
pub(crate) const DEFAULT_MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
/// Every key with its default and its meaning, as a file to copy; tests hold it against [`Config`].
pub const EXAMPLE: &str = include_str!("../../../realign.example.toml");

/// Why a configuration is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A source cannot be read or has a key or a type that is not allowed.
    #[error("{0}")]
    Read(String),
    /// A value is outside its range.
    #[error("{key} is {value}; {allowed}")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Clients from other machines would be let in without a key, and no setting says that they may be.
    #[error(
        "server.host is {0}, which other machines reach, and there is no client key: set one \
         (server.api_keys_file; `realign keys new NAME` makes one), or set server.open = true to \
         let everyone in"
    )]
    Open(std::net::IpAddr),
    /// `store.url` names no store.
    #[error("store.url: {0}")]
    Store(#[from] realign_store::UrlError),
    /// A setting of `[train]` cannot be trained with.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

/// The resolved configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Model: a `.gguf` file, a directory of safetensors, or `hf:<owner>/<name>`.
    pub model: String,
    /// A `tokenizer.json` instead of the tokenizer in the model's own files.
    pub tokenizer: Option<PathBuf>,
    /// The name clients use; `None` is the model's own.
    pub model_name: Option<String>,
    /// Whether clients are served; otherwise only operators are listened to.
    pub clients: bool,
    /// Where and how to listen.
    pub server: ServerConfig,
    /// What clients may ask for at most.
    pub limits: LimitsConfig,
    /// Bounds of the responses that are kept; `None` if none are.
    pub responses: Option<ResponsesConfig>,
    /// Bounds of the engine.
    pub engine: EngineConfig,
    /// Directories.
    pub paths: Paths,
    /// What happens without the generation that should serve.
    pub on_missing: OnMissing,
    /// What servers share; `None` for a server by itself.
    pub store: Option<StoreConfig>,
    /// The engines behind a gateway; `None` without any.
    pub fleet: Option<FleetConfig>,
    /// What is kept.
    pub retention: RetentionConfig,
    /// How policy files are watched.
    pub watch: WatchConfig,
    /// Whether clients get 503 while what serves is not aligned.
    pub refuse_unaligned: bool,
    /// How adapters are trained.
    pub train: TrainConfig,
    /// How a candidate is measured.
    pub gate: GateConfig,
    /// How answers to clients are judged.
    pub compliance: ComplianceConfig,
    /// What an exam asks, and when.
    pub exam: ExamConfig,
    /// Pairs that the server makes itself.
    pub gather: GatherConfig,
    /// When live answers start a realignment.
    pub drift: DriftConfig,
    /// Where traces go.
    pub traces: TracesConfig,
}

/// What computes answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// This crate's own engine: adapters stay unmerged and swap at once.
    Native,
    /// mistralrs, in builds with that feature: a copy of the weights for each generation.
    Mistralrs,
}

/// Bounds of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// What computes.
    pub device: DeviceChoice,
    /// What computes answers.
    pub kind: EngineKind,
    /// Most copies of the weights at once, where each generation needs one of its own.
    pub copies: usize,
    /// What the native engine's matrices of safetensors are quantised to while they are loaded.
    pub quantisation: Option<Quantisation>,
    /// The same for mistralrs, by its name for it.
    pub isq: Option<String>,
    /// Most tokens of prompt and completion; `None` is the model's own limit.
    pub max_model_len: Option<usize>,
    /// Most sequences in a batch.
    pub max_running: usize,
    /// Most sequences that wait.
    pub max_waiting: usize,
    /// Memory for the KV cache, in MiB; `None`: a share of what is free.
    pub kv_cache_mb: Option<usize>,
    /// Elements of the KV cache on a CPU.
    pub kv_type: KvType,
    /// Most prompt tokens in one step.
    pub prefill_budget_tokens: usize,
    /// Time that a step with streams should take at most; `None`: no bound.
    pub step_target: Option<Duration>,
    /// Whether text that a grammar forces is appended without being computed token by token.
    pub jump_forward: bool,
    /// Most tokens of a draft; 0 makes none.
    pub draft_tokens: usize,
    /// CPU threads; `None` is all cores.
    pub threads: Option<usize>,
    /// Where packed weights are kept.
    pub weights_cache: WeightsPlace,
    /// Whether a CUDA device runs decoding steps as they were recorded.
    pub cuda_graphs: bool,
    /// The arithmetic of weights in bfloat16 on a CPU.
    pub precision: Precision,
}

/// Directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Policy files.
    pub policies: PathBuf,
    /// Preference data.
    pub preferences: PathBuf,
    /// Most preference data that a server holds, in bytes of memory.
    pub max_preferences_bytes: u64,
    /// Published adapters.
    pub adapters: PathBuf,
    /// Database and checkpoints.
    pub state: PathBuf,
}

impl Paths {
    /// The state database.
    pub fn database(&self) -> PathBuf {
        self.state.join("realign.db")
    }

    /// The file with the name that a server gave itself in a store.
    pub(crate) fn server_name(&self) -> PathBuf {
        self.state.join("server-name")
    }

    /// The file with the operators' key, which the server makes if the configuration has none.
    pub fn admin_key(&self) -> PathBuf {
        self.state.join("admin-key")
    }
}

/// How policy files are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchConfig {
    /// Quiet time after a change, in milliseconds.
    pub debounce_ms: u64,
    /// Time that files must be unchanged before they are acted upon, in milliseconds.
    pub settle_ms: u64,
    /// Time between looks without notifications, in milliseconds.
    pub poll_ms: u64,
}

/// How a candidate is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct GateConfig {
    /// Share of prompts held out from training.
    pub holdout_ratio: f64,
    /// Most prompts of an exam that rules govern.
    pub max_prompts: usize,
    /// Prompts, and prompts of each rule, that a verdict needs at least.
    pub min_prompts: usize,
    /// Share of answers that must comply with each rule where its policy does not say, 0 to 1.
    pub min_compliance: f64,
    /// Largest share of control answers that may be diverted where no policy says, 0 to 1.
    pub max_control_diverted: f64,
    /// Whether one policy that is not met keeps a candidate from serving that brings others.
    pub all_or_nothing: bool,
    /// Most tokens per generated response.
    pub max_tokens: usize,
}

impl Config {
    /// The model and its tokenizer, as they are loaded.
    pub fn model_choice(&self) -> ModelChoice<'_> {
        ModelChoice {
            model: &self.model,
            tokenizer: self.tokenizer.as_deref(),
            quantisation: self.engine.quantisation,
            weights_cache: self.engine.weights_cache.cache(),
        }
    }

    /// The configuration of a server that publishes for others and serves no clients itself.
    ///
    /// # Errors
    /// [`ConfigError`] if no other server could get what it publishes, or it may not publish.
    pub fn without_clients(self) -> Result<Self, ConfigError> {
        store::check_control(self.store.as_ref(), self.fleet.is_some())?;
        Ok(Self {
            clients: false,
            ..self
        })
    }

    /// Checks values and fills in defaults.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and what is allowed.
    pub fn resolve(raw: RawConfig) -> Result<Self, ConfigError> {
        let raw_paths = raw.paths.unwrap_or_default();
        let adapters_given = raw_paths.adapters.is_some();
        let mut paths = resolve_paths(raw_paths);
        let fleet = raw.fleet.unwrap_or_default();
        let shared = (raw.store.unwrap_or_default(), &fleet);
        let store = store::resolve(shared, &mut paths, adapters_given)?;
        let fleet = fleet::resolve(fleet, &paths.adapters)?;
        let refuse_unaligned = resolve_alignment(raw.alignment.unwrap_or_default())?;
        store::check_follower(store.as_ref(), refuse_unaligned)?;
        Ok(Self {
            model: raw.model.unwrap_or_else(|| DEFAULT_MODEL.into()),
            tokenizer: raw.tokenizer,
            model_name: raw.model_name,
            clients: true,
            server: server::resolve(raw.server.unwrap_or_default())?,
            limits: server::resolve_limits(&raw.limits.unwrap_or_default())?,
            responses: responses::resolve(&raw.responses.unwrap_or_default())?,
            engine: resolve_engine(raw.engine.unwrap_or_default())?,
            paths,
            store,
            fleet,
            on_missing: retention::resolve_adapters(&raw.adapters.unwrap_or_default())?,
            retention: retention::resolve(&raw.retention.unwrap_or_default()),
            watch: resolve_watch(raw.watch.unwrap_or_default())?,
            refuse_unaligned,
            train: TrainConfig::resolve(raw.train.unwrap_or_default())?,
            gate: resolve_gate(raw.gate.unwrap_or_default())?,
            compliance: observe::resolve(raw.compliance.unwrap_or_default())?,
            exam: exam::resolve(raw.exam.unwrap_or_default())?,
            gather: exam::resolve_gather(raw.gather.unwrap_or_default())?,
            drift: exam::resolve_drift(raw.drift.unwrap_or_default())?,
            traces: observe::resolve_traces(raw.traces.unwrap_or_default())?,
        })
    }
}

fn resolve_engine(raw: RawEngine) -> Result<EngineConfig, ConfigError> {
    let one = |key, value| at_least(1, key, value, "at least 1");
    let device = raw
        .device
        .unwrap_or_else(|| DeviceChoice::default().to_string());
    let device = device
        .parse::<DeviceChoice>()
        .map_err(|allowed| ConfigError::Value {
            key: "engine.device",
            value: format!("{device:?}"),
            allowed,
        })?;
    let kind = match raw.kind.as_deref() {
        None | Some("native") => EngineKind::Native,
        Some("mistralrs") => EngineKind::Mistralrs,
        Some(other) => {
            return Err(ConfigError::Value {
                key: "engine.kind",
                value: other.into(),
                allowed: "`native` or `mistralrs`",
            });
        }
    };
    let precision = match raw.precision.as_deref() {
        None | Some("f32") => Precision::Exact,
        Some("mixed") => Precision::Mixed,
        Some(other) => {
            return Err(ConfigError::Value {
                key: "engine.precision",
                value: other.into(),
                allowed: "`f32` or `mixed`",
            });
        }
    };
    Ok(EngineConfig {
        device,
        kind,
        copies: at_least(2, "engine.copies", raw.copies.unwrap_or(2), "at least 2")?,
        quantisation: quantisation(kind, raw.isq.as_deref())?,
        isq: raw.isq.filter(|_| kind == EngineKind::Mistralrs),
        max_model_len: raw
            .max_model_len
            .map(|n| at_least(16, "engine.max_model_len", n, "at least 16"))
            .transpose()?,
        max_running: one("engine.max_running", raw.max_running.unwrap_or(64))?,
        max_waiting: one("engine.max_waiting", raw.max_waiting.unwrap_or(256))?,
        kv_cache_mb: raw
            .kv_cache_mb
            .map(|mb| one("engine.kv_cache_mb", mb))
            .transpose()?,
        kv_type: kv_type(raw.kv_type)?,
        prefill_budget_tokens: at_least(
            16,
            "engine.prefill_budget_tokens",
            raw.prefill_budget_tokens.unwrap_or(256),
            "at least 16",
        )?,
        step_target: match raw.step_target_ms.unwrap_or(50) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        },
        jump_forward: raw.jump_forward.unwrap_or(true),
        draft_tokens: drafted(raw.draft_tokens.unwrap_or(8))?,
        threads: raw.threads.map(|n| one("engine.threads", n)).transpose()?,
        weights_cache: WeightsPlace::resolve(raw.weights_cache, raw.weights_cache_gb)?,
        cuda_graphs: raw.cuda_graphs.unwrap_or(true),
        precision,
    })
}

fn kv_type(raw: Option<String>) -> Result<KvType, ConfigError> {
    let Some(name) = raw else {
        return Ok(KvType::default());
    };
    let known = KvType::ALL.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, kind)| kind).ok_or(ConfigError::Value {
        key: "engine.kv_type",
        value: name,
        allowed: "`f32`, `f16` or `q8`",
    })
}

fn resolve_paths(raw: RawPaths) -> Paths {
    Paths {
        policies: raw.policies.unwrap_or_else(|| "policies".into()),
        preferences: raw.preferences.unwrap_or_else(|| "preferences".into()),
        max_preferences_bytes: raw
            .max_preferences_mb
            .unwrap_or(2048)
            .saturating_mul(1 << 20),
        adapters: raw.adapters.unwrap_or_else(|| "adapters".into()),
        state: raw.state.unwrap_or_else(|| "state".into()),
    }
}

fn resolve_watch(raw: RawWatch) -> Result<WatchConfig, ConfigError> {
    let poll_ms = raw.poll_ms.unwrap_or(2000);
    if poll_ms < 100 {
        return Err(ConfigError::Value {
            key: "watch.poll_ms",
            value: poll_ms.to_string(),
            allowed: "at least 100",
        });
    }
    Ok(WatchConfig {
        debounce_ms: raw.debounce_ms.unwrap_or(250),
        settle_ms: raw.settle_ms.unwrap_or(1500),
        poll_ms,
    })
}

/// Whether clients are refused while what serves is not aligned.
fn resolve_alignment(raw: RawAlignment) -> Result<bool, ConfigError> {
    match raw.when_unaligned.as_deref() {
        None | Some("serve") => Ok(false),
        Some("refuse") => Ok(true),
        Some(other) => Err(ConfigError::Value {
            key: "alignment.when_unaligned",
            value: other.into(),
            allowed: "`serve` or `refuse`",
        }),
    }
}

fn resolve_gate(raw: RawGate) -> Result<GateConfig, ConfigError> {
    let holdout_ratio = raw.holdout_ratio.unwrap_or(0.15);
    if !(holdout_ratio > 0.0 && holdout_ratio < 1.0) {
        return Err(ConfigError::Value {
            key: "gate.holdout_ratio",
            value: holdout_ratio.to_string(),
            allowed: "above 0 and below 1",
        });
    }
    let one = |key, value| at_least(1, key, value, "at least 1");
    Ok(GateConfig {
        holdout_ratio,
        max_prompts: one("gate.max_prompts", raw.max_prompts.unwrap_or(80))?,
        min_prompts: one("gate.min_prompts", raw.min_prompts.unwrap_or(8))?,
        min_compliance: ratio("gate.min_compliance", raw.min_compliance.unwrap_or(0.9))?,
        max_control_diverted: ratio(
            "gate.max_control_diverted",
            raw.max_control_diverted.unwrap_or(0.05),
        )?,
        all_or_nothing: raw.all_or_nothing.unwrap_or(false),
        max_tokens: one("gate.max_tokens", raw.max_tokens.unwrap_or(64))?,
    })
}

fn ratio(key: &'static str, value: f64) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value {
        key,
        value: value.to_string(),
        allowed: "from 0 to 1",
    })
}

/// What the native engine quantises to.
fn quantisation(
    kind: EngineKind,
    named: Option<&str>,
) -> Result<Option<Quantisation>, ConfigError> {
    let Some(name) = named.filter(|_| kind == EngineKind::Native) else {
        return Ok(None);
    };
    let read = name.parse::<Quantisation>();
    read.map(Some).map_err(|_unknown| ConfigError::Value {
        key: "engine.isq",
        value: format!("{name:?}"),
        allowed: "the native engine has `q8_0`, `q6_k`, `q5_k`, `q4_k`, `q4_1` and `q4_0`; \
                  mistralrs (engine.kind) has others",
    })
}

/// Most tokens of a draft: a step has a row for each.
fn drafted(tokens: usize) -> Result<usize, ConfigError> {
    match tokens {
        0..=32 => Ok(tokens),
        _ => Err(ConfigError::Value {
            key: "engine.draft_tokens",
            value: tokens.to_string(),
            allowed: "0 to 32",
        }),
    }
}

fn at_least(
    least: usize,
    key: &'static str,
    value: usize,
    allowed: &'static str,
) -> Result<usize, ConfigError> {
    if value < least {
        return Err(ConfigError::Value {
            key,
            value: value.to_string(),
            allowed,
        });
    }
    Ok(value)
}
