//! `[server]` and `[limits]`: addresses, keys, TLS, timeouts and limits.

use std::path::PathBuf;
use std::time::Duration;

use super::address::{Address, Host, operators};
use super::keys::{ApiKey, KeyDigest};
use super::{ConfigError, RawLimits, RawServer, at_least};

/// Addresses, keys, TLS and timeouts of the listeners.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where clients reach the server.
    pub address: Address,
    /// Address of a separate listener for operators; `None` means they share the clients' listener.
    pub admin_address: Option<Address>,
    /// Keys that clients may send; without any, and without a file, no key is required.
    pub api_keys: Vec<ApiKey>,
    /// File with more keys.
    pub api_keys_file: Option<PathBuf>,
    /// Whether everyone is let in on an address that other machines reach, without a client key.
    pub open: bool,
    /// Key that operators must send for `/admin`, as given: the key itself or its digest. `None`
    /// means the one in the file [`super::Paths::admin_key`].
    pub admin_key: Option<String>,
    /// Web origins that browsers may call from.
    pub cors_origins: Vec<String>,
    /// Certificate and key; `None` means plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// What happens to fields of requests that a route does not know.
    pub unknown_fields: UnknownFields,
    /// Whether clients may read the model's chat template and special tokens.
    pub tokenizer_info: bool,
    /// Timeout for a request's header and for an idle connection.
    pub header_timeout: Duration,
    /// Timeout for a request's body.
    pub body_timeout: Duration,
    /// Timeout for a client that reads none of its response.
    pub write_timeout: Duration,
    /// Time running requests have to finish after SIGTERM.
    pub drain_timeout: Duration,
}

/// What happens to fields of requests that a route does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are a 400, because they may ask for something.
    #[default]
    Refuse,
    /// They have no effect; the log and a header of the response name them.
    Ignore,
}

impl UnknownFields {
    fn parse(text: Option<&str>) -> Result<Self, ConfigError> {
        match text {
            None | Some("refuse") => Ok(Self::Refuse),
            Some("ignore") => Ok(Self::Ignore),
            Some(other) => Err(ConfigError::Value {
                key: "server.unknown_fields",
                value: other.into(),
                allowed: "`refuse` or `ignore`",
            }),
        }
    }
}

/// PEM files of the listeners' certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the server's certificate first.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

impl ServerConfig {
    /// Whether clients need no key although other machines reach the address.
    pub(crate) fn lets_everyone_in(&self) -> bool {
        let keys = !self.api_keys.is_empty() || self.api_keys_file.is_some();
        !keys && !self.address.is_local()
    }

