//! Where targets are, and with which keys.

use std::collections::HashMap;
use std::sync::Arc;

use realign_fleet::{HttpTarget, Kind, Target, TargetId, addresses};

use crate::config::{TargetConfig, TargetKeys};

/// How a target is reached.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) authority: String,
    pub(super) kind: Kind,
    pub(super) keys: TargetKeys,
    /// The setting it comes from.
    from: usize,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("authority", &self.authority)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// All targets there are now. A name that cannot be looked up keeps the addresses it had; why is
/// returned as well.
pub(super) fn find(
    settings: &[TargetConfig],
    before: &HashMap<TargetId, Endpoint>,
) -> (HashMap<TargetId, Endpoint>, Option<String>) {
    let mut found = HashMap::new();
    let mut problem = None;
    for (from, setting) in settings.iter().enumerate() {
        // They were there at the start, and an environment does not change.
        let keys = setting.keys().unwrap_or_default();
        match addresses(&setting.url, setting.resolve) {
            Ok(all) => {
                for address in all {
                    let endpoint = Endpoint {
                        authority: address.authority,
                        kind: setting.kind,
                        keys: keys.clone(),
                        from,
                    };
                    found.entry(address.id).or_insert(endpoint);
                }
            }
            Err(error) => {
                problem = Some(format!("{}: {error}", setting.url));
                let kept = before.iter().filter(|(_, endpoint)| endpoint.from == from);
                found.extend(kept.map(|(id, endpoint)| (id.clone(), endpoint.clone())));
            }
        }
    }
    (found, problem)
}

/// The driver of a target.
pub(super) fn connect(known: &HashMap<TargetId, Endpoint>, id: &TargetId) -> Arc<dyn Target> {
    match known.get(id).cloned() {
        Some(endpoint) => Arc::new(HttpTarget::new(
            endpoint.kind,
            &endpoint.authority,
            endpoint.keys.requests,
            endpoint.keys.admin,
        )),
        // It went in this moment. Asking there finds out.
        None => {
            let authority = id.0.trim_start_matches("http://");
            Arc::new(HttpTarget::new(Kind::Vllm, authority, None, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_looked_up_keeps_its_targets() {
        let setting = |url: &str, resolve| TargetConfig {
            kind: Kind::Vllm,
            url: url.into(),
            resolve,
            key_env: None,
            admin_key_env: None,
        };
        let settings = [
            setting("http://127.0.0.1:1", true),
            setting("http://pod:8000", false),
        ];
        let (found, problem) = find(&settings, &HashMap::new());
        assert_eq!((found.len(), problem), (2, None));
        let gone = [
            setting("http://no-such-host.invalid:1", true),
            settings[1].clone(),
        ];
        let (kept, problem) = find(&gone, &found);
        assert_eq!(kept.len(), 2);
        assert!(problem.unwrap().contains("no-such-host"));
    }
}
