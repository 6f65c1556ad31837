//! `[fleet]`: the engines behind a gateway.

use std::path::Path;
use std::time::Duration;

use realign_fleet::{CanaryRules, Kind, OnFailure, Rules, WHOLE, addresses};

use super::{ConfigError, RawFleet, RawTarget};

/// Attempts at a piece of work until a target counts as unable.
const ATTEMPTS: u32 = 3;

/// The engines behind a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetConfig {
    /// Which ones.
    pub targets: Vec<TargetConfig>,
    /// Where they find what is in `paths.adapters`.
    pub adapters_path: String,
    /// What happens if one cannot take a generation.
    pub on_failure: OnFailure,
    /// Epochs that one may be behind and still answer where no other can.
    pub max_skew_epochs: u64,
    /// The longest that an answer may take.
    pub max_request: Duration,
    /// Time between two looks.
    pub poll: Duration,
    /// How a share of the requests gets a generation first.
    pub canary: CanaryRules,
    /// What judges answers that have passed.
    pub judge: Option<JudgeConfig>,
}

/// A server that judges a gateway's answers by its policies.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeConfig {
    /// Its root, without a slash at the end.
    pub url: String,
    /// The environment variable with its key.
    pub key_env: Option<String>,
    /// Fraction of the answers that is judged, 0 to 1.
    pub share: f64,
    /// Answers that may wait; further ones are dropped and counted.
    pub queue: usize,
}

impl JudgeConfig {
    /// The key that the environment holds.
    ///
    /// # Errors
    /// [`ConfigError`] if the variable is not set.
    pub fn key(&self) -> Result<Option<String>, ConfigError> {
        key_of(&self.key_env, "fleet.judge_key_env")
    }
}

/// The key in an environment variable, if one is named.
fn key_of(name: &Option<String>, key: &'static str) -> Result<Option<String>, ConfigError> {
    let Some(name) = name else {
        return Ok(None);
    };
    match std::env::var(name) {
        Ok(found) if !found.is_empty() => Ok(Some(found)),
        _ => Err(ConfigError::Value {
            key,
            value: name.clone(),
            allowed: "the name of an environment variable that holds the key",
        }),
    }
}

/// An engine, or all behind one name.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetConfig {
    /// What it speaks.
    pub kind: Kind,
    /// `http://HOST:PORT`.
    pub url: String,
    /// Whether every address of the host is a target.
    pub resolve: bool,
    /// The environment variable with the key for requests.
    pub key_env: Option<String>,
    /// The environment variable with the key for loading and unloading.
    pub admin_key_env: Option<String>,
}

/// The keys of a target.
#[derive(Clone, Default, PartialEq)]
pub struct TargetKeys {
    /// For requests.
    pub requests: Option<String>,
    /// For loading and unloading.
    pub admin: Option<String>,
}

impl TargetConfig {
    /// The keys that the environment holds.
    ///
    /// # Errors
    /// [`ConfigError`] if a variable is not set.
    pub fn keys(&self) -> Result<TargetKeys, ConfigError> {
        Ok(TargetKeys {
            requests: key_of(&self.key_env, "fleet.targets.key_env")?,
            admin: key_of(&self.admin_key_env, "fleet.targets.admin_key_env")?,
        })
    }
}

impl FleetConfig {
    /// What the rollout decides by, for this served name.
    pub fn rules(&self, name: &str) -> Rules {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Rules {
            name: name.into(),
            adapters_path: self.adapters_path.clone(),
            on_failure: self.on_failure,
            max_skew_epochs: self.max_skew_epochs,
            max_request_ms: milliseconds(self.max_request),
            look_ms: milliseconds(self.poll),
            attempts: ATTEMPTS,
            canary: self.canary.clone(),
        }
    }
}

