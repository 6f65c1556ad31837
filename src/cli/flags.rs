//! Flags of `serve`.

use super::{DeviceArgs, GlobalArgs};
use realign_server::config::{Config, ConfigError, EXAMPLE, RawEngine, RawServer, load};

/// Flags of `serve`; what is absent comes from the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// Address to bind [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub host: Option<String>,
    /// TCP port; 0 picks a free one [default: 8080]
    #[arg(long)]
    pub port: Option<u16>,
    /// Port of a listener for operators only: /admin, /metrics and the web page [default: they
    /// share the clients' listener]
    #[arg(long, value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// Name under which clients ask for the model [default: the model's own]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// What computes answers: native, or mistralrs in builds with that feature [default: native]
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// Most tokens of prompt and completion together [default: the model's limit]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Memory for the KV cache, in MiB [default: 512]
    #[arg(long, value_name = "MIB")]
    pub kv_cache_mb: Option<usize>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What computes
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl ServeArgs {
    /// The configuration with these flags and the global ones on top.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve(&self, global: &GlobalArgs) -> Result<Config, ConfigError> {
        let mut flags = global.to_raw();
        flags.model_name = self.model_name.clone();
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
            threads: self.threads,
            device: global.device.clone(),
            ..RawEngine::default()
        });
        Config::resolve(load(global.config.as_deref(), &flags)?)
    }
}

/// The text below the flags in `realign serve --help`.
pub fn reference() -> String {
    format!(
        "Configuration: every key of realign.toml, with its default. A key of a section is set in the\n\
         environment as REALIGN_<SECTION>__<KEY>, such as REALIGN_LIMITS__REQUESTS_PER_MINUTE=60.\n\
         REALIGN_LOG sets what is logged (info,realign::api=debug), REALIGN_LOG_FORMAT=json how.\n\
         SIGTERM drains and ends; SIGHUP reads policies, keys and certificate again.\n\n{EXAMPLE}"
    )
}
