//! Where packed weights are kept between starts.

use std::ffi::OsString;
use std::path::PathBuf;

use realign_model::cache::WeightsCache;

use super::ConfigError;

/// The most that is kept where nothing says so, in GiB.
const DEFAULT_GIB: u64 = 64;

/// Where packed weights are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsPlace {
    /// Here.
    Kept(WeightsCache),
    /// Nowhere, as the configuration says.
    Off,
    /// Nowhere, as the user has no cache directory.
    Homeless,
}

impl WeightsPlace {
    /// The directory, if there is one.
    pub fn cache(&self) -> Option<&WeightsCache> {
        match self {
            WeightsPlace::Kept(cache) => Some(cache),
            WeightsPlace::Off | WeightsPlace::Homeless => None,
        }
    }

    /// From the configuration and the environment.
    pub(super) fn resolve(place: Option<String>, gib: Option<u64>) -> Result<Self, ConfigError> {
        let user = user_directory(|name| std::env::var_os(name));
        Self::choose(place, gib, user)
    }

    fn choose(
        place: Option<String>,
        gib: Option<u64>,
        user: Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let gib = gib.unwrap_or(DEFAULT_GIB);
        if gib == 0 {
            return Err(ConfigError::Value {
                key: "engine.weights_cache_gb",
                value: "0".into(),
                allowed: "at least 1; engine.weights_cache = \"off\" keeps nothing",
            });
        }
        let directory = match place.as_deref() {
            Some("off") => return Ok(WeightsPlace::Off),
            Some("") => {
                return Err(ConfigError::Value {
                    key: "engine.weights_cache",
                    value: "\"\"".into(),
                    allowed: "a directory, or `off`",
                });
            }
            Some(path) => Some(PathBuf::from(path)),
            None => user,
        };
        let max_bytes = gib.saturating_mul(1 << 30);
        Ok(match directory {
            Some(directory) => WeightsPlace::Kept(WeightsCache {
                directory,
                max_bytes,
            }),
            None => WeightsPlace::Homeless,
        })
    }
}

/// `realign/weights` in the user's cache directory, by the rules of the XDG base directories.
fn user_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(variable(name)?);
        path.is_absolute().then_some(path)
    };
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("realign").join("weights"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept_where_the_configuration_or_the_users_directory_says() {
        let choose = |place: Option<&str>, user: Option<&str>| {
            let place = place.map(String::from);
            WeightsPlace::choose(place, None, user.map(PathBuf::from))
        };
        let kept = |place: Result<WeightsPlace, ConfigError>| match place.unwrap() {
            WeightsPlace::Kept(cache) => cache.directory,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kept(choose(Some("here"), Some("/u"))),
            PathBuf::from("here")
        );
        assert_eq!(kept(choose(None, Some("/u"))), PathBuf::from("/u"));
        assert_eq!(choose(Some("off"), Some("/u")).unwrap(), WeightsPlace::Off);
        assert_eq!(choose(None, None).unwrap(), WeightsPlace::Homeless);
        let error = choose(Some(""), None).unwrap_err().to_string();
        assert!(error.contains("a directory, or `off`"), "{error}");
        let error = WeightsPlace::choose(None, Some(0), None).unwrap_err();
        assert!(error.to_string().contains("at least 1"), "{error}");
    }

    #[test]
    fn the_users_directory_follows_its_variables() {
        let directory = |xdg: Option<&str>, home: Option<&str>| {
            user_directory(|name| match name {
                "XDG_CACHE_HOME" => xdg.map(OsString::from),
                _ => home.map(OsString::from),
            })
        };
        let expected = |path: &str| Some(PathBuf::from(path));
        let both = directory(Some("/c"), Some("/h"));
        assert_eq!(both, expected("/c/realign/weights"));
        let home = directory(Some("relative"), Some("/h"));
        assert_eq!(home, expected("/h/.cache/realign/weights"));
        assert_eq!(directory(None, Some("")), None);
        assert_eq!(directory(None, None), None);
    }
}
