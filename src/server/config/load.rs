//! Reads and merges the sources of the configuration.

use std::path::Path;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};

use super::{ConfigError, DEFAULT_FILE, RawConfig, RawTrain};

/// Environment variables with the prefix `REALIGN_` that are not configuration keys.
const NOT_CONFIG: [&str; 9] = [
    "admin_key",
    "config",
    "crash_at",
    "log",
    "log_format",
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
    if let Some(file) = file {
        require_file(file)?;
    }
    layered(file.unwrap_or(Path::new(DEFAULT_FILE)), flags)
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
    let mut sources = Figment::new();
    if let Some(file) = file {
        require_file(file)?;
        sources = file_and_environment(file);
    }
    if let Some(settings) = settings {
        sources = sources.merge(Toml::string(settings));
    }
    extract(sources, own)
}

/// As [`load`], for a file that may be absent.
pub(super) fn layered(path: &Path, flags: &RawConfig) -> Result<RawConfig, ConfigError> {
    extract(file_and_environment(path), flags)
}

fn require_file(file: &Path) -> Result<(), ConfigError> {
    if file.is_file() {
        return Ok(());
    }
    Err(ConfigError::Read(format!(
        "{}: there is no such file",
        file.display()
    )))
}

fn file_and_environment(path: &Path) -> Figment {
    let env = Env::prefixed("REALIGN_").ignore(&NOT_CONFIG).split("__");
    let mut sources = Figment::new();
    // `file_exact` treats a missing file as an error.
    if path.is_file() {
        sources = sources.merge(Toml::file_exact(path));
    }
    sources.merge(env)
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
    if !path.is_file() {
        return Err(ConfigError::Read(format!(
            "{}: there is no such recipe; use `default`, `paper` or a TOML file",
            path.display()
        )));
    }
    Figment::from(Toml::file_exact(path))
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
        kind => format!("{source}{}: {kind}", section.join(".")),
    }
}

/// The known name with the smallest edit distance, if that is small relative to the name's length.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
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
