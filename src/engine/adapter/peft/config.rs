//! `adapter_config.json`: the fields that change what an adapter computes.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::PeftError;
use super::module_path;
use crate::adapter::AdapterError;
use realign_model::lora::LoraWeights;

/// Fields that, when set, ask for more than plain LoRA. PEFT adds fields with every release, so
/// unknown ones pass; these would change the result silently.
const MUST_BE_UNSET: [&str; 11] = [
    "use_dora",
    "use_qalora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "arrow_config",
    "megatron_config",
];

/// An adapter's configuration.
#[derive(Clone, Debug)]
pub struct PeftConfig {
    /// `r`: the rank of modules that no pattern matches.
    pub(crate) r: usize,
    /// `lora_alpha`: alpha of modules that no pattern matches.
    pub(crate) lora_alpha: f64,
    /// `use_rslora`: the scale is alpha / sqrt(r) rather than alpha / r.
    pub(crate) use_rslora: bool,
    /// `base_model_name_or_path`, if given.
    pub base_model: Option<String>,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

impl PeftConfig {
    /// Parses the file's content; the error names the field.
    pub(super) fn parse(text: &[u8]) -> Result<Self, PeftError> {
        let fields: Map<String, Value> = serde_json::from_slice(text)?;
        let peft_type = fields
            .get("peft_type")
            .and_then(Value::as_str)
            .unwrap_or("");
        if peft_type != "LORA" {
            return Err(PeftError::Type(peft_type.into()));
        }
        if let Some(field) = MUST_BE_UNSET.into_iter().find(|f| is_set(fields.get(*f))) {
            return Err(PeftError::NotPlain(field));
        }
        let bias = fields.get("bias").and_then(Value::as_str).unwrap_or("none");
        if bias != "none" {
            return Err(PeftError::Bias(bias.into()));
        }
        let r = fields
            .get("r")
            .and_then(Value::as_u64)
            .filter(|r| (1..=1024).contains(r));
        let r = r.ok_or(PeftError::Rank)?;
        let alpha = fields
            .get("lora_alpha")
            .and_then(Value::as_f64)
            .filter(|a| *a > 0.0);
        Ok(Self {
            r: r as usize,
            lora_alpha: alpha.ok_or(PeftError::Alpha)?,
            use_rslora: is_set(fields.get("use_rslora")),
            base_model: fields
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(String::from),
            rank_pattern: patterns(&fields, "rank_pattern")?,
            alpha_pattern: patterns(&fields, "alpha_pattern")?,
        })
    }

    /// Rank at a module path.
    pub(super) fn rank(&self, path: &str) -> usize {
        lookup(&self.rank_pattern, path).map_or(self.r, |r| r as usize)
    }

    /// Scale at a module path.
    pub(super) fn scale(&self, path: &str) -> f64 {
        let rank = self.rank(path) as f64;
        let alpha = lookup(&self.alpha_pattern, path).unwrap_or(self.lora_alpha);
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Writes the configuration of an adapter: rank and alpha of its first site, and patterns for
    /// the sites that differ.
    pub(super) fn describe(
        weights: &LoraWeights,
        base_name: &str,
    ) -> Result<Vec<u8>, AdapterError> {
        let mut common = None;
        let mut ranks = Map::new();
        let mut alphas = Map::new();
        let mut modules = BTreeSet::new();
        for (site, pair) in &weights.sites {
            let (rank, _) = pair.a.dims2()?;
            let alpha = pair.scale * rank as f64;
            let (r, lora_alpha) = *common.get_or_insert((rank, alpha));
            let path = module_path(*site).replace('.', "\\.");
            if rank != r {
                ranks.insert(path.clone(), json!(rank));
            }
            if alpha != lora_alpha {
                alphas.insert(path, number(alpha));
            }
            modules.insert(site.projection.name());
        }
        let (r, lora_alpha) = common.unwrap_or((1, 1.0));
        let config = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": base_name,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_to_transform": null,
            "lora_alpha": number(lora_alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": r,
            "rank_pattern": ranks,
            "target_modules": modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        });
        let mut text = format!("{config:#}");
        text.push('\n');
        Ok(text.into_bytes())
    }
}

/// Whole numbers without a fraction, as PEFT writes them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(_) => true,
    }
}

/// PEFT's patterns are regular expressions that match a suffix of the module path, at a dot.
fn patterns(
    fields: &Map<String, Value>,
    field: &'static str,
) -> Result<Vec<(Regex, f64)>, PeftError> {
    let entries = match fields.get(field) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(PeftError::Patterns(field)),
    };
    let mut compiled = Vec::with_capacity(entries.len());
    for (pattern, value) in entries {
        let number = value.as_f64().filter(|n| *n > 0.0);
        let number = number.ok_or_else(|| PeftError::PatternNumber {
            field,
            pattern: pattern.clone(),
        })?;
        let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$")).map_err(|source| {
            PeftError::Pattern {
                field,
                pattern: pattern.clone(),
                source,
            }
        })?;
        compiled.push((regex, number));
    }
    Ok(compiled)
}

fn lookup(patterns: &[(Regex, f64)], path: &str) -> Option<f64> {
    patterns
        .iter()
        .find(|(regex, _)| regex.is_match(path))
        .map(|(_, number)| *number)
}
