//! Reads and merges the sources of the configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use realign_core::files::{self, Limit};

use super::{ConfigError, DEFAULT_FILE, RawConfig, RawTrain};

/// Prefix of environment variables that are configuration keys.
const PREFIX: &str = "REALIGN_";

/// Maximum size of a configuration or recipe file.
const MAX_FILE: Limit = Limit::mib(1);

/// Environment variables with the prefix `REALIGN_` that are not configuration keys.
const NOT_CONFIG: [&str; 10] = [
    "admin_key",
    "config",
    "crash_at",
    "log",
    "log_format",
    "panic_at",
    "skip_prometheus",
    "test_engine",
    "test_model",
    "url",
];

/// Reads `file` (or `realign.toml`, if there is one), then `REALIGN_*` variables, in which `__`
/// separates a section from its key, as in `REALIGN_SERVER__PORT=9000`, then `flags`.
///
/// # Errors
/// [`ConfigError::Read`]: a named file that is missing, an unknown key with the nearest valid one,
/// or a value of the wrong type, with its source.
pub fn load(file: Option<&Path>, flags: &RawConfig) -> Result<RawConfig, ConfigError> {
    match file {
        Some(file) => required(file, flags, environment),
        None => layered(Path::new(DEFAULT_FILE), flags, environment),
    }
}

/// Adds the settings of the environment, or of what a test has in its place.
pub(super) type Environment = fn(Figment) -> Figment;

/// No settings: what the environment of a test happens to hold is none of its matter.
#[cfg(test)]
pub(super) fn no_environment(sources: Figment) -> Figment {
    sources
}

/// As [`load`], for a file that must be there.
pub(super) fn required(
    file: &Path,
    flags: &RawConfig,
    environment: Environment,
) -> Result<RawConfig, ConfigError> {
    let file = TomlFile::required(file, "file")?;
    extract(environment(Figment::from(file)), flags)
}

/// As [`load`], for a server inside an application: `settings`, text in the format of
/// `realign.toml`, and then `own` take precedence over the file and the environment. Without a file
/// the environment is not read either.
///
/// # Errors
/// As [`load`].
pub fn load_embedded(
    file: Option<&Path>,
    settings: Option<&str>,
    own: &RawConfig,
) -> Result<RawConfig, ConfigError> {
    embedded(file, settings, own, environment)
}

/// As [`load_embedded`], whatever the environment holds.
#[cfg(test)]
pub(crate) fn load_embedded_alone(
    file: Option<&Path>,
    settings: Option<&str>,
    own: &RawConfig,
) -> Result<RawConfig, ConfigError> {
    embedded(file, settings, own, no_environment)
}

fn embedded(
    file: Option<&Path>,
    settings: Option<&str>,
    own: &RawConfig,
    environment: Environment,
) -> Result<RawConfig, ConfigError> {
    let mut sources = Figment::new();
    if let Some(file) = file {
        sources = environment(sources.merge(TomlFile::required(file, "file")?));
    }
    if let Some(settings) = settings {
        sources = sources.merge(Toml::string(settings));
    }
    extract(sources, own)
}

/// As [`load`], for a file that may be absent.
pub(super) fn layered(
    path: &Path,
    flags: &RawConfig,
    environment: Environment,
) -> Result<RawConfig, ConfigError> {
    let mut sources = Figment::new();
    if let Some(file) = TomlFile::read(path)? {
        sources = sources.merge(file);
    }
    extract(environment(sources), flags)
}

fn environment(sources: Figment) -> Figment {
    let links =
        service_links(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }));
    for name in &links {
        tracing::debug!(
            variable = format!("{PREFIX}{name}"),
            "ignored: it announces a service of the cluster"
        );
    }
    let ignored: Vec<&str> = NOT_CONFIG
        .into_iter()
        .chain(links.iter().map(String::as_str))
        .collect();
    sources.merge(Env::prefixed(PREFIX).ignore(&ignored).split("__"))
}

/// A TOML file, read; errors in it name its path.
struct TomlFile {
    path: PathBuf,
    text: String,
}

impl TomlFile {
    /// `None` if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let text = files::read_text_if_there(path, MAX_FILE)
            .map_err(|error| ConfigError::Read(format!("{}: {error}", path.display())))?;
        Ok(text.map(|text| Self {
            path: path.to_owned(),
            text,
        }))
    }

    fn required(path: &Path, what: &str) -> Result<Self, ConfigError> {
        Self::read(path)?.ok_or_else(|| {
            ConfigError::Read(format!("{}: there is no such {what}", path.display()))
        })
    }
}

impl Provider for TomlFile {
    fn metadata(&self) -> Metadata {
        Metadata::from("TOML file", self.path.as_path())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Toml::string(&self.text).data()
    }
}

/// Names, without the prefix, of the variables by which Kubernetes announces services whose names
/// begin with `realign` to every container, such as `REALIGN_PORT=tcp://10.0.0.1:80`. Name and value
/// must have that form, so that `REALIGN_PORT=9000` is still an unknown key.
fn service_links(variables: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let ours = variables.filter_map(|(name, value)| {
        let name = name.strip_prefix(PREFIX)?;
        is_service_link(name, &value).then(|| name.to_owned())
    });
    ours.collect()
}

