//! `realign init`: a directory to start from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{CliError, EXIT_OK, GlobalArgs, shell};
use realign_align::policy::schema_json;
use realign_server::config::{Config, RawConfig, starter_file};

/// The policy to edit. It judges and trains nothing until someone sets `enforce`.
const POLICY: &str = include_str!("init/first-policy.yaml");
const POLICY_FILE: &str = "first-policy.yaml";
/// The schema that policies announce in their first line.
pub(crate) const SCHEMA_FILE: &str = "policy.schema.json";

/// Flags of `init`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign init                                    here
  realign init assistant --model ~/models/qwen.gguf
Writes realign.toml with every setting and its default, the directories, and one policy to edit, which
judges and trains nothing until you say so. What is there already is left as it is.")]
pub(crate) struct InitArgs {
    /// Directory, made if it is missing [default: this one]
    pub(crate) dir: Option<PathBuf>,
}

/// What became of a path.
struct Made {
    path: PathBuf,
    is_new: bool,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &InitArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let dir = args.dir.as_deref().unwrap_or(Path::new("."));
    let config = Config::resolve(RawConfig::default())?.paths;
    let at =
        |given: &Option<PathBuf>, default: &Path| dir.join(given.as_deref().unwrap_or(default));
    let policies = at(&global.policies, &config.policies);
    let preferences = at(&global.preferences, &config.preferences);
    let mut made = Vec::new();
    for path in [
        dir.to_owned(),
        policies.clone(),
        preferences,
        at(&global.adapters, &config.adapters),
        at(&global.state, &config.state),
    ] {
        made.push(directory(path)?);
    }
    let settings = match &global.config {
        Some(file) => file.clone(),
        None => dir.join("realign.toml"),
    };
    let keys = given(dir, global)?;
    let keys: Vec<(&str, &str)> = keys
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    made.push(file(settings, &starter_file(&keys))?);
    made.push(file(policies.join(SCHEMA_FILE), &schema_json())?);
    made.push(file(policies.join(POLICY_FILE), POLICY)?);
    let next = next(dir, global)?;
    if global.json {
        let paths = |new| {
            made.iter()
                .filter(move |m| m.is_new == new)
                .map(|m| &m.path)
        };
        let report = json!({
            "made": paths(true).collect::<Vec<_>>(),
            "kept": paths(false).collect::<Vec<_>>(),
            "next": next.iter().map(|(command, _)| command).collect::<Vec<_>>(),
        });
        writeln!(out, "{report}")?;
        return Ok(EXIT_OK);
    }
    for made in &made {
        let word = if made.is_new { "made" } else { "kept" };
        writeln!(out, "{word}  {}", made.path.display())?;
    }
    writeln!(out, "\nNext:")?;
    let width = next
        .iter()
        .map(|(command, _)| command.len())
        .max()
        .unwrap_or(0);
    for (command, why) in &next {
        writeln!(out, "  {command:width$}  # {why}")?;
    }
    Ok(EXIT_OK)
}

/// Three commands, after a change of directory where the files are elsewhere.
fn next(dir: &Path, global: &GlobalArgs) -> Result<Vec<(String, &'static str)>, CliError> {
    let mut next = Vec::new();
    let is_here = dir == Path::new(".");
    if !is_here {
        next.push((
            format!("cd {}", word(dir)),
            "paths in realign.toml are relative to where you start",
        ));
    }
    let config = match &global.config {
        Some(file) if is_here => format!(" --config {}", word(file)),
        // A path from here is none from there.
        Some(file) => format!(" --config {}", word(&std::path::absolute(file)?)),
        None => String::new(),
    };
    next.push((
        format!("realign doctor{config}"),
        "says whether a server would start, and how to mend what is wrong",
    ));
    next.push((
        format!("realign policy new{config}"),
        "drafts a policy of your own from a few examples",
    ));
    next.push((
        format!("realign serve{config}"),
        "serves, and realigns when policies change",
    ));
    Ok(next)
}

/// A path as one word of a shell.
pub(crate) fn word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-~+:@%".contains(c);
    match text.chars().all(plain) {
        true => text.into_owned(),
        false => shell(&text),
    }
}

/// The settings that flags name, as keys of the file. A model given relative to here is written so that
/// it is found from the directory too.
fn given(dir: &Path, global: &GlobalArgs) -> Result<Vec<(&'static str, String)>, CliError> {
    let mut given = Vec::new();
    let from_there = |text: &str| -> std::io::Result<String> {
        let path = Path::new(text);
        let here = dir == Path::new(".") || text.starts_with("hf:") || !path.exists();
        let path = if here {
            path.to_owned()
        } else {
            std::path::absolute(path)?
        };
        Ok(path.to_string_lossy().into_owned())
    };
    if let Some(model) = &global.model {
        given.push(("model", from_there(model)?));
    }
    if let Some(tokenizer) = &global.tokenizer {
        given.push(("tokenizer", from_there(&tokenizer.to_string_lossy())?));
    }
    let paths = [
        ("paths.policies", &global.policies),
        ("paths.preferences", &global.preferences),
        ("paths.adapters", &global.adapters),
        ("paths.state", &global.state),
    ];
    for (key, path) in paths {
        if let Some(path) = path {
            given.push((key, path.to_string_lossy().into_owned()));
        }
    }
    Ok(given)
}

