//! `realign adapters gc`: removes what exceeds `[retention]`, or shows what would go.

use std::io::Write;

use serde_json::{Value, json};

use crate::remote::{RemoteArgs, RemoteError};
use crate::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_core::lock::LockError;
use realign_server::api::CollectOptions;
use realign_server::control::{CollectError, collect_offline};

/// Flags of `adapters gc`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  realign adapters gc --dry-run           what would go, and why everything else stays
  realign adapters gc --dry-run --json
  realign adapters gc                     remove it
  realign adapters gc --imported-older-than 90
The limits are in [retention] of the configuration. A server removes what exceeds them by itself, at
its start and after each realignment. Where one runs on the directories, this command asks it (--url);
otherwise it locks them and does the same. What serves, what a rollback returns to, what requests use
and what the active policies led to never goes.
Exit code 1: the server refuses, because a realignment runs.")]
pub(crate) struct GcArgs {
    /// Only show what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Also remove imported adapters that have not been used for this many days
    #[arg(long, value_name = "DAYS")]
    pub(crate) imported_older_than: Option<u32>,
    /// Where the server is.
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(super) fn run(args: &GcArgs, global: &GlobalArgs, out: &mut dyn Write) -> Result<u8, CliError> {
    let days = args.imported_older_than.map(u64::from);
    let options = CollectOptions {
        dry_run: args.dry_run,
        max_imported_age_s: days.map(|days| days * 24 * 60 * 60),
    };
    let report = match collect_offline(&global.resolve()?, options) {
        Ok(collected) => serde_json::to_value(collected)?,
        Err(CollectError::Lock(held @ LockError::Held { .. })) => match ask(args, global) {
            Ok(report) => report,
            Err(RemoteError::Refused(message)) => {
                if global.json {
                    writeln!(out, "{}", json!({"error": message}))?;
                } else {
                    writeln!(out, "the server refused: {message}")?;
                }
                return Ok(EXIT_FAILED);
            }
            Err(error) => {
                return Err(CliError::Eval(format!(
                    "{held}. A server removes what exceeds [retention] by itself; it could not be \
                     asked: {error}"
                )));
            }
        },
        Err(error) => return Err(error.into()),
    };
    if global.json {
        writeln!(out, "{report}")?;
    } else {
        print(&report, out)?;
    }
    Ok(EXIT_OK)
}

/// Has the server do it that holds the directories.
fn ask(args: &GcArgs, global: &GlobalArgs) -> Result<Value, RemoteError> {
    let mut body = json!({"dry_run": args.dry_run});
    if let Some(days) = args.imported_older_than {
        body["imported_older_than_days"] = days.into();
    }
    let remote = args.remote.with_config(global);
    let remote = remote.map_err(|error| RemoteError::NotAllowed(error.to_string()))?;
    remote.post("adapters/gc", &body)
}

fn print(report: &Value, out: &mut dyn Write) -> Result<(), CliError> {
    let verb = if report["dry_run"] == true {
        "would go"
    } else {
        "removed"
    };
    let none = Vec::new();
    for adapter in report["adapters"].as_array().unwrap_or(&none) {
        let what = if adapter["removed"] == true {
            verb
        } else {
            "stays"
        };
        let reason = adapter["reason"].as_str().unwrap_or("?");
        writeln!(
            out,
            "{what:8}  {}  {:>9}  {}",
            adapter["id"].as_str().unwrap_or("?"),
            megabytes(&adapter["bytes"]),
            reason.replace('_', " ")
        )?;
    }
    let kinds = report["removed"].as_object().into_iter().flatten();
    let counted: Vec<String> = kinds
        .filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0))
        .map(|(kind, count)| format!("{count} × {}", kind.replace('_', " ")))
        .collect();
    let counted = if counted.is_empty() {
        "nothing".into()
    } else {
        counted.join(", ")
    };
    writeln!(
        out,
        "{verb}: {counted}; adapters: {} freed, {} kept",
        megabytes(&report["freed_bytes"]),
        megabytes(&report["kept_bytes"])
    )?;
    Ok(())
}

