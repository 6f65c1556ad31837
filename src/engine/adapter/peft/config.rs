//! `adapter_config.json`: the fields that change what an adapter computes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::PeftError;
use super::fields::{self, excerpt};
use super::module_path;
use super::targets::Targets;
use crate::adapter::AdapterError;
use realign_core::ranges::ALPHA;
use realign_model::lora::LoraWeights;

/// Allowed ranks.
const RANK_RANGE: RangeInclusive<u64> = 1..=1024;
/// Allowed ranks, in words.
pub(super) const RANKS: &str = "a whole number from 1 to 1024";

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
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Which modules it says are adapted.
    pub(super) targets: Targets,
}

impl PeftConfig {
    /// Parses the file's content. A field that may change what the adapter computes, and is not
    /// implemented, is an error that names it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, PeftError> {
        let fields: Map<String, Value> =
            serde_json::from_slice(text).map_err(|source| PeftError::NotJson {
                near: near(text, &source),
                source,
            })?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let peft_type = text("peft_type").unwrap_or("");
        if peft_type != "LORA" {
            return Err(PeftError::Type(peft_type.into()));
        }
        fields::check(&fields)?;
        let number = |name: &str| fields.get(name).unwrap_or(&Value::Null);
        Ok(Self {
            r: rank("r", number("r"))?,
            lora_alpha: alpha("lora_alpha", number("lora_alpha"))?,
            use_rslora: fields.get("use_rslora") == Some(&Value::Bool(true)),
            base_model: text("base_model_name_or_path").map(String::from),
            rank_pattern: patterns(&fields, "rank_pattern", rank)?,
            alpha_pattern: patterns(&fields, "alpha_pattern", alpha)?,
            targets: Targets::parse(&fields)?,
        })
    }

    /// Rank at a module path.
    pub(super) fn rank(&self, path: &str) -> usize {
        lookup(&self.rank_pattern, path).unwrap_or(self.r)
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

/// The text before and at a syntax error: Python writes `NaN` and `Infinity`, which are no JSON.
fn near(text: &[u8], error: &serde_json::Error) -> String {
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines
        .nth(error.line().saturating_sub(1))
        .unwrap_or_default();
    let to = (error.column() + 16).min(line.len());
    let from = error.column().saturating_sub(48).min(to);
    String::from_utf8_lossy(&line[from..to]).trim().to_string()
}

fn rank(field: &str, value: &Value) -> Result<usize, PeftError> {
    let rank = value.as_u64().filter(|r| RANK_RANGE.contains(r));
    rank.map(|r| r as usize).ok_or_else(|| PeftError::Rank {
        field: field.into(),
        value: excerpt(value),
    })
}

fn alpha(field: &str, value: &Value) -> Result<f64, PeftError> {
    let alpha = value.as_f64().filter(|a| ALPHA.contains(*a));
    alpha.ok_or_else(|| PeftError::Alpha {
        field: field.into(),
        value: excerpt(value),
    })
}

/// PEFT's patterns are regular expressions that match a suffix of the module path, at a dot. Of
/// several that match, the first counts.
fn patterns<T>(
    fields: &Map<String, Value>,
    field: &'static str,
    read: impl Fn(&str, &Value) -> Result<T, PeftError>,
) -> Result<Vec<(Regex, T)>, PeftError> {
    let entries = match fields.get(field) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(PeftError::Patterns(field)),
    };
    let compile = |(pattern, value): (&String, &Value)| {
        let number = read(&format!("{field}[{pattern:?}]"), value)?;
        let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$"));
        let regex = regex.map_err(|source| PeftError::Pattern {
            field,
            pattern: pattern.clone(),
            source,
        })?;
        Ok((regex, number))
    };
    entries.iter().map(compile).collect()
}

fn lookup<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(regex, _)| regex.is_match(path))
        .map(|(_, number)| *number)
}