/// The engines behind a gateway; `None` without any.
pub(super) fn resolve(raw: RawFleet, adapters: &Path) -> Result<Option<FleetConfig>, ConfigError> {
    let value = |key, value: String, allowed| ConfigError::Value {
        key,
        value,
        allowed,
    };
    let canary = canary(&raw)?;
    let judge = judge(&raw)?;
    let targets = raw.targets.unwrap_or_default();
    let targets: Vec<TargetConfig> = targets.into_iter().map(target).collect::<Result<_, _>>()?;
    let on_failure = match raw.on_failure.as_deref() {
        None | Some("exclude") => OnFailure::Exclude,
        Some("abort") => OnFailure::Abort,
        Some(other) => {
            let allowed = "`exclude` or `abort`";
            return Err(value("fleet.on_failure", other.into(), allowed));
        }
    };
    let seconds = raw.max_request_s.unwrap_or(600);
    if !(1..=86_400).contains(&seconds) {
        return Err(value(
            "fleet.max_request_s",
            seconds.to_string(),
            "from 1 to 86400",
        ));
    }
    let look_ms = raw.look_ms.unwrap_or(2000);
    if !(100..=600_000).contains(&look_ms) {
        return Err(value(
            "fleet.look_ms",
            look_ms.to_string(),
            "from 100 to 600000",
        ));
    }
    if targets.is_empty() {
        return Ok(None);
    }
    let adapters_path = match raw.adapters_path {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => {
            // Targets have another working directory.
            let absolute = std::path::absolute(adapters).unwrap_or_else(|_| adapters.to_owned());
            absolute.to_string_lossy().into_owned()
        }
    };
    Ok(Some(FleetConfig {
        targets,
        adapters_path,
        on_failure,
        max_skew_epochs: raw.max_skew_epochs.unwrap_or(1),
        max_request: Duration::from_secs(seconds),
        poll: Duration::from_millis(look_ms),
        canary,
        judge,
    }))
}

fn judge(raw: &RawFleet) -> Result<Option<JudgeConfig>, ConfigError> {
    let wrong = |key, value: String, allowed| ConfigError::Value {
        key,
        value,
        allowed,
    };
    let share = raw.judge_share.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&share) {
        return Err(wrong("fleet.judge_share", share.to_string(), "from 0 to 1"));
    }
    let queue = raw.judge_queue.unwrap_or(256);
    if !(1..=100_000).contains(&queue) {
        return Err(wrong(
            "fleet.judge_queue",
            queue.to_string(),
            "from 1 to 100000",
        ));
    }
    let Some(url) = raw.judge.as_ref().filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    if !is_http || url.contains(['@', '?', '#']) {
        let allowed = "the address of a `realign serve` or a path before its /v1, without credentials: http://HOST:PORT";
        return Err(wrong("fleet.judge", "no such address".into(), allowed));
    }
    Ok(Some(JudgeConfig {
        url: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
        key_env: raw.judge_key_env.clone(),
        share,
        queue,
    }))
}

fn canary(raw: &RawFleet) -> Result<CanaryRules, ConfigError> {
    let wrong = |key, value: String, allowed| ConfigError::Value {
        key,
        value,
        allowed,
    };
    let shares = raw.canary.clone().unwrap_or_default();
    let is_share = |share: &f64| (0.0001..=1.0).contains(share);
    let grows = shares.windows(2).all(|two| two[0] < two[1]);
    if !shares.iter().all(is_share) || !grows {
        return Err(wrong(
            "fleet.canary",
            format!("{shares:?}"),
            "shares from 0.0001 to 1.0, each greater than the one before",
        ));
    }
    let parts = shares
        .iter()
        .map(|share| (share * f64::from(WHOLE)).round() as u16);
    let min_requests = raw.canary_min_requests.unwrap_or(200);
    if !(1..=1_000_000).contains(&min_requests) {
        return Err(wrong(
            "fleet.canary_min_requests",
            min_requests.to_string(),
            "from 1 to 1000000",
        ));
    }
    let (min, max) = (
        raw.canary_min_s.unwrap_or(60),
        raw.canary_max_s.unwrap_or(3600),
    );
    if !(1..=604_800).contains(&max) || min > max {
        return Err(wrong(
            "fleet.canary_max_s",
            max.to_string(),
            "from 1 to 604800, and no less than fleet.canary_min_s",
        ));
    }
    Ok(CanaryRules {
        // The last one is the switch itself.
        shares: parts.filter(|share| *share < WHOLE).collect(),
        min_requests,
        min_ms: min * 1000,
        max_ms: max * 1000,
    })
}