    /// Refuses to let everyone in unless that was asked for.
    ///
    /// # Errors
    /// [`ConfigError::Open`].
    pub(crate) fn check_open(&self) -> Result<(), ConfigError> {
        match self.address {
            Address::Tcp(address) if self.lets_everyone_in() && !self.open => {
                Err(ConfigError::Open(address.ip()))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for ServerConfig {
    /// Shows only the number or presence of keys, because keys are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig")
            .field("address", &self.address)
            .field("admin_address", &self.admin_address)
            .field("api_keys", &self.api_keys.len())
            .field("api_keys_file", &self.api_keys_file)
            .field("open", &self.open)
            .field("admin_key", &self.admin_key.is_some())
            .field("cors_origins", &self.cors_origins)
            .field("tls", &self.tls)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("unknown_fields", &self.unknown_fields)
            .finish_non_exhaustive()
    }
}

/// Limits on connections and client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Maximum number of open connections on the clients' listener.
    pub max_connections: usize,
    /// Maximum number of open connections on the operators' own listener.
    pub max_admin_connections: usize,
    /// Whether `max_tokens` beyond the context is lowered to what fits; otherwise it is refused.
    pub clamp_max_tokens: bool,
    /// Maximum number of items of an array whose JSON schema sets none; `None` means no limit.
    pub json_items: Option<usize>,
    /// Maximum number of characters of a string whose JSON schema sets none; `None` means no limit.
    pub json_characters: Option<usize>,
    /// Maximum number of concurrent client requests.
    pub max_concurrent_requests: usize,
    /// Maximum number of requests per key and minute; `None` means no limit.
    pub requests_per_minute: Option<u32>,
    /// Maximum number of tokens per key and minute; `None` means no limit.
    pub tokens_per_minute: Option<u32>,
}

pub(super) fn resolve(raw: RawServer) -> Result<ServerConfig, ConfigError> {
    let host = Host::parse("server.host", raw.host.as_deref())?;
    let address = host.with_port(raw.port.unwrap_or(8080));
    let max_body_bytes = raw.max_body_bytes.unwrap_or(2 << 20);
    let admin_key = not_empty("server.admin_key", raw.admin_key)?;
    if let Some(key) = &admin_key {
        KeyDigest::parse(key).map_err(|why| value("server.admin_key", "refused", why))?;
    }
    Ok(ServerConfig {
        admin_address: operators(raw.admin_host.as_deref(), raw.admin_port, &address)?,
        address,
        api_keys: api_keys(raw.api_key, &raw.api_keys.unwrap_or_default())?,
        api_keys_file: raw.api_keys_file,
        open: raw.open.unwrap_or(false),
        admin_key,
        cors_origins: origins(raw.cors_origins.unwrap_or_default())?,
        tls: tls(raw.tls_cert, raw.tls_key)?,
        max_body_bytes: at_least(
            1024,
            "server.max_body_bytes",
            max_body_bytes,
            "at least 1024",
        )?,
        unknown_fields: UnknownFields::parse(raw.unknown_fields.as_deref())?,
        tokenizer_info: raw.tokenizer_info.unwrap_or(false),
        header_timeout: seconds("server.header_timeout_s", raw.header_timeout_s, 30)?,
        body_timeout: seconds("server.body_timeout_s", raw.body_timeout_s, 60)?,
        write_timeout: seconds("server.write_timeout_s", raw.write_timeout_s, 60)?,
        // 0 is allowed: running requests are then cut off at once.
        drain_timeout: Duration::from_secs(raw.drain_timeout_s.unwrap_or(30)),
    })
}

pub(super) fn resolve_limits(raw: &RawLimits) -> Result<LimitsConfig, ConfigError> {
    let one = |key, value| at_least(1, key, value, "at least 1");
    Ok(LimitsConfig {
        max_connections: one(
            "limits.max_connections",
            raw.max_connections.unwrap_or(1024),
        )?,
        clamp_max_tokens: raw.clamp_max_tokens.unwrap_or(true),
        json_items: raw.json_items.filter(|n| *n > 0),
        json_characters: raw.json_characters.filter(|n| *n > 0),
        max_admin_connections: one(
            "limits.max_admin_connections",
            raw.max_admin_connections.unwrap_or(128),
        )?,
        max_concurrent_requests: one(
            "limits.max_concurrent_requests",
            raw.max_concurrent_requests.unwrap_or(512),
        )?,
        requests_per_minute: raw.requests_per_minute.filter(|n| *n > 0),
        tokens_per_minute: raw.tokens_per_minute.filter(|n| *n > 0),
    })
}

fn api_keys(one: Option<String>, more: &[String]) -> Result<Vec<ApiKey>, ConfigError> {
    let mut keys = Vec::new();
    if let Some(key) = not_empty("server.api_key", one)? {
        let digest =
            KeyDigest::parse(&key).map_err(|why| value("server.api_key", "refused", why))?;
        keys.push(ApiKey::new("default", digest));
    }
    for entry in more {
        let key: ApiKey = entry
            .parse()
            .map_err(|why| value("server.api_keys", "refused", why))?;
        if keys.iter().any(|k| k.name == key.name) {
            return Err(value(
                "server.api_keys",
                format!("{:?} twice", key.name),
                "give each key a name of its own",
            ));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn origins(origins: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let usable = |origin: &String| {
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        let plain = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_graphic())
                && !host.contains(['/', '?', '#'])
        };
        origin == "*" || host.is_some_and(plain)
    };
    match origins.iter().find(|origin| !usable(origin)) {
        Some(origin) => Err(value(
            "server.cors_origins",
            format!("{origin:?}"),
            "give origins such as https://app.example (no path), or \"*\"",
        )),
        None => Ok(origins),
    }
}

fn tls(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, ConfigError> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(value(
            "server.tls_key",
            "missing",
            "server.tls_cert needs it",
        )),
        (None, Some(_)) => Err(value(
            "server.tls_cert",
            "missing",
            "server.tls_key needs it",
        )),
    }
}

fn seconds(key: &'static str, given: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    match given.unwrap_or(default) {
        0 => Err(value(key, 0, "at least 1")),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

fn not_empty(key: &'static str, given: Option<String>) -> Result<Option<String>, ConfigError> {
    match given {
        Some(text) if text.trim().is_empty() => {
            Err(value(key, "empty", "leave it out, or give a key"))
        }
        given => Ok(given),
    }
}

pub(super) fn value(key: &'static str, value: impl ToString, allowed: &'static str) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.to_string(),
        allowed,
    }
}