fn directory(path: PathBuf) -> Result<Made, CliError> {
    let is_new = !path.is_dir();
    std::fs::create_dir_all(&path).map_err(|source| CliError::Path {
        path: path.clone(),
        wanted: "a directory that can be written to",
        source,
    })?;
    Ok(Made { path, is_new })
}

/// Writes a file that is not there.
fn file(path: PathBuf, text: &str) -> Result<Made, CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = match opened {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    };
    match written {
        Ok(is_new) => Ok(Made { path, is_new }),
        Err(source) => Err(CliError::Path {
            path,
            wanted: "a directory that can be written to",
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::policy::PolicySet;
    use serde_json::Value;

    fn init(dir: &Path, change: impl FnOnce(&mut GlobalArgs)) -> Value {
        let mut global = GlobalArgs {
            json: true,
            ..GlobalArgs::default()
        };
        change(&mut global);
        let args = InitArgs {
            dir: Some(dir.to_owned()),
        };
        let mut out = Vec::new();
        assert_eq!(run(&args, &global, &mut out).unwrap(), EXIT_OK);
        serde_json::from_slice(&out).unwrap()
    }

    fn resolved(file: PathBuf) -> Config {
        let global = GlobalArgs {
            config: Some(file),
            ..GlobalArgs::default()
        };
        global.resolve().unwrap()
    }

    #[test]
    fn what_it_writes_loads_and_its_policy_passes_and_trains_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("new/place");
        let report = init(&place, |_| {});
        assert_eq!(report["made"].as_array().unwrap().len(), 8, "{report}");
        assert_eq!(report["next"].as_array().unwrap().len(), 4, "{report}");
        let config = resolved(place.join("realign.toml"));
        assert_eq!(config, Config::resolve(RawConfig::default()).unwrap());
        let set = PolicySet::load_dir(&place.join("policies")).unwrap();
        assert!(set.run_examples().passed(), "{:?}", set.run_examples());
        assert_eq!(set.policies().len(), 1);
        assert!(!set.policies()[0].is_enforced());
        for dir in [
            &config.paths.preferences,
            &config.paths.adapters,
            &config.paths.state,
        ] {
            assert!(place.join(dir).is_dir());
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), |_| {});
        let policy = dir.path().join("policies").join(POLICY_FILE);
        std::fs::write(&policy, "mine").unwrap();
        std::fs::write(dir.path().join("realign.toml"), "model = 'mine'").unwrap();
        let again = init(dir.path(), |_| {});
        assert_eq!(again["made"], json!([]));
        assert_eq!(std::fs::read_to_string(policy).unwrap(), "mine");
        assert_eq!(resolved(dir.path().join("realign.toml")).model, "mine");
    }

    #[test]
    fn flags_become_settings_and_a_model_here_is_found_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.gguf");
        std::fs::write(&model, "").unwrap();
        let file = dir.path().join("own.toml");
        init(&dir.path().join("site"), |global| {
            global.model = Some(model.to_string_lossy().into_owned());
            global.state = Some("var".into());
            global.config = Some(file.clone());
        });
        let config = resolved(file);
        assert_eq!(Path::new(&config.model), model);
        assert_eq!(config.paths.state, Path::new("var"));
        assert!(dir.path().join("site/var").is_dir());
        assert!(!dir.path().join("site/state").exists());
    }

    #[test]
    fn the_commands_that_follow_work_where_they_are_run() {
        let dir = tempfile::tempdir().unwrap();
        let report = init(&dir.path().join("my site"), |global| {
            global.config = Some(dir.path().join("own.toml"));
        });
        let next: Vec<&str> = report["next"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert!(next[0].ends_with("/my site'"), "{next:?}");
        let relative = GlobalArgs {
            config: Some("own.toml".into()),
            ..GlobalArgs::default()
        };
        let here = std::path::absolute("own.toml").unwrap();
        let commands = |dir: &str| super::next(Path::new(dir), &relative).unwrap();
        let there = commands("site");
        assert_eq!(
            there[1].0,
            format!("realign doctor --config {}", word(&here))
        );
        assert_eq!(commands(".")[0].0, "realign doctor --config own.toml");
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("taken");
        std::fs::write(&place, "").unwrap();
        let args = InitArgs { dir: Some(place) };
        let error = run(&args, &GlobalArgs::default(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }
}
