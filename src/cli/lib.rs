//! The command line. Parsing and printing only; the work is in the modules.

pub mod adapters;
pub mod bench;
mod bench_shape;
mod demo;
mod doctor;
pub mod eval;
mod exam;
mod flags;
mod fleet;
mod gather;
mod init;
pub mod keys;
mod learning;
pub mod logs;
pub mod model;
mod oracle;
mod plan;
pub mod policy;
mod preferences;
mod progress;
mod recipes;
pub mod remote;
mod run;
pub mod score;
mod top;
pub mod train;
pub mod triage;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

pub use flags::{ControlArgs, GatewayArgs, ServeArgs};
pub use run::main;

use realign_core::files::{self, Limit};
use realign_server::config::{Config, ConfigError, RawConfig, RawEngine, RawPaths, load};

/// Maximum size of a text file that a command is given.
const MAX_INPUT: Limit = Limit::mib(1024);
/// Exit code of a command that did what it should.
pub(crate) const EXIT_OK: u8 = 0;
/// Exit code when the thing checked failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Exit code for wrong usage or bad input.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Why a command could not do its work; the exit code is [`EXIT_USAGE`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An adapter or its directory is not usable.
    #[error(transparent)]
    Adapter(#[from] realign_engine::adapter::AdapterError),
    /// A policy set is not valid, or its examples fail.
    #[error("the policies are not usable:\n{0}")]
    Policy(#[from] realign_align::policy::PolicyErrors),
    /// The preference data cannot be read.
    #[error(transparent)]
    Preferences(#[from] realign_align::preferences::DatasetError),
    /// The recipe cannot be trained with.
    #[error(transparent)]
    Recipe(#[from] realign_align::train::recipe::RecipeError),
    /// Verdicts of shards cannot be written or merged.
    #[error(transparent)]
    Verdicts(#[from] triage::VerdictsError),
    /// The state database is not usable.
    #[error(transparent)]
    State(#[from] realign_server::state::StateError),
    /// Another process uses a directory.
    #[error(transparent)]
    Lock(#[from] realign_core::lock::LockError),
    /// What exceeds the limits could not be removed.
    #[error(transparent)]
    Collect(#[from] realign_server::control::CollectError),
    /// Hidden states cannot be read.
    #[error(transparent)]
    Features(#[from] realign_align::oracle::features::FeatureError),
    /// The learning pipeline made no candidate.
    #[error(transparent)]
    Learn(#[from] realign_align::pipeline::PipelineError),
    /// Labelled data cannot be evaluated on.
    #[error("{0}")]
    Eval(String),
    /// The demo did not come to its end.
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    /// No policy can be drafted from what was given.
    #[error("{0}")]
    Draft(String),
    /// The model is not usable.
    #[error(transparent)]
    Model(#[from] realign_model::ModelError),
    /// The device that was asked for does not compute.
    #[error(transparent)]
    Device(#[from] realign_backend::DeviceError),
    /// A device was asked for where none computes.
    #[error("--device has no meaning {0}; leave it out")]
    DeviceUnused(&'static str),
    /// A running server did not do what it was asked.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// A benchmark could not be run.
    #[error(transparent)]
    Bench(#[from] realign_lab::bench::BenchError),
    /// A key or its name is not usable.
    #[error("{0}")]
    Key(&'static str),
    /// The operators' key of a server cannot be read.
    #[error(transparent)]
    AdminKey(#[from] realign_server::config::admin_key::AdminKeyError),
    /// A path is not there or cannot be looked at.
    #[error("{}: {source}; give {wanted}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wanted instead.
        wanted: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Output could not be written.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
    /// A result could not be written as JSON.
    #[error("JSON output: {0}")]
    Json(#[from] serde_json::Error),
}

/// An OpenAI-compatible LLM server whose alignment is live: policy file in, compliant model out,
/// nothing restarts.
#[derive(Debug, Parser)]
#[command(
    name = "realign",
    version,
    after_help = "\
Examples:
  realign init                            settings, directories and a policy to edit
  realign doctor                          whether a server would start here
  realign serve                           serve, and realign whenever policies/ changes
  realign policy test                     run the policies' own examples
  realign plan --examples 3               what a realignment would do, with conflicting pairs
  realign exam                            whether what a server serves complies
  realign top                             what a server does now, on a terminal
  realign gather --out pairs.jsonl        pairs that the model makes for rules that have few
  realign train --out my-adapter          the adapter alone, offline
  realign adapters rollback               go back to the generation that served before

Settings come from realign.toml, then REALIGN_* variables (REALIGN_SERVER__PORT=9000), then flags.
Exit codes: 0 done, 1 the thing checked failed, 2 wrong usage or bad input."
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Takes `--device` from where it stands, before or behind the command's name, into the global
    /// flags.
    ///
    /// # Errors
    /// If the command runs no model, or the device does not answer: whatever the command then
    /// computes, it does not compute on another device.
    pub(crate) fn with_device(mut self) -> Result<Self, CliError> {
        let Some(own) = self.command.device() else {
            return match self.global.device {
                Some(_) => Err(CliError::DeviceUnused("here: this command runs no model")),
                None => Ok(self),
            };
        };
        if own.device.is_some() {
            self.global.device = own.device.clone();
        }
        if let Some(given) = &self.global.device {
            let choice = given.parse().map_err(|allowed| ConfigError::Value {
                key: "engine.device",
                value: format!("{given:?}"),
                allowed,
            })?;
            realign_backend::check(choice)?;
        }
        Ok(self)
    }
}

/// Flags that every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct GlobalArgs {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Configuration file [default: realign.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Model: a .gguf file, a directory of safetensors, or hf:<owner>/<name>
    #[arg(long, global = true, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Tokenizer of the model, a tokenizer.json, instead of the one in its own files [default: its
    /// own]. For a .gguf file whose pre-tokenizer is not known; one of another model is refused
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// What computes: auto, cpu or cuda:N [default: auto, a CUDA device if one answers]. Commands
    /// that run no model refuse it
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Directory of policy files [default: policies]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) policies: Option<PathBuf>,
    /// Directory of preference data [default: preferences]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) preferences: Option<PathBuf>,
    /// Directory of published adapters [default: adapters]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) adapters: Option<PathBuf>,
    /// Directory of the database and checkpoints [default: state]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// The device flag, of every command that runs a model. [`Cli::with_device`] moves it to the
/// [`GlobalArgs`].
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct DeviceArgs {
    /// What computes: auto, cpu or cuda:N [default: auto, a CUDA device if one answers]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
}

impl GlobalArgs {
    /// The flags as the topmost layer of the configuration.
    pub(crate) fn to_raw(&self) -> RawConfig {
        let paths = RawPaths {
            policies: self.policies.clone(),
            preferences: self.preferences.clone(),
            max_preferences_mb: None,
            adapters: self.adapters.clone(),
            state: self.state.clone(),
        };
        RawConfig {
            model: self.model.clone(),
            tokenizer: self.tokenizer.clone(),
            paths: Some(paths),
            engine: Some(RawEngine {
                device: self.device.clone(),
                ..RawEngine::default()
            }),
            ..RawConfig::default()
        }
    }

    /// The configuration with these flags on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn resolve(&self) -> Result<Config, ConfigError> {
        Config::resolve(load(self.config.as_deref(), &self.to_raw())?)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch a model learn to keep a policy, in a directory of its own
    Demo(demo::DemoArgs),
    /// Make a directory to start from: settings, directories, a policy to edit
    Init(init::InitArgs),
    /// Say whether a server would start here, what is wrong, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Serve the model, watch the policies, realign when they change
    #[command(after_long_help = flags::reference())]
    Serve(ServeArgs),
    /// Watch the policies, realign and publish for other servers, without clients of its own
    #[command(after_help = "\
As serve, with the same configuration and directories, but only operators are listened to: /admin, the page, /health,
/ready and /metrics. The routes of clients answer 404. It needs others that take what it publishes: a store
(store.url = s3://BUCKET/PREFIX) that servers with --follow or a gateway follow, or [[fleet.targets]] of a gateway
that follows paths.adapters. The model is loaded: exams, gathering and training compute with it (docs/fleet.md).
It listens on --admin-port (server.admin_port) if that is set, else on --port.
Examples:
  REALIGN_STORE__URL=s3://models/assistant realign control
  realign control --port 9090         operators on port 9090
  realign serve --follow              a server that follows it, on another machine")]
    Control(ControlArgs),
    /// Serve one address in front of vLLM, SGLang or realign servers, and roll generations out over them
    #[command(after_help = "\
Examples:
  realign gateway                     model_name and [[fleet.targets]] come from realign.toml
  realign gateway --port 8000
Clients ask for model_name. What CURRENT of the adapter directory, or of the store (store.url), names is loaded
on every target, probed, and switched to at once (docs/fleet.md).")]
    Gateway(GatewayArgs),
    /// Ask a gateway about its targets and the rollout; pause, resume, abort and repeat rollouts
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Check, test and compare policy files
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Count which preference pairs conflict with the policies, rule by rule
    Triage(triage::TriageArgs),
    /// Show what a server would do with the policies and the data, without doing it
    Plan(plan::PlanArgs),
    /// Score how much each conflicting pair would help the policies
    Score(score::ScoreArgs),
    /// Train an adapter offline, without serving and without a gate
    Train(train::TrainArgs),
    /// Measure the oracle against labelled data, and TRACE against its ablations and baselines
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Look at published adapters, import one, activate one on a running server
    #[command(subcommand)]
    Adapters(adapters::AdaptersCommand),
    /// Measure whether what a running server serves complies, and what else changed
    #[command(after_help = "\
Exit code 0 if what serves is aligned, 1 if it is not or cannot be told.
Examples:
  realign exam                            sit the exam now
  realign exam --show --json              the last one, as JSON")]
    Exam(exam::ExamArgs),
    /// Show what a running server does: alignment, realignment, compliance, load
    #[command(after_help = "\
Examples:
  realign top                                   every two seconds, until Ctrl-C
  realign top --once                            one frame, for scripts
  realign top --url unix:/run/realign/api.sock  a server that listens on a socket")]
    Top(top::TopArgs),
    /// Make the pairs that a server would make itself, and write them as preference data
    Gather(gather::GatherArgs),
    /// Say how preference data is read
    #[command(subcommand)]
    Preferences(preferences::PreferencesCommand),
    /// Make keys for clients and operators, and open the operators' page
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Look at a model, or fetch one ahead of time
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Measure how fast a model runs here, in this process or over HTTP
    Bench(bench::BenchArgs),
}

impl Command {
    /// Whether it answers a question and ends, so that what happens on the way is of no interest.
    fn is_short(&self) -> bool {
        !matches!(
            self,
            Command::Serve(_)
                | Command::Control(_)
                | Command::Gateway(_)
                | Command::Train(_)
                | Command::Score(_)
                | Command::Gather(_)
                | Command::Eval(_)
                | Command::Bench(_)
        )
    }

    /// The device flag of a command that runs a model; `None` of any other.
    fn device(&self) -> Option<&DeviceArgs> {
        match self {
            Command::Serve(args) => Some(&args.own.device),
            Command::Control(args) => Some(&args.device),
            Command::Triage(args) => Some(&args.device),
            Command::Plan(args) => Some(&args.device),
            Command::Score(args) => Some(&args.device),
            Command::Train(args) => Some(&args.device),
            Command::Gather(args) => Some(&args.device),
            Command::Bench(args) => Some(&args.device),
            // A rule may have a probe, which reads the model's hidden states.
            Command::Policy(policy::PolicyCommand::Test(args)) => Some(&args.device),
            Command::Policy(policy::PolicyCommand::New(args)) => Some(&args.device),
            Command::Policy(policy::PolicyCommand::Explain(args)) => Some(&args.device),
            Command::Policy(
                policy::PolicyCommand::Check { .. }
                | policy::PolicyCommand::Diff { .. }
                | policy::PolicyCommand::Schema
                | policy::PolicyCommand::Clear { .. },
            ) => None,
            Command::Eval(eval::EvalCommand::Oracle(args)) => Some(&args.device),
            Command::Eval(eval::EvalCommand::Trace(args)) => Some(&args.device),
            Command::Eval(eval::EvalCommand::Diversion(args)) => Some(&args.device),
            Command::Eval(eval::EvalCommand::Gate(args)) => Some(&args.device),
            Command::Eval(eval::EvalCommand::Bench(args)) => Some(&args.device),
            Command::Model(model::ModelCommand::Info { device, .. }) => Some(device),
            Command::Model(model::ModelCommand::Fetch { .. })
            | Command::Adapters(_)
            | Command::Demo(_)
            | Command::Doctor(_)
            | Command::Exam(_)
            | Command::Fleet(_)
            | Command::Gateway(_)
            | Command::Init(_)
            | Command::Keys(_)
            | Command::Preferences(_)
            | Command::Top(_) => None,
        }
    }
}

/// The text of a file that a command was given.
fn read_input(path: &Path) -> Result<String, CliError> {
    files::read_text(path, MAX_INPUT).map_err(|source| CliError::Path {
        path: path.to_owned(),
        wanted: "a readable text file",
        source,
    })
}

/// The metadata of a path that a command needs.
fn require(path: &Path, wanted: &'static str) -> Result<std::fs::Metadata, CliError> {
    std::fs::metadata(path).map_err(|source| CliError::Path {
        path: path.to_owned(),
        wanted,
        source,
    })
}

/// Refuses a place to write to where something is already.
fn require_absent(out: Option<&PathBuf>) -> Result<(), CliError> {
    match out.filter(|path| path.exists()) {
        Some(path) => {
            let what = format!("{}: is there already; choose another --out", path.display());
            Err(CliError::Eval(what))
        }
        None => Ok(()),
    }
}

/// A text as one word of a shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
