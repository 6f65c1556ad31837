//! What is mistral.rs's own: adapters are aliases of generations, and are listed apart from the models.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{HttpTarget, LOOK};
use crate::target::TargetError;

/// The name of whichever model is the default one.
pub(super) const DEFAULT: &str = "default";
/// Lists the adapters of the default model.
const LIST: &str = "/v1/lora_adapters";

/// The adapters that are loaded.
pub(super) struct Adapters(Vec<Value>);

impl Adapters {
    /// By name, with the paths that they were loaded from.
    pub(super) fn into_paths(self) -> BTreeMap<String, Option<String>> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.0
            .iter()
            .filter_map(|adapter| Some((text(&adapter["id"])?, text(&adapter["source"]))))
            .collect()
    }

    /// Its own id of what a name refers to.
    pub(super) fn generation(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|adapter| adapter["id"] == name)?;
        found["generation"].as_str().map(str::to_owned)
    }
}

impl HttpTarget {
    pub(super) fn mistralrs_adapters(&self) -> Result<Adapters, TargetError> {
        let answer = self.send(LIST, &self.key, None, LOOK)?;
        let mut body = answer.json();
        match body["data"].take() {
            Value::Array(adapters) if answer.status == 200 => Ok(Adapters(adapters)),
            _ if answer.status >= 500 => Err(TargetError::Unreachable(
                answer.refused("GET /v1/lora_adapters").to_string(),
            )),
            _ => Err(answer.refused("GET /v1/lora_adapters")),
        }
    }
}
