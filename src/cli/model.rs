//! `realign model`: look at a model, or fetch one ahead of time.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{CliError, DeviceArgs, EXIT_OK, GlobalArgs};
use realign_engine::adapter::base_id;
use realign_model::{LoadedModel, ModelChoice, ModelFiles, ModelSource, ModelSpec};

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Load a model and show its shapes, tokenizer, size and identity
    #[command(after_help = "\
Examples:
  realign model info                                    the configured model
  realign model info models/SmolLM2-135M-Instruct.Q4_1.gguf
  realign model info hf:Qwen/Qwen2.5-0.5B-Instruct --json
The base hash decides which adapters fit: an adapter serves on the base it was trained on.")]
    Info {
        /// A .gguf file, a directory of safetensors, or hf:<owner>/<name> [default: the configured model]
        source: Option<String>,
        /// What computes
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Fetch a model into the hub cache and print its directory
    #[command(after_help = "\
Examples:
  realign model fetch hf:Qwen/Qwen2.5-0.5B-Instruct
  realign model fetch hf:HuggingFaceTB/SmolLM2-360M-Instruct@main
  realign serve --model \"$(realign model fetch hf:Qwen/Qwen2.5-0.5B-Instruct)\"
HF_HOME is where files are kept, HF_ENDPOINT names a mirror, HF_TOKEN a token for gated models.")]
    Fetch {
        /// hf:<owner>/<name>[@revision]
        source: String,
    },
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    command: &ModelCommand,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    match command {
        ModelCommand::Info { source, .. } => {
            let config = global.resolve()?;
            let source = source.as_ref().unwrap_or(&config.model);
            let device = realign_backend::open(config.engine.device)?;
            let files = ModelSource::parse(source)?
                .fetch()?
                .quantised(config.engine.quantisation)?;
            // By its path: what was fetched is not asked for again.
            let fetched = files.root.to_string_lossy();
            let choice = ModelChoice {
                tokenizer: config.tokenizer.as_deref(),
                quantisation: config.engine.quantisation,
                weights_cache: config.engine.weights_cache.cache(),
                ..ModelChoice::from(&*fetched)
            };
            let loaded = LoadedModel::load(choice, &*device)?;
            let report = info(&files, &loaded)?;
            match global.json {
                true => writeln!(out, "{report}")?,
                false => out.write_all(info_text(&report).as_bytes())?,
            }
        }
        ModelCommand::Fetch { source } => {
            let root = ModelSource::parse(source)?.fetch()?.root;
            match global.json {
                true => writeln!(out, "{}", json!({"source": source, "path": root}))?,
                false => writeln!(out, "{}", root.display())?,
            }
        }
    }
    Ok(EXIT_OK)
}

fn info(files: &ModelFiles, loaded: &LoadedModel) -> Result<Value, CliError> {
    let tokenizer = &loaded.tokenizer;
    let token = |id: u32| json!({"id": id, "text": tokenizer.token_text(id)});
    let ends = tokenizer.end_of_generation_ids().iter();
    Ok(json!({
        "name": &*loaded.name,
        "path": files.root,
        "format": files.format(),
        "weight_bytes": files.weight_bytes()?,
        "training_weight_bytes": loaded.backend.training_weight_bytes(),
        "base_hash": &*loaded.base_hash,
        "base_generation": base_id(&loaded.base_hash),
        "parameters": loaded.spec().parameters(),
        "spec": spec(loaded.spec()),
        "tokenizer": {
            "vocab_size": tokenizer.vocab_size(),
            "bos": tokenizer.bos_id().map(token),
            "end_of_generation": ends.map(|id| token(*id)).collect::<Vec<_>>(),
        },
        "chat": {"end_of_turn": token(loaded.chat.end_of_turn_id())},
    }))
}

fn spec(spec: &ModelSpec) -> Value {
    json!({
        "architecture": spec.architecture,
        "layers": spec.layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position": spec.max_position,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope.theta,
        "sliding_window": spec.variant.windows.iter().flatten().next(),
        "qkv_bias": spec.qkv_bias,
        "tied_embeddings": spec.tied_embeddings,
        "experts": spec.variant.mixture.as_ref().map(|m| m.experts),
        "experts_per_token": spec.variant.mixture.as_ref().map(|m| m.used),
        "expert_intermediate_size": spec.variant.mixture.as_ref().map(|m| m.inner),
    })
}

/// The report as `key  value` lines, nested keys with dots.
fn info_text(report: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", report, &mut lines);
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    lines
        .into_iter()
        .map(|(key, value)| format!("{key:width$}  {value}\n"))
        .collect()
}

fn flatten(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let key = |name: &str| match prefix.is_empty() {
        true => name.to_owned(),
        false => format!("{prefix}.{name}"),
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| flatten(&key(name), value, lines)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(i, value)| flatten(&key(&i.to_string()), value, lines)),
        Value::String(text) => lines.push((prefix.to_owned(), text.escape_debug().to_string())),
        other => lines.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_model::test_support::test_model_path;

    #[test]
    fn the_default_model_is_described() {
        let source = Some(test_model_path().to_string_lossy().into_owned());
        let global = GlobalArgs {
            json: true,
            ..GlobalArgs::default()
        };
        let command = ModelCommand::Info {
            source,
            device: DeviceArgs::default(),
        };
        let mut out = Vec::new();
        let code = run(&command, &global, &mut out).unwrap();
        let report: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(code, EXIT_OK);
        assert_eq!(report["parameters"], 134_515_008);
        assert_eq!(report["spec"]["architecture"], "llama");
        assert_eq!(report["chat"]["end_of_turn"]["text"], "<|im_end|>");
        assert_eq!(report["base_hash"].as_str().unwrap().len(), 64);
        let text = info_text(&report);
        assert!(text.contains("spec.layers"), "{text}");
    }

    #[test]
    fn a_source_that_is_none_says_what_is_allowed() {
        for (source, expect) in [
            ("hf:one-part", "hf:<owner>/<name>"),
            ("none/such", "no such file"),
        ] {
            let command = ModelCommand::Fetch {
                source: source.into(),
            };
            let error = run(&command, &GlobalArgs::default(), &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
        }
    }
}
