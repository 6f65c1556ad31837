//! The command line. Parsing and printing only; the work is in the modules.

pub mod adapters;
mod flags;
pub mod logs;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use flags::ServeArgs;

use crate::config::{Config, ConfigError, RawConfig, RawPaths, load};

/// Exit code of a command that did what it should.
pub const EXIT_OK: u8 = 0;
/// Exit code when the thing checked failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code for wrong usage or bad input.
pub const EXIT_USAGE: u8 = 2;

/// Why a command could not do its work; the exit code is [`EXIT_USAGE`].
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An adapter or its directory is not usable.
    #[error(transparent)]
    Adapter(#[from] crate::adapter::AdapterError),
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
    version,
    after_help = "\
Settings come from realign.toml, then REALIGN_* variables (REALIGN_SERVER__PORT=9000), then flags.
Exit codes: 0 done, 1 the thing checked failed, 2 wrong usage or bad input."
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GlobalArgs {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Configuration file [default: realign.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Model: a .gguf file, a directory of safetensors, or hf:<owner>/<name>
    #[arg(long, global = true, value_name = "MODEL")]
    pub model: Option<String>,
    /// Directory of policy files [default: policies]
    #[arg(long, global = true, value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Directory of preference data [default: preferences]
    #[arg(long, global = true, value_name = "DIR")]
    pub preferences: Option<PathBuf>,
    /// Directory of published adapters [default: adapters]
    #[arg(long, global = true, value_name = "DIR")]
    pub adapters: Option<PathBuf>,
    /// Directory of the database and checkpoints [default: state]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

impl GlobalArgs {
    /// The flags as the topmost layer of the configuration.
    pub fn to_raw(&self) -> RawConfig {
        let paths = RawPaths {
            policies: self.policies.clone(),
            preferences: self.preferences.clone(),
            adapters: self.adapters.clone(),
            state: self.state.clone(),
        };
        RawConfig {
            model: self.model.clone(),
            paths: Some(paths),
            ..RawConfig::default()
        }
    }

    /// The configuration with these flags on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        Config::resolve(load(self.config.as_deref(), &self.to_raw())?)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the model, watch the policies, realign when they change
    Serve(ServeArgs),
    /// Look at published adapters
    #[command(subcommand)]
    Adapters(adapters::AdaptersCommand),
}
