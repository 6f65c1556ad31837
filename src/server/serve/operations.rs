//! Setup of access keys, telemetry and compliance judging, and reloading on SIGHUP.

use std::sync::Arc;

use super::ServerError;
use super::tls::Tls;
use crate::api::{Access, Rates};
use crate::config::admin_key;
use crate::config::keys::{self, ApiKey, KeyDigest, KeyFileError};
use crate::config::{ComplianceConfig, Config, ConfigError};
use crate::control::Control;
use crate::telemetry::compliance::{
    Answer, DecisionLog, DecisionLogError, DecisionLogOptions, OnJudged, Policies, Sampling,
};
use crate::telemetry::traces::Exporter;
use crate::telemetry::{Compliance, Telemetry};

fn all_keys(config: &Config) -> Result<Vec<ApiKey>, KeyFileError> {
    let mut all = config.server.api_keys.clone();
    if let Some(file) = &config.server.api_keys_file {
        all.extend(keys::read_file(file)?);
    }
    Ok(all)
}

pub(super) const OPEN: &str =
    "server.open: everyone who reaches this address is let in without a key";

/// The clients' keys, if the configuration lets in whom it says.
pub(super) fn client_keys(config: &Config) -> Result<Vec<ApiKey>, ServerError> {
    config.server.check_open()?;
    let keys = all_keys(config)?;
    if keys.is_empty() && config.server.api_keys_file.is_some() {
        // An empty file must lock everyone out rather than let everyone in.
        return Err(ServerError::Config(ConfigError::Value {
            key: "server.api_keys_file",
            value: "empty".into(),
            allowed: "write at least one name:key into it, or leave it out to let everyone in",
        }));
    }
    Ok(keys)
}

/// The keys of clients and of operators. Makes the operators' key if there is none.
pub(super) fn access(config: &Config) -> Result<Access, ServerError> {
    // Without clients there is no one to let in but operators, who always need a key.
    let keys = match config.clients {
        true => client_keys(config)?,
        false => Vec::new(),
    };
    if config.clients && config.server.lets_everyone_in() {
        tracing::warn!(address = %config.server.address, "{OPEN}");
    }
    let limits = &config.limits;
    let rates = Rates {
        requests: limits.requests_per_minute,
        tokens: limits.tokens_per_minute,
    };
    Ok(Access::new(
        keys,
        admin(config)?,
        rates,
        limits.max_concurrent_requests,
    ))
}

/// The operators' key: the configured one, else that in the state directory.
fn admin(config: &Config) -> Result<KeyDigest, ServerError> {
    let key = match &config.server.admin_key {
        Some(key) => key.clone(),
        None => {
            let path = config.paths.admin_key();
            let key = admin_key::read_or_create(&path)?;
            let path = std::path::absolute(&path).unwrap_or(path);
            tracing::info!(
                path = %path.display(),
                "the operators' key is in this file; `realign keys page` prints a link to their page"
            );
            key
        }
    };
    let refused = |allowed| ConfigError::Value {
        key: "server.admin_key",
        value: "refused".into(),
        allowed,
    };
    Ok(KeyDigest::parse(&key).map_err(refused)?)
}

pub(super) fn telemetry(config: &Config) -> Result<Telemetry, ServerError> {
    let telemetry = Telemetry::new()?;
    let traces = &config.traces;
    let Some(endpoint) = &traces.otlp_endpoint else {
        return Ok(telemetry);
    };
    let exporter = Exporter::start(endpoint, &traces.service_name, traces.share)?;
    Ok(telemetry.with_exporter(exporter))
}

pub(super) fn decision_log(
    config: &ComplianceConfig,
) -> Result<Option<DecisionLog>, DecisionLogError> {
    let options = DecisionLogOptions {
        max_bytes: config.decision_log_max_bytes,
        kept_files: config.decision_log_files,
        include_texts: config.decision_log_texts,
    };
    let path = config.decision_log.as_deref();
    path.map(|path| DecisionLog::open(path, options))
        .transpose()
}

pub(super) fn compliance(
    config: &ComplianceConfig,
    control: &Arc<Control>,
    log: Option<DecisionLog>,
    telemetry: &Arc<Telemetry>,
) -> Result<Option<Arc<Compliance>>, ServerError> {
    if config.share == 0.0 {
        return Ok(None);
    }
    let active = control.clone();
    let policies = Box::new(move || active.loaded_policies());
    let sampling = Sampling {
        share: config.share,
        judge_share: config.judge_share,
        queue: config.queue,
    };
    let judged = control.clone();
    let on_judged = Box::new(move |answer: &Answer, complies| judged.judged(answer, complies));
    let asked = (policies as Policies, on_judged as OnJudged);
    let compliance = Compliance::start(sampling, asked, log, telemetry.clone())?;
    Ok(Some(Arc::new(compliance)))
}

/// Reloads policies, keys and the certificate on every SIGHUP. Anything unusable is logged and
/// leaves the previous one in force.
pub(super) async fn reload(
    hangups: Option<tokio::signal::unix::Signal>,
    config: Arc<Config>,
    control: Arc<Control>,
    access: Arc<Access>,
    tls: Option<Arc<Tls>>,
) {
    let Some(mut hangups) = hangups else { return };
    while hangups.recv().await.is_some() {
        tracing::info!("SIGHUP: reloading policies, keys and certificate");
        control.request_reload();
        let (config, access, tls) = (config.clone(), access.clone(), tls.clone());
        let read = tokio::task::spawn_blocking(move || {
            match all_keys(&config) {
                Ok(keys) if keys.is_empty() && config.server.api_keys_file.is_some() => {
                    tracing::error!("the key file is empty; the old keys stay");
                }
                Ok(keys) => access.replace_keys(keys),
                Err(error) => tracing::error!(%error, "the old keys stay"),
            }
            if let Some(Err(error)) = tls.map(|tls| tls.reload()) {
                tracing::error!(%error, "the old certificate stays");
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "the reload task failed");
        }
    }
}
