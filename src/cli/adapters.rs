//! `realign adapters`: the adapter directory, without loading a model.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use crate::adapter::generation::GenerationId;
use crate::adapter::store::{AdapterStore, MANIFEST_FILE};
use crate::adapter::{AdapterError, peft};

/// What to do with adapters.
#[derive(Debug, Subcommand)]
pub enum AdaptersCommand {
    /// List generations, oldest first; exits 1 if one cannot be read
    List,
    /// Print a generation's manifest
    Show {
        /// Generation id, 12 hex digits
        generation: String,
    },
    /// Copy a verified generation as a PEFT directory
    Export {
        /// Generation id, 12 hex digits
        generation: String,
        /// Directory to create; must not exist
        destination: PathBuf,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub fn run(
    command: &AdaptersCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let store = AdapterStore::open(global.resolve()?.paths.adapters)?;
    match command {
        AdaptersCommand::List => list(&store, global.json, out),
        AdaptersCommand::Show { generation } => {
            let manifest = store.manifest(&GenerationId(generation.clone()))?;
            writeln!(out, "{}", serde_json::to_string_pretty(&manifest)?)?;
            Ok(EXIT_OK)
        }
        AdaptersCommand::Export {
            generation,
            destination,
        } => {
            export(&store, &GenerationId(generation.clone()), destination)?;
            let result = json!({"generation": generation, "path": destination});
            match global.json {
                true => writeln!(out, "{result}")?,
                false => writeln!(out, "{generation} is in {}", destination.display())?,
            }
            Ok(EXIT_OK)
        }
    }
}

fn list(store: &AdapterStore, as_json: bool, out: &mut dyn Write) -> Result<u8, CliError> {
    let current = store.current()?;
    let mut code = EXIT_OK;
    let mut rows = Vec::new();
    for listed in store.list()? {
        let is_current = current.as_ref() == Some(&listed.id);
        let row = match &listed.manifest {
            Ok(m) => json!({
                "generation": listed.id,
                "current": is_current,
                "policy_revision": m.policy_revision,
                "base_name": m.base_name,
                "created_at": m.created_at,
            }),
            Err(error) => {
                code = EXIT_FAILED;
                json!({"generation": listed.id, "current": is_current, "error": error.to_string()})
            }
        };
        if !as_json {
            let mark = if is_current { '*' } else { ' ' };
            let detail = match &listed.manifest {
                Ok(m) => format!(
                    "policy {}  base {}",
                    m.policy_revision.as_deref().unwrap_or("-"),
                    m.base_name
                ),
                Err(error) => format!("unreadable: {error}"),
            };
            writeln!(out, "{mark} {}  {detail}", listed.id)?;
        }
        rows.push(row);
    }
    if as_json {
        writeln!(out, "{}", serde_json::Value::Array(rows))?;
    } else if rows.is_empty() {
        writeln!(
            out,
            "no adapters in {}; the base model serves",
            store.root().display()
        )?;
    }
    Ok(code)
}

fn export(store: &AdapterStore, id: &GenerationId, to: &Path) -> Result<(), CliError> {
    let base_hash = store.manifest(id)?.base_hash;
    store.load(id, &base_hash)?;
    std::fs::create_dir(to).map_err(AdapterError::io(to))?;
    for name in [peft::CONFIG_FILE, peft::MODEL_FILE, MANIFEST_FILE] {
        let target = to.join(name);
        std::fs::copy(store.path(id).join(name), &target).map_err(AdapterError::io(&target))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Manifest;
    use crate::adapter::test_support::small_weights;

    #[test]
    fn list_show_and_export() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("adapters");
        let store = AdapterStore::open(&root).unwrap();
        let id = store
            .publish(&small_weights(2, 1.0), Manifest::default())
            .unwrap()
            .0;
        let global = GlobalArgs {
            adapters: Some(root.clone()),
            ..GlobalArgs::default()
        };
        let run = |command| {
            let mut out = Vec::new();
            run(&command, &global, &mut out).map(|code| (code, String::from_utf8(out).unwrap()))
        };
        let (code, text) = run(AdaptersCommand::List).unwrap();
        assert!(
            code == EXIT_OK && text.starts_with(&format!("* {id}")),
            "{text}"
        );
        let destination = dir.path().join("out");
        let export = || AdaptersCommand::Export {
            generation: id.clone(),
            destination: destination.clone(),
        };
        run(export()).unwrap();
        assert!(peft::read_dir(&destination).is_ok());
        assert!(
            run(export()).is_err(),
            "an existing directory is not overwritten"
        );
        let unknown = AdaptersCommand::Show {
            generation: "0123456789ab".into(),
        };
        assert!(
            run(unknown)
                .unwrap_err()
                .to_string()
                .contains("no generation")
        );
        std::fs::write(root.join(&id).join(MANIFEST_FILE), "{").unwrap();
        assert_eq!(run(AdaptersCommand::List).unwrap().0, EXIT_FAILED);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::super::Cli::command().debug_assert();
    }
}
