//! `[store]` and `[fleet]`: what servers share, and how far one may be behind.

use std::time::Duration;

use realign_store::StoreUrl;

use super::{ConfigError, Paths, RawFleet, RawStore};

/// Begins a URL that names a directory of this machine.
const LOCAL: &str = "file://";

/// A store that several servers share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where it is.
    pub url: StoreUrl,
    /// Whether this server only serves what the store names.
    pub follow: bool,
    /// The name of this server in the store; `None` for one that it makes and keeps.
    pub name: Option<String>,
    /// How long a silent controller keeps the others from publishing.
    pub lease: Duration,
    /// Time between two looks at `CURRENT`.
    pub poll: Duration,
    /// Epochs that a server may be behind and still be ready.
    pub max_skew_epochs: u64,
}

/// What the servers of a store share; `None` for a server by itself, whose generations are in
/// `paths.adapters`.
pub(super) fn resolve(
    (store, fleet): (RawStore, &RawFleet),
    paths: &mut Paths,
    adapters_given: bool,
) -> Result<Option<StoreConfig>, ConfigError> {
    let follow = store.follow.unwrap_or(false);
    let url = store.url.as_deref();
    if let Some(directory) = url.and_then(|url| url.strip_prefix(LOCAL)) {
        let refused = |allowed| ConfigError::Value {
            key: "store.url",
            value: format!("{LOCAL}{directory}"),
            allowed,
        };
        if directory.is_empty() {
            return Err(refused("a directory after file://"));
        }
        if adapters_given && paths.adapters != *directory {
            return Err(refused(
                "it is another directory than paths.adapters; leave one of them out",
            ));
        }
        paths.adapters = directory.into();
    }
    let Some(url) = url.filter(|url| !url.starts_with(LOCAL)) else {
        return match follow {
            false => Ok(None),
            true => Err(ConfigError::Value {
                key: "store.follow",
                value: "true".into(),
                allowed: "a server follows a store that others share: set store.url to \
                          s3://BUCKET/PREFIX",
            }),
        };
    };
    let seconds = store.lease_s.unwrap_or(15);
    if !(5..=600).contains(&seconds) {
        return Err(ConfigError::Value {
            key: "store.lease_s",
            value: seconds.to_string(),
            allowed: "from 5 to 600",
        });
    }
    let poll_ms = store.poll_ms.unwrap_or(2000);
    if poll_ms < 100 {
        return Err(ConfigError::Value {
            key: "store.poll_ms",
            value: poll_ms.to_string(),
            allowed: "at least 100",
        });
    }
    Ok(Some(StoreConfig {
        url: url.parse()?,
        follow,
        name: store.name,
        lease: Duration::from_secs(seconds),
        poll: Duration::from_millis(poll_ms),
        max_skew_epochs: fleet.max_skew_epochs.unwrap_or(1),
    }))
}

/// A follower has no policies to be measured by, so it must not refuse everyone for that.
pub(super) fn check_follower(
    store: Option<&StoreConfig>,
    refuse_unaligned: bool,
) -> Result<(), ConfigError> {
    if refuse_unaligned && store.is_some_and(|store| store.follow) {
        return Err(ConfigError::Value {
            key: "alignment.when_unaligned",
            value: "`refuse`".into(),
            allowed: "`serve` on a server that follows a store: it has no policies, so its state is \
                      always unknown; the controller measures what it publishes",
        });
    }
    Ok(())
}

/// A server without clients publishes for others: it must be able to, and they must be able to get it.
pub(super) fn check_control(
    store: Option<&StoreConfig>,
    has_targets: bool,
) -> Result<(), ConfigError> {
    let value = |key, value: &str, allowed| ConfigError::Value {
        key,
        value: value.into(),
        allowed,
    };
    match store {
        Some(store) if store.follow => Err(value(
            "store.follow",
            "true",
            "`realign control` publishes what others follow: leave it out, or run `realign serve \
             --follow`",
        )),
        None if !has_targets => Err(value(
            "store.url",
            "not set",
            "`realign control` serves no clients, so what it publishes must reach other servers: set \
             store.url to s3://BUCKET/PREFIX, which they follow, or [[fleet.targets]] for a gateway \
             that follows paths.adapters; a server by itself is `realign serve`",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError, RawAlignment, RawConfig, RawPaths, RawStore};

    fn with(url: Option<&str>, follow: bool) -> RawConfig {
        RawConfig {
            store: Some(RawStore {
                url: url.map(Into::into),
                follow: Some(follow),
                ..RawStore::default()
            }),
            ..RawConfig::default()
        }
    }

    fn resolve(raw: RawConfig) -> Result<Config, ConfigError> {
        Config::resolve(raw)
    }

    #[test]
    fn a_directory_is_where_adapters_are_and_a_bucket_is_shared() {
        let alone = resolve(RawConfig::default()).unwrap();
        assert_eq!(alone.store, None);
        let local = resolve(with(Some("file://somewhere/else"), false)).unwrap();
        assert_eq!(local.store, None);
        assert_eq!(local.paths.adapters.to_str(), Some("somewhere/else"));
        let shared = resolve(with(Some("s3://bucket/prefix"), true)).unwrap();
        assert_eq!(shared.paths, alone.paths);
        let store = shared.store.unwrap();
        assert!(store.follow);
        assert_eq!(store.url.to_string(), "s3://bucket/prefix");
    }

    #[test]
    fn a_server_without_clients_publishes_for_others() {
        let shared = resolve(with(Some("s3://bucket"), false)).unwrap();
        assert!(shared.clients && !shared.without_clients().unwrap().clients);
        let targets = toml::from_str("[[fleet.targets]]\nkind = \"vllm\"\nurl = \"http://a:1\"");
        let gateway = resolve(targets.unwrap()).unwrap();
        assert!(!gateway.without_clients().unwrap().clients);
        for (raw, key) in [
            (RawConfig::default(), "store.url"),
            (with(Some("file://adapters"), false), "store.url"),
            (with(Some("s3://bucket"), true), "store.follow"),
        ] {
            let error = resolve(raw).unwrap().without_clients().unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with(key), "{error}");
            assert!(error.contains("realign control"), "{error}");
        }
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for url in ["", "adapters", "file://", "s3://", "gs://bucket"] {
            assert!(resolve(with(Some(url), false)).is_err(), "{url}");
        }
        assert!(resolve(with(None, true)).is_err(), "follows nothing");
        let mut two = with(Some("file://a"), false);
        two.paths = Some(RawPaths {
            adapters: Some("b".into()),
            ..RawPaths::default()
        });
        assert!(resolve(two).is_err(), "two directories");
        let mut refusing = with(Some("s3://bucket"), true);
        refusing.alignment = Some(RawAlignment {
            when_unaligned: Some("refuse".into()),
        });
        let error = resolve(refusing).unwrap_err().to_string();
        assert!(error.contains("alignment.when_unaligned"), "{error}");
    }
}