fn megabytes(bytes: &Value) -> String {
    format!("{:.1} MB", bytes.as_f64().unwrap_or(0.0) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::tests::answers;
    use realign_core::lock::{DirLock, Holder};
    use realign_engine::adapter::test_support::small_weights;
    use realign_engine::adapter::{AdapterStore, Manifest};
    use std::path::Path;
    use std::time::Duration;

    fn global(dir: &Path, keep: usize) -> GlobalArgs {
        let config = dir.join("realign.toml");
        std::fs::write(&config, format!("[retention]\ngenerations = {keep}\n")).unwrap();
        GlobalArgs {
            config: Some(config),
            adapters: Some(dir.join("adapters")),
            state: Some(dir.join("state")),
            ..GlobalArgs::default()
        }
    }

    fn gc(
        global: &GlobalArgs,
        dry_run: bool,
        remote: RemoteArgs,
    ) -> Result<(u8, String), CliError> {
        let args = GcArgs {
            dry_run,
            imported_older_than: None,
            remote,
        };
        let mut out = Vec::new();
        let code = run(&args, global, &mut out)?;
        Ok((code, String::from_utf8(out).unwrap()))
    }

    fn nowhere() -> RemoteArgs {
        RemoteArgs {
            url: Some("http://127.0.0.1:9".into()),
            admin_key: None,
        }
    }

    #[test]
    fn without_a_server_what_exceeds_the_limits_goes_and_what_serves_stays() {
        let dir = tempfile::tempdir().unwrap();
        let global = global(dir.path(), 1);
        let store = AdapterStore::open(dir.path().join("adapters")).unwrap();
        let train = |rank, name: &str| {
            let manifest = Manifest {
                recipe: json!({"name": name}),
                ..Manifest::default()
            };
            store.write(&small_weights(rank, 1.0), manifest).unwrap()
        };
        let serving = train(1, "default");
        store.set_current(&serving).unwrap();
        let (other, third) = (train(2, "default"), train(3, "default"));
        let imported = train(4, "imported");
        let (code, text) = gc(&global, true, nowhere()).unwrap();
        assert!(code == EXIT_OK && text.contains("would go"), "{text}");
        assert_eq!(store.list().unwrap().len(), 4, "only shown");
        let (_, text) = gc(&global, false, nowhere()).unwrap();
        assert!(text.contains("removed"), "{text}");
        assert!(store.path(&serving).exists() && store.path(&imported).exists());
        let left = [&other, &third].map(|id| store.path(id).exists());
        assert!(left.iter().filter(|left| **left).count() <= 1, "{left:?}");
        let (_, text) = gc(&global, false, nowhere()).unwrap();
        assert!(text.contains("removed: nothing"), "{text}");
    }

    #[test]
    fn where_a_server_runs_it_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let global = global(dir.path(), 1);
        let adapters = dir.path().join("adapters");
        let holder = Holder::this_process(Some("127.0.0.1:8080".into()));
        let place = AdapterStore::place(&adapters);
        let _server = DirLock::take(place, &holder, Duration::ZERO).unwrap();
        let error = gc(&global, true, nowhere()).unwrap_err().to_string();
        assert!(error.contains("listening on 127.0.0.1:8080"), "{error}");
        assert!(error.contains("by itself"), "{error}");
        let answer = r#"{"dry_run": true, "adapters": [], "removed": {"verdict": 3}, "freed_bytes": 0, "kept_bytes": 2500000}"#;
        let (remote, server) = answers(200, answer).unwrap();
        let (code, text) = gc(&global, true, remote.into()).unwrap();
        let expect = "would go: 3 × verdict; adapters: 0.0 MB freed, 2.5 MB kept\n";
        assert_eq!((code, text.as_str()), (EXIT_OK, expect));
        let request = server.join().unwrap();
        assert!(request.contains("/admin/v1/adapters/gc"), "{request}");
        assert!(request.contains(r#""dry_run": true"#), "{request}");
        let refusal = r#"{"error": {"message": "realignment r1 is running"}}"#;
        let (remote, server) = answers(409, refusal).unwrap();
        let (code, text) = gc(&global, false, remote.into()).unwrap();
        assert!(code == EXIT_FAILED && text.contains("r1"), "{text}");
        server.join().unwrap();
    }
}
