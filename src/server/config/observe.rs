//! `[compliance]` and `[traces]`: judging of answers, and tracing.

use std::path::PathBuf;

use super::{ConfigError, RawCompliance, RawTraces, at_least};

/// How answers to clients are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct ComplianceConfig {
    /// Fraction of the answers that is judged, 0 to 1.
    pub share: f64,
    /// Of those, the fraction that is shown to judges if rules have any, 0 to 1.
    pub judge_share: f64,
    /// Maximum number of answers waiting to be judged.
    pub queue: usize,
    /// File that judgements are written to, if any.
    pub decision_log: Option<PathBuf>,
    /// Size at which the file is rotated, in bytes.
    pub decision_log_max_bytes: u64,
    /// Number of rotated files kept.
    pub decision_log_files: usize,
    /// Whether prompts and answers are written to it.
    pub decision_log_texts: bool,
}

/// Export of OpenTelemetry traces.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector's base URL; `None` disables tracing.
    pub otlp_endpoint: Option<String>,
    /// Fraction of the requests traced if the client sends no `traceparent`, 0 to 1.
    pub share: f64,
    /// `service.name` of the traces.
    pub service_name: String,
}

pub(super) fn resolve(raw: RawCompliance) -> Result<ComplianceConfig, ConfigError> {
    let texts = raw.decision_log_texts.unwrap_or(false);
    if texts && raw.decision_log.is_none() {
        return Err(ConfigError::Value {
            key: "compliance.decision_log_texts",
            value: "true".into(),
            allowed: "it needs compliance.decision_log: name a file",
        });
    }
    let megabytes = raw.decision_log_max_mb.unwrap_or(64);
    if !(1..=1 << 20).contains(&megabytes) {
        return Err(ConfigError::Value {
            key: "compliance.decision_log_max_mb",
            value: megabytes.to_string(),
            allowed: "from 1 to 1048576",
        });
    }
    Ok(ComplianceConfig {
        share: share("compliance.share", raw.share.unwrap_or(1.0))?,
        judge_share: share("compliance.judge_share", raw.judge_share.unwrap_or(0.1))?,
        queue: at_least(
            1,
            "compliance.queue",
            raw.queue.unwrap_or(1024),
            "at least 1",
        )?,
        decision_log: raw.decision_log,
        decision_log_max_bytes: megabytes << 20,
        decision_log_files: raw.decision_log_files.unwrap_or(5).min(1000),
        decision_log_texts: texts,
    })
}

pub(super) fn resolve_traces(raw: RawTraces) -> Result<TracesConfig, ConfigError> {
    let endpoint = raw
        .otlp_endpoint
        .map(|e| e.trim_end_matches('/').to_string());
    if let Some(endpoint) = &endpoint
        && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
    {
        return Err(ConfigError::Value {
            key: "traces.otlp_endpoint",
            value: format!("{endpoint:?}"),
            allowed: "give the base URL of an OTLP collector over HTTP, such as http://127.0.0.1:4318",
        });
    }
    Ok(TracesConfig {
        otlp_endpoint: endpoint,
        share: share("traces.share", raw.share.unwrap_or(1.0))?,
        service_name: raw.service_name.unwrap_or_else(|| "realign".into()),
    })
}

fn share(key: &'static str, given: f64) -> Result<f64, ConfigError> {
    match given {
        share if (0.0..=1.0).contains(&share) => Ok(share),
        share => Err(ConfigError::Value {
            key,
            value: share.to_string(),
            allowed: "from 0 to 1",
        }),
    }
}