fn target(raw: RawTarget) -> Result<TargetConfig, ConfigError> {
    let value = |key, value: String, allowed| ConfigError::Value {
        key,
        value,
        allowed,
    };
    let kind = match raw.kind.as_deref() {
        Some("vllm") => Kind::Vllm,
        Some("realign") => Kind::Realign,
        Some("sglang") => Kind::Sglang,
        Some("mistralrs") => Kind::Mistralrs,
        other => {
            let given = other.unwrap_or("missing").to_owned();
            return Err(value(
                "fleet.targets.kind",
                given,
                "`vllm`, `realign`, `sglang` or `mistralrs`",
            ));
        }
    };
    let url = raw.url.unwrap_or_default();
    if addresses(&url, false).is_err() {
        let allowed = "http://HOST:PORT, without a path; targets are asked over plain HTTP";
        return Err(value("fleet.targets.url", format!("{url:?}"), allowed));
    }
    Ok(TargetConfig {
        kind,
        url,
        resolve: raw.resolve.unwrap_or(false),
        key_env: raw.key_env,
        admin_key_env: raw.admin_key_env,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<FleetConfig>, String> {
        let raw: RawFleet = toml::from_str(text).map_err(|e| e.to_string())?;
        resolve(raw, Path::new("adapters")).map_err(|e| e.to_string())
    }

    #[test]
    fn targets_are_read_and_what_is_wrong_is_named() {
        assert_eq!(read("").unwrap(), None);
        let text = "adapters_path = \"/srv/adapters/\"\non_failure = \"abort\"\n\
                    [[targets]]\nkind = \"vllm\"\nurl = \"http://pod:8000\"\nresolve = true\n\
                    [[targets]]\nkind = \"realign\"\nurl = \"http://10.0.0.1:8080\"";
        let fleet = read(text).unwrap().unwrap();
        assert_eq!(fleet.adapters_path, "/srv/adapters");
        assert_eq!(fleet.on_failure, OnFailure::Abort);
        assert_eq!(fleet.targets.len(), 2);
        assert!(fleet.targets[0].resolve && !fleet.targets[1].resolve);
        assert_eq!(fleet.canary.shares, [0u16; 0]);
        let one = "[[targets]]\nkind = \"vllm\"\nurl = \"http://pod:8000\"\n";
        let canary = format!("canary = [0.05, 0.5, 1.0]\ncanary_min_s = 0\n{one}");
        let canary = read(&canary).unwrap().unwrap().canary;
        assert_eq!(
            (canary.shares, canary.min_ms, canary.max_ms),
            (vec![500, 5000], 0, 3_600_000)
        );
        let judged = format!("judge = \"http://judge:8080/v1/\"\njudge_share = 0.5\n{one}");
        let judge = read(&judged).unwrap().unwrap().judge.unwrap();
        assert_eq!(
            (&*judge.url, judge.share, judge.queue),
            ("http://judge:8080", 0.5, 256)
        );
        let own = read(one).unwrap().unwrap().adapters_path;
        assert!(own.starts_with('/') && own.ends_with("/adapters"), "{own}");
        for (text, key) in [
            (
                "[[targets]]\nkind = \"tgi\"\nurl = \"http://a:1\"",
                "targets.kind",
            ),
            (
                "[[targets]]\nkind = \"vllm\"\nurl = \"https://a:1\"",
                "targets.url",
            ),
            ("[[targets]]\nkind = \"vllm\"", "targets.url"),
            ("on_failure = \"retry\"", "fleet.on_failure"),
            ("max_request_s = 0", "fleet.max_request_s"),
            ("look_ms = 1", "fleet.look_ms"),
            ("judge = \"judge:8080\"", "fleet.judge"),
            ("judge = \"http://me:secret@judge\"", "fleet.judge"),
            ("judge_share = 1.5", "fleet.judge_share"),
            ("judge_queue = 0", "fleet.judge_queue"),
            ("canary = [0.5, 0.5]", "fleet.canary"),
            ("canary = [5.0]", "fleet.canary"),
            ("canary_min_requests = 0", "fleet.canary_min_requests"),
            ("canary_max_s = 10", "fleet.canary_max_s"),
            ("[[targets]]\nkid = \"vllm\"", "kid"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
        let text = format!("{one}key_env = \"NO_SUCH_KEY\"");
        let error = read(&text).unwrap().unwrap().targets[0].keys().err();
        assert!(error.unwrap().to_string().contains("targets.key_env"));
    }
}