fn is_service_link(name: &str, value: &str) -> bool {
    let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    // Two underscores separate a section from its key.
    if name.contains("__") || !name.chars().all(upper) {
        return false;
    }
    let port = value.parse::<u16>().is_ok();
    let address = value.parse::<IpAddr>().is_ok();
    let url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    // What follows `<service>_`; the service may be `realign` itself or have a longer name.
    let ends = |suffix: &str| name == suffix || name.ends_with(&format!("_{suffix}"));
    let named_port = ends("SERVICE_PORT") || format!("_{name}").contains("_SERVICE_PORT_");
    let of_port = match port_link(name) {
        Some("") => url,
        Some("_PROTO") => ["tcp", "udp", "sctp"].contains(&value),
        Some("_PORT") => port,
        Some("_ADDR") => address,
        _ => false,
    };
    of_port || (ends("SERVICE_HOST") && address) || (named_port && port) || (ends("PORT") && url)
}

/// What follows `PORT_<number>_<PROTOCOL>` in a name that has it.
fn port_link(name: &str) -> Option<&str> {
    name.match_indices("PORT_").find_map(|(at, found)| {
        let own_word = at == 0 || name[..at].ends_with('_');
        let (number, rest) = name[at + found.len()..].split_once('_')?;
        let is_port = own_word && number.parse::<u16>().is_ok();
        let protocols = ["TCP", "UDP", "SCTP"];
        let rest = protocols.iter().find_map(|p| rest.strip_prefix(p))?;
        is_port.then_some(rest)
    })
}

fn extract(sources: Figment, overrides: &RawConfig) -> Result<RawConfig, ConfigError> {
    sources
        .merge(Serialized::defaults(overrides))
        .extract()
        .map_err(|error| ConfigError::Read(explain(&error)))
}

/// Reads a recipe file: the keys of `[train]`, without the heading.
///
/// # Errors
/// As [`load`].
pub fn recipe_file(path: &Path) -> Result<RawTrain, ConfigError> {
    let file = TomlFile::required(path, "recipe; use `default`, `paper` or a TOML file")?;
    Figment::from(file)
        .extract()
        .map_err(|error| ConfigError::Read(explain(&error)))
}

fn explain(error: &figment::Error) -> String {
    let source = error
        .metadata
        .as_ref()
        .map_or_else(String::new, |metadata| {
            let name = metadata
                .source
                .as_ref()
                .map_or(metadata.name.to_string(), |s| s.to_string());
            format!("{name}: ")
        });
    let section = error
        .path
        .iter()
        .filter(|p| !p.is_empty())
        .cloned()
        .collect::<Vec<_>>();
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let parents = match section.split_last() {
                Some((last, parents)) if last == field => parents,
                _ => &section[..],
            };
            let within = if parents.is_empty() {
                String::new()
            } else {
                format!(" in [{}]", parents.join("."))
            };
            let nearest = nearest(field, known).map_or_else(
                || format!("allowed are {}", known.join(", ")),
                |name| format!("did you mean {name:?}?"),
            );
            format!("{source}unknown key {field:?}{within}; {nearest}")
        }
        kind if section.is_empty() => format!("{source}{kind}"),
        Kind::InvalidType(found, expected) => {
            let (key, expected) = (section.join("."), in_words(expected));
            format!("{source}{key}: expected {expected}, found {found}")
        }
        kind => format!("{source}{}: {kind}", section.join(".")),
    }
}

/// What a value must be, for readers who do not know Rust's types.
fn in_words(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, 0 or more",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "bool" | "a boolean" => "true or false",
        other => other,
    }
}

/// The known name with the smallest edit distance, if that is small relative to the name's length.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known.iter().map(|k| (distance(name, k), *k)).min()?;
    (best.0 <= 1 + name.chars().count() / 3).then_some(best.1)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_cluster_are_told_from_settings() {
        let links = [
            ("PORT", "tcp://10.3.4.5:80"),
            ("SERVICE_HOST", "10.3.4.5"),
            ("SERVICE_HOST", "fd00::5"),
            ("SERVICE_PORT", "80"),
            ("SERVICE_PORT_HTTP", "80"),
            ("PORT_80_TCP", "tcp://10.3.4.5:80"),
            ("PORT_80_TCP_PROTO", "tcp"),
            ("PORT_80_TCP_PORT", "80"),
            ("PORT_80_TCP_ADDR", "10.3.4.5"),
            ("PORT_53_UDP", "udp://10.3.4.5:53"),
            // A service `realign-admin`, and one `realign-server`.
            ("ADMIN_PORT", "tcp://10.3.4.6:9090"),
            ("ADMIN_SERVICE_HOST", "10.3.4.6"),
            ("ADMIN_SERVICE_PORT_ADMIN", "9090"),
            ("ADMIN_PORT_9090_TCP_ADDR", "10.3.4.6"),
            ("SERVER_PORT", "tcp://10.3.4.7:80"),
            // A service `realign-service`.
            ("SERVICE_PORT", "tcp://10.3.4.8:80"),
            ("SERVICE_PORT_80_TCP", "tcp://10.3.4.8:80"),
            ("SERVICE_SERVICE_HOST", "10.3.4.8"),
        ];
        for (name, value) in links {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        let settings = [
            ("PORT", "9000"),
            ("ADMIN_PORT", "9090"),
            ("SERVICE_HOST", "nowhere"),
            ("SERVICE_PORT", "http"),
            ("SERVICE_PORTS", "80"),
            ("PORT_TCP", "tcp://10.3.4.5:80"),
            ("PORT_80_TCP_ADDR", "yes"),
            ("PORT_80_TCP_NAME", "tcp"),
            ("SERVER__PORT", "tcp://10.3.4.5:80"),
            ("TRANSPORT", "tcp://10.3.4.5:80"),
            ("MODEL", "m"),
            ("MODLE", "10.3.4.5"),
        ];
        for (name, value) in settings {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
        let named = |(name, value): &(&str, &str)| (format!("{PREFIX}{name}"), value.to_string());
        let all = links.iter().chain(&settings).map(named);
        assert_eq!(service_links(all).len(), links.len());
    }
}
