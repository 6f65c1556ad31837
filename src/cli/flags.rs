//! Flags of the commands that listen.

use super::{DeviceArgs, GlobalArgs};
use realign_server::config::{
    Config, ConfigError, EXAMPLE, RawConfig, RawEngine, RawServer, RawStore, load,
};

/// Flags of `serve`; what is absent comes from the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// What `control` has as well
    #[command(flatten)]
    pub(crate) own: ControlArgs,
    /// Name under which clients ask for the model [default: the model's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Only serve what the store names (store.url), without policies and training [default: off]
    #[arg(long)]
    pub(crate) follow: bool,
}

/// Flags of `control`; what is absent comes from the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ControlArgs {
    /// Address to bind, or unix: and the path of a socket [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// TCP port; 0 picks a free one [default: 8080]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Port of a listener for operators: /admin, /metrics and the web page [default: that of --port]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// What computes answers: native, or mistralrs in builds with that feature [default: native]
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<String>,
    /// Most tokens of prompt and completion together [default: the model's limit]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_model_len: Option<usize>,
    /// Memory for the KV cache, in MiB [default: a quarter of what is free]
    #[arg(long, value_name = "MIB")]
    pub(crate) kv_cache_mb: Option<usize>,
    /// Quantise safetensors while they are loaded: q8_0, q6_k, q5_k, q4_k, q4_1 or q4_0 [default: as they are]
    #[arg(long, value_name = "TYPE")]
    pub(crate) quant: Option<String>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl ServeArgs {
    /// The configuration with these flags and the global ones on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn resolve(&self, global: &GlobalArgs) -> Result<Config, ConfigError> {
        let mut flags = self.own.to_raw(global);
        flags.model_name = self.model_name.clone();
        flags.store = self.follow.then(|| RawStore {
            follow: Some(true),
            ..RawStore::default()
        });
        Config::resolve(load(global.config.as_deref(), &flags)?)
    }
}

impl ControlArgs {
    /// The configuration of a server without clients, with these flags and the global ones on top.
    ///
    /// # Errors
    /// [`ConfigError`], also if no other server could get what this one publishes.
    pub(crate) fn resolve(&self, global: &GlobalArgs) -> Result<Config, ConfigError> {
        let raw = load(global.config.as_deref(), &self.to_raw(global))?;
        Config::resolve(raw)?.without_clients()
    }

    fn to_raw(&self, global: &GlobalArgs) -> RawConfig {
        let mut flags = global.to_raw();
        flags.server = Some(RawServer {
            host: self.host.clone(),
            port: self.port,
            admin_port: self.admin_port,
            ..RawServer::default()
        });
        flags.engine = Some(RawEngine {
            kind: self.engine.clone(),
            max_model_len: self.max_model_len,
            kv_cache_mb: self.kv_cache_mb,
            isq: self.quant.clone(),
            threads: self.threads,
            device: global.device.clone(),
            ..RawEngine::default()
        });
        flags
    }
}

/// Flags of `gateway`; what is absent comes from the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GatewayArgs {
    /// Address to bind, or unix: and the path of a socket [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// TCP port; 0 picks a free one [default: 8080]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Port of a listener for operators only: /admin and /metrics [default: they share the clients'
    /// listener]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// Name under which clients ask for the model
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
}

impl GatewayArgs {
    /// The configuration with these flags and the global ones on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn resolve(&self, global: &GlobalArgs) -> Result<Config, ConfigError> {
        let mut flags = global.to_raw();
        flags.model_name = self.model_name.clone();
        flags.server = Some(RawServer {
            host: self.host.clone(),
            port: self.port,
            admin_port: self.admin_port,
            ..RawServer::default()
        });
        Config::resolve(load(global.config.as_deref(), &flags)?)
    }
}

/// The text below the flags in `realign serve --help`.
pub(crate) fn reference() -> String {
    format!(
        "Configuration: every key of realign.toml, with its default. A key of a section is set in the\n\
         environment as REALIGN_<SECTION>__<KEY>, such as REALIGN_LIMITS__REQUESTS_PER_MINUTE=60.\n\
         REALIGN_LOG sets what is logged (info,realign::api=debug), REALIGN_LOG_FORMAT=json how.\n\
         SIGTERM drains and ends; SIGHUP reads policies, keys and certificate again.\n\n{EXAMPLE}"
    )
}
