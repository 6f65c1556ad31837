//! `target_modules`, `exclude_modules` and `layers_to_transform`: which modules the configuration says
//! are adapted. The tensors say it too, and where the two differ one of them is wrong.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::error::PeftError;
use super::fields::excerpt;
use super::module_path;
use realign_model::lora::LoraSite;

/// Which modules a configuration adapts.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    named: Option<Selector>,
    excluded: Option<Selector>,
    layers: Option<BTreeSet<u64>>,
}

/// Modules by name, which match a path from a dot on, or by a pattern for the whole path.
#[derive(Clone, Debug)]
enum Selector {
    Names(Vec<String>),
    Pattern(Regex),
}

impl Targets {
    pub(super) fn parse(fields: &Map<String, Value>) -> Result<Self, PeftError> {
        let all = |value: &Value| {
            value
                .as_str()
                .is_some_and(|v| v.eq_ignore_ascii_case("all-linear"))
        };
        Ok(Self {
            named: match fields.get("target_modules").filter(|v| !all(v)) {
                Some(value) => Selector::parse("target_modules", value)?,
                None => None,
            },
            excluded: match fields.get("exclude_modules") {
                Some(value) => Selector::parse("exclude_modules", value)?,
                None => None,
            },
            layers: layers(fields.get("layers_to_transform"))?,
        })
    }

    /// Compares with the sites that have tensors.
    ///
    /// # Errors
    /// [`PeftError::LeftOut`] for tensors that PEFT would not apply, [`PeftError::WithoutTensors`] for
    /// a module or layer that is named and has none.
    pub(super) fn check(&self, sites: &[LoraSite]) -> Result<(), PeftError> {
        let paths: Vec<String> = sites.iter().map(|site| module_path(*site)).collect();
        for (site, path) in sites.iter().zip(&paths) {
            let field = if self.excluded.as_ref().is_some_and(|e| e.matches(path)) {
                "exclude_modules"
            } else if self.named.as_ref().is_some_and(|n| !n.matches(path)) {
                "target_modules"
            } else if self
                .layers
                .as_ref()
                .is_some_and(|l| !l.contains(&(site.layer as u64)))
            {
                "layers_to_transform"
            } else {
                continue;
            };
            let path = path.clone();
            return Err(PeftError::LeftOut { path, field });
        }
        let without = |field, name: &dyn std::fmt::Display| PeftError::WithoutTensors {
            field,
            name: name.to_string(),
        };
        if let Some(Selector::Names(names)) = &self.named {
            let excluded = |name: &str| self.excluded.as_ref().is_some_and(|e| e.matches(name));
            let unused =
                |name: &&String| !paths.iter().any(|p| names_path(name, p)) && !excluded(name);
            if let Some(name) = names.iter().find(unused) {
                return Err(without("target_modules", name));
            }
        }
        let mut layers = self.layers.iter().flatten();
        match layers.find(|layer| !sites.iter().any(|site| site.layer as u64 == **layer)) {
            Some(layer) => Err(without("layers_to_transform", layer)),
            None => Ok(()),
        }
    }
}

impl Selector {
    fn parse(field: &'static str, value: &Value) -> Result<Option<Self>, PeftError> {
        let unusable = || PeftError::Selector {
            field,
            value: excerpt(value),
        };
        match value {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => {
                let pattern = Regex::new(&format!("^(?:{text})$"));
                let pattern = pattern.map_err(|source| PeftError::Pattern {
                    field,
                    pattern: text.clone(),
                    source,
                })?;
                Ok(Some(Selector::Pattern(pattern)))
            }
            Value::Array(items) => {
                let names = items.iter().map(|item| item.as_str().map(String::from));
                let names = names.collect::<Option<Vec<_>>>().ok_or_else(unusable)?;
                Ok(Some(Selector::Names(names)))
            }
            _ => Err(unusable()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Selector::Names(names) => names.iter().any(|name| names_path(name, path)),
            Selector::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// Whether a module's name is the path or its end.
fn names_path(name: &str, path: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn layers(value: Option<&Value>) -> Result<Option<BTreeSet<u64>>, PeftError> {
    let items = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) if items.is_empty() => return Ok(None),
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let numbers: Option<BTreeSet<u64>> = items.iter().map(Value::as_u64).collect();
    let unusable = || PeftError::Selector {
        field: "layers_to_transform",
        value: value.map(excerpt).unwrap_or_default(),
    };
    numbers.map(Some).ok_or_else(unusable)
}
