//! `realign adapters`: lists, copies and imports adapters, and switches a running server's
//! generation.

mod gc;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::remote::{RemoteArgs, RemoteError};
use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_core::clock::utc;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::store::{AdapterStore, MANIFEST_FILE};
use realign_engine::adapter::{AdapterError, Manifest, peft, read_foreign};
use realign_model::{ModelSource, ModelSpec};

/// What to do with adapters.
#[derive(Debug, Subcommand)]
pub(crate) enum AdaptersCommand {
    /// List generations, oldest first; exits 1 if one cannot be read
    #[command(after_help = "\
Examples:
  realign adapters list
  realign adapters list --json
The generation marked * is the one a server starts with.")]
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
    /// Check a PEFT directory against the configured model and store it; nothing is activated
    #[command(after_help = "\
Examples:
  realign adapters import ../trained-elsewhere
  realign adapters activate \"$(realign adapters import ../trained-elsewhere --json | jq -r .generation)\"
The directory holds adapter_config.json and adapter_model.safetensors.")]
    Import {
        /// Directory with adapter_config.json and adapter_model.safetensors
        source: PathBuf,
    },
    /// Make a running server serve a generation; exits 1 if it refuses
    #[command(after_help = "\
Examples:
  realign adapters activate 0123456789ab
  realign adapters activate base                        the model without an adapter
  realign adapters activate 0123456789ab --expected ba9876543210
  realign adapters activate base --url http://10.0.0.5:8080 --admin-key KEY
Running requests end with the generation they began with. Realignments do not replace what was
activated until `realign adapters unpin`.")]
    Activate {
        /// Generation id, 12 hex digits, or `base`
        generation: String,
        /// Refuse unless this generation serves now
        #[arg(long, value_name = "GENERATION")]
        expected: Option<String>,
        /// Where the server is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Remove adapters, records and cached results that exceed [retention]
    Gc(gc::GcArgs),
    /// Make a running server go back to the generation that served before; exits 1 if it refuses
    #[command(after_help = "\
Examples:
  realign adapters rollback
  realign adapters rollback --expected 0123456789ab     safe to repeat
  realign adapters rollback --url http://10.0.0.5:8080 --admin-key KEY
Realignments do not replace what was gone back to until `realign adapters unpin`.")]
    Rollback {
        /// The generation to leave: refuse unless it serves now, or was left already
        #[arg(long, value_name = "GENERATION")]
        expected: Option<String>,
        /// Where the server is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Let realignments replace again what an operator activated or went back to
    #[command(after_help = "\
An activation and a rollback pin what serves: policies and data that change are examined, and no
realignment swaps. This releases the pin; a realignment that is due begins at once.
Examples:
  realign adapters unpin
  realign adapters unpin --url http://10.0.0.5:8080 --admin-key KEY")]
    Unpin {
        /// Where the server is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Print what served, when, and who decided it, newest first
    #[command(after_help = "\
Examples:
  realign adapters history
  realign adapters history --json | jq '.activations[0]'
The history outlives restarts and is ordered by number, not by clock.")]
    History {
        /// Where the server is.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &AdaptersCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let open = || -> Result<AdapterStore, CliError> {
        Ok(AdapterStore::open(global.resolve()?.paths.adapters)?)
    };
    match command {
        AdaptersCommand::List => list(&open()?, global.json, out),
        AdaptersCommand::Show { generation } => {
            let manifest = open()?.manifest(&GenerationId(generation.clone()))?;
            writeln!(out, "{}", serde_json::to_string_pretty(&manifest)?)?;
            Ok(EXIT_OK)
        }
        AdaptersCommand::Export {
            generation,
            destination,
        } => {
            export(&open()?, &GenerationId(generation.clone()), destination)?;
            let result = json!({"generation": generation, "path": destination});
            if global.json {
                writeln!(out, "{result}")?
            } else {
                writeln!(out, "{generation} is in {}", destination.display())?
            }
            Ok(EXIT_OK)
        }
        AdaptersCommand::Import { source } => {
            let config = global.resolve()?;
            let files = ModelSource::parse(&config.model)?
                .fetch()?
                .quantised(config.engine.quantisation)?
                .cached(config.engine.weights_cache.cache());
            let base = Base {
                spec: files.spec()?,
                hash: files.base_hash()?,
                name: files.name(),
            };
            let id = import(&open()?, source, base)?;
            if global.json {
                writeln!(out, "{}", json!({"generation": id}))?
            } else {
                writeln!(
                    out,
                    "imported as {id}; `realign adapters activate {id}` lets a running server serve it"
                )?
            }
            Ok(EXIT_OK)
        }
        AdaptersCommand::Activate {
            generation,
            expected,
            remote,
        } => {
            let mut body = json!({"generation": generation});
            if let Some(expected) = expected {
                body["expected_generation"] = expected.as_str().into();
            }
            let remote = remote.with_config(global)?;
            swapped(remote.post("generations/activate", &body), global.json, out)
        }
        AdaptersCommand::Gc(args) => gc::run(args, global, out),
        AdaptersCommand::Rollback { expected, remote } => {
            let mut body = json!({});
            if let Some(expected) = expected {
                body["expected_generation"] = expected.as_str().into();
            }
            let remote = remote.with_config(global)?;
            swapped(remote.post("generations/rollback", &body), global.json, out)
        }
        AdaptersCommand::Unpin { remote } => {
            let remote = remote.with_config(global)?;
            let answer = remote.post("generations/unpin", &json!({}))?;
            if global.json {
                writeln!(out, "{answer}")?
            } else {
                match answer["released"].as_str() {
                    Some(id) => writeln!(out, "{} is pinned no more", id_text(&id.into()))?,
                    None => writeln!(out, "nothing was pinned")?,
                }
            }
            Ok(EXIT_OK)
        }
        AdaptersCommand::History { remote } => {
            let answer = remote.with_config(global)?.get("generations/history")?;
            history(&answer, global.json, out)
        }
    }
}

fn history(answer: &Value, as_json: bool, out: &mut dyn Write) -> Result<u8, CliError> {
    if as_json {
        writeln!(out, "{answer}")?;
        return Ok(EXIT_OK);
    }
    let rows = answer["activations"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        writeln!(out, "nothing but the base model has served")?;
    }
    for row in rows {
        let at = row["at"].as_u64().unwrap_or_default();
        writeln!(
            out,
            "{:>5}  {}  {:<9} {} -> {}  {}",
            row["seq"].as_u64().unwrap_or_default(),
            utc(at),
            row["act"].as_str().unwrap_or_default(),
            id_text(&row["from"]),
            id_text(&row["to"]),
            row["reason"].as_str().unwrap_or_default(),
        )?;
    }
    Ok(EXIT_OK)
}

/// Reports a swap. A swap that the server refuses is a failed check; no server is wrong usage.
fn swapped(
    answer: Result<Value, RemoteError>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let (report, text, code) = match answer {
        Ok(answer) => {
            let (from, to) = (id_text(&answer["from"]), id_text(&answer["to"]));
            let text = if from == to {
                format!("{to} serves already")
            } else {
                format!("{to} serves; it was {from}")
            };
            (answer, text, EXIT_OK)
        }
        Err(RemoteError::Refused(message)) => {
            let text = format!("the server refused: {message}");
            (json!({"error": message}), text, EXIT_FAILED)
        }
        Err(other) => return Err(other.into()),
    };
    if as_json {
        writeln!(out, "{report}")?
    } else {
        writeln!(out, "{text}")?
    }
    Ok(code)
}

fn id_text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The base model that an imported adapter has to fit.
struct Base {
    spec: ModelSpec,
    hash: String,
    name: String,
}

fn import(store: &AdapterStore, source: &Path, base: Base) -> Result<GenerationId, CliError> {
    let adapter = read_foreign(source, &|site| base.spec.site_shape(site))?;
    // Only its origin is known: it was trained without our data, policy set or gate.
    let manifest = Manifest {
        base_hash: base.hash,
        base_name: base.name,
        recipe: Manifest::imported_recipe(adapter.config.base_model.as_deref()),
        ..Manifest::default()
    };
    Ok(store.write(&adapter.weights, manifest)?)
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
    use realign_engine::adapter::Manifest;
    use realign_engine::adapter::test_support::small_weights;
    use realign_model::spec::{RopeSpec, Variant};

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

    /// A model of two layers with `heads` heads of two columns.
    fn base(hidden_size: usize, heads: usize) -> Base {
        Base {
            spec: ModelSpec {
                architecture: "llama".into(),
                vocab_size: 8,
                hidden_size,
                intermediate_size: 8,
                layers: 2,
                heads,
                kv_heads: heads,
                head_dim: 2,
                rms_norm_eps: 1e-5,
                rope: RopeSpec::plain(1e4),
                max_position: 16,
                qkv_bias: false,
                tied_embeddings: true,
                variant: Variant::default(),
            },
            hash: "hash".into(),
            name: "tiny".into(),
        }
    }

    #[test]
    fn import_checks_the_shapes_and_activates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = peft::encode(&small_weights(2, 1.0), "elsewhere").unwrap();
        std::fs::write(dir.path().join(peft::CONFIG_FILE), files.config).unwrap();
        std::fs::write(dir.path().join(peft::MODEL_FILE), files.model).unwrap();
        let store = AdapterStore::open(dir.path().join("adapters")).unwrap();
        let id = import(&store, dir.path(), base(6, 2)).unwrap();
        assert!(store.load(&id, "hash").is_ok());
        assert_eq!(store.current().unwrap(), None);
        let error = import(&store, dir.path(), base(8, 2)).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
    }

    #[test]
    fn import_refuses_numbers_and_fields_by_name_and_stores_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = AdapterStore::open(dir.path().join("adapters")).unwrap();
        let attempt = |weights, change: &dyn Fn(&mut Value)| {
            let files = peft::encode(&weights, "elsewhere").unwrap();
            let mut config: Value = serde_json::from_slice(&files.config).unwrap();
            change(&mut config);
            std::fs::write(dir.path().join(peft::CONFIG_FILE), config.to_string()).unwrap();
            std::fs::write(dir.path().join(peft::MODEL_FILE), files.model).unwrap();
            import(&store, dir.path(), base(6, 2)).map_err(|e| e.to_string())
        };
        let mut huge = small_weights(2, 1.0);
        for pair in huge.sites.values_mut() {
            pair.b = (&pair.b * 1e37).unwrap();
        }
        let error = attempt(huge, &|_| ()).unwrap_err();
        assert!(
            error.contains("layers.0.self_attn.q_proj.lora_B.weight"),
            "{error}"
        );
        for (field, value) in [
            ("lora_alpha", json!(1e39)),
            ("lora_alpha", json!(9e5)),
            ("init_lora_weights", json!("pissa")),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("use_bdlora", json!(true)),
        ] {
            let error = attempt(small_weights(2, 1.0), &|c| c[field] = value.clone()).unwrap_err();
            assert!(error.contains(field), "{field}: {error}");
        }
        assert!(store.list().unwrap().is_empty());
        attempt(small_weights(2, 1.0), &|_| ()).unwrap();
    }

    #[test]
    fn a_refused_swap_is_a_failed_check_and_no_server_is_wrong_usage() {
        use super::super::remote::tests::answers;
        let cases = [
            (
                200,
                r#"{"from": "a", "to": "b"}"#,
                EXIT_OK,
                "b serves; it was a",
            ),
            (200, r#"{"from": "b", "to": "b"}"#, EXIT_OK, "already"),
            (
                409,
                r#"{"error": {"message": "c serves"}}"#,
                EXIT_FAILED,
                "c serves",
            ),
        ];
        for (status, body, code, expect) in cases {
            let (remote, server) = answers(status, body).unwrap();
            let command = AdaptersCommand::Activate {
                generation: "b".into(),
                expected: Some("a".into()),
                remote: remote.into(),
            };
            let mut out = Vec::new();
            let got = run(&command, &GlobalArgs::default(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(got == code && text.contains(expect), "{got} {text}");
            let request = server.join().unwrap();
            let (_, body) = request.split_once("\r\n\r\n").unwrap();
            let sent: Value = serde_json::from_str(body).unwrap();
            assert_eq!(sent, json!({"generation": "b", "expected_generation": "a"}));
        }
        let (remote, server) =
            answers(401, r#"{"error": {"message": "a key is required"}}"#).unwrap();
        let command = AdaptersCommand::Rollback {
            expected: None,
            remote: remote.into(),
        };
        assert!(run(&command, &GlobalArgs::default(), &mut Vec::new()).is_err());
        server.join().unwrap();
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::super::Cli::command().debug_assert();
    }
}
