//! Configuration of a server in code.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Server, ServerError};
use crate::api::{LogFilterError, LogPort};
use crate::config::{
    Config, ConfigError, RawConfig, RawEngine, RawPaths, RawServer, load_embedded,
};

/// Settings of a [`Server`] that is about to be built; see [`Server::builder`].
///
/// Settings that are not set have the defaults listed in `realign.example.toml`. Directories are
/// relative to the working directory. Each server needs its own state and adapter directories.
///
/// ```
/// # use realign_server::serve::Server;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let builder = Server::builder()
///     .model("models/tiny.gguf")
///     .policies("/srv/app/policies")
///     .settings("[engine]\nkv_cache_mb = 64");
/// let config = builder.configuration()?;
/// assert_eq!(config.engine.kv_cache_mb, Some(64));
/// assert_eq!(config.paths.state.to_str(), Some("state"));
///
/// let wrong = Server::builder().settings("[engine]\nkv_cache = 64");
/// let error = wrong.configuration().unwrap_err().to_string();
/// assert!(error.contains("did you mean \"kv_cache_mb\"?"), "{error}");
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ServerBuilder {
    file: Option<PathBuf>,
    settings: Option<String>,
    config: Option<Config>,
    own: RawConfig,
    logs: Option<Arc<dyn LogPort>>,
}

impl ServerBuilder {
    /// The model: a `.gguf` file, a directory of safetensors, or `hf:<owner>/<name>`.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.own.model = Some(model.into());
        self
    }

    /// The name that clients send as `model`. Default: the model's own name.
    pub fn model_name(mut self, name: impl Into<String>) -> Self {
        self.own.model_name = Some(name.into());
        self
    }

    /// The device to compute on: `auto`, `cpu` or `cuda:N`.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.engine().device = Some(device.into());
        self
    }

    /// CPU threads of the engine. Loading and training use rayon's global thread pool, which
    /// belongs to the application.
    pub fn threads(mut self, threads: usize) -> Self {
        self.engine().threads = Some(threads);
        self
    }

    /// Directory of policy files, which is watched for changes; it may be missing or empty.
    pub fn policies(mut self, directory: impl Into<PathBuf>) -> Self {
        self.paths().policies = Some(directory.into());
        self
    }

    /// Directory of preference data.
    pub fn preferences(mut self, directory: impl Into<PathBuf>) -> Self {
        self.paths().preferences = Some(directory.into());
        self
    }

    /// Directory of published adapters; created if it is missing.
    pub fn adapters(mut self, directory: impl Into<PathBuf>) -> Self {
        self.paths().adapters = Some(directory.into());
        self
    }

    /// Directory of the database and of checkpoints; created if it is missing.
    pub fn state(mut self, directory: impl Into<PathBuf>) -> Self {
        self.paths().state = Some(directory.into());
        self
    }

    /// IP address that [`Server::run`] listens on, or `unix:` and the path of a socket;
    /// [`Server::router`] ignores it.
    pub fn host(mut self, address: impl Into<String>) -> Self {
        self.listener().host = Some(address.into());
        self
    }

    /// Port that [`Server::run`] listens on; 0 picks a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.listener().port = Some(port);
        self
    }

    /// Key that clients must send as a bearer token, given as the key itself or as
    /// `sha256:<digest>`.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.listener().api_key = Some(key.into());
        self
    }

    /// Key that operators must send, given as the key itself or as `sha256:<digest>`.
    pub fn admin_key(mut self, key: impl Into<String>) -> Self {
        self.listener().admin_key = Some(key.into());
        self
    }

    /// Any settings, as the text of a `realign.toml`. They override [`ServerBuilder::config_file`]
    /// and are overridden by the builder's other methods.
    pub fn settings(mut self, toml: impl Into<String>) -> Self {
        self.settings = Some(toml.into());
        self
    }

    /// Reads this file, then `REALIGN_*` environment variables, as the command line does;
    /// everything else set on the builder overrides both. Without a file the environment is not
    /// read.
    pub fn config_file(mut self, file: impl AsRef<Path>) -> Self {
        self.file = Some(file.as_ref().to_owned());
        self
    }

    /// The whole configuration, such as one from [`ServerBuilder::configuration`] with changes.
    /// It cannot be combined with other settings, so that none is silently ignored.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Backs `/admin/v1/log-level`. Without it those routes report that logging is controlled by
    /// the application: the server emits `tracing` events and installs no subscriber.
    pub fn log_control(mut self, logs: Arc<dyn LogPort>) -> Self {
        self.logs = Some(logs);
        self
    }

    /// The configuration that [`ServerBuilder::build`] would use. Reads the configuration file, if
    /// one is set, and nothing else.
    ///
    /// # Errors
    /// [`ConfigError`]: an unknown key, a value out of range, an unreadable file.
    pub fn configuration(&self) -> Result<Config, ConfigError> {
        self.configuration_from(load_embedded)
    }

    fn configuration_from(&self, load: Load) -> Result<Config, ConfigError> {
        let Some(config) = &self.config else {
            let (file, settings) = (self.file.as_deref(), self.settings.as_deref());
            return Config::resolve(load(file, settings, &self.own)?);
        };
        let only_config =
            self.own == RawConfig::default() && self.file.is_none() && self.settings.is_none();
        if only_config {
            return Ok(config.clone());
        }
        Err(ConfigError::Read(
            "a whole configuration was given (ServerBuilder::config), and other settings with \
             it: change the configuration instead"
                .into(),
        ))
    }

    /// Loads the model, opens state and adapters, starts the engine and the control loop. Blocks
    /// for seconds: within asynchronous code, call it before anything is served or on a blocking
    /// thread.
    ///
    /// # Errors
    /// [`ServerError`] if anything is unusable; nothing is left running then.
    pub fn build(self) -> Result<Server, ServerError> {
        let config = self.configuration()?;
        let logs = self.logs.unwrap_or_else(|| Arc::new(ApplicationLogs));
        Server::load(config, logs)
    }

    fn engine(&mut self) -> &mut RawEngine {
        self.own.engine.get_or_insert_default()
    }

    fn paths(&mut self) -> &mut RawPaths {
        self.own.paths.get_or_insert_default()
    }

    fn listener(&mut self) -> &mut RawServer {
        self.own.server.get_or_insert_default()
    }
}

impl std::fmt::Debug for ServerBuilder {
    /// Shows only where settings come from, because keys are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("model", &self.own.model)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Reads a file, settings, and what was set in code.
type Load = fn(Option<&Path>, Option<&str>, &RawConfig) -> Result<RawConfig, ConfigError>;

/// Used when the application controls logging and did not call [`ServerBuilder::log_control`].
struct ApplicationLogs;

impl LogPort for ApplicationLogs {
    fn filter(&self) -> String {
        "set by the application".into()
    }

    fn set_filter(&self, _: &str) -> Result<(), LogFilterError> {
        Err(LogFilterError::NotOurs)
    }
}

#[cfg(test)]
mod tests;
