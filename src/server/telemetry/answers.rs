//! Records of finished requests and of judged answers.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::traces::TraceContext;

/// The route label of requests that the embedding process makes without HTTP.
pub const IN_PROCESS: &str = "in-process";

/// A finished request, over HTTP or in process.
#[derive(Clone, Debug, Default)]
pub struct RequestFinished {
    /// The route's template, never the client's path, so that label values stay bounded.
    pub(crate) route: &'static str,
    /// The request's id, for the log.
    pub(crate) request_id: String,
    /// Name of the API key it was sent with, for the log.
    pub(crate) caller: Option<Arc<str>>,
    /// HTTP status; for a stream that failed after its header was sent, the status of the failure.
    pub(crate) status: u16,
    /// From receipt to the first token; `None` if there was none.
    pub(crate) time_to_first_token: Option<Duration>,
    /// Gaps between consecutive tokens.
    pub(crate) inter_token: Vec<Duration>,
    /// From receipt to the last byte.
    pub(crate) duration: Duration,
    /// Prompt tokens processed.
    pub(crate) prompt_tokens: usize,
    /// Tokens generated.
    pub(crate) completion_tokens: usize,
    /// The generation that answered, for the log.
    pub(crate) generation: Option<String>,
    /// Its span, if it is traced.
    pub(crate) trace: Option<TraceContext>,
}

impl RequestFinished {
    /// Whether it is a client request, as opposed to an operator request or an unmatched path.
    pub(crate) fn is_traffic(&self) -> bool {
        is_client_route(self.route) || self.route == IN_PROCESS
    }
}

/// Whether a route is for clients: OpenAI's and Anthropic's begin with `/v1/`, Ollama's with `/api/`.
/// Loading and unloading of adapters is for operators, under the paths that vLLM gave it.
pub(crate) fn is_client_route(route: &str) -> bool {
    let of_operators = route.ends_with("load_lora_adapter");
    (route.starts_with("/v1/") || route.starts_with("/api/")) && !of_operators
}

/// The labels that identify a rule in metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleLabels {
    /// Policy id.
    pub(crate) policy: String,
    /// Rule id.
    pub(crate) rule: String,
    /// Its severity.
    pub(crate) severity: &'static str,
}

/// An active rule and the number of judged answers that violate it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RuleCount {
    /// Policy id.
    pub(crate) policy: String,
    /// Rule id.
    pub(crate) rule: String,
    /// Its severity.
    pub(crate) severity: &'static str,
    /// Judged answers that violate it, since the rule became active.
    pub(crate) count: u64,
    /// Answers that were judged since then.
    pub(crate) judged: u64,
}

/// The result of judging an answer to a client.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Whether the answer violates no enforced policy.
    pub(crate) complies: bool,
    /// The violated rules, including those of `dryrun` policies.
    pub(crate) violations: Vec<RuleLabels>,
    /// From the answer's last byte to the judgement.
    pub(crate) lag: Duration,
}

#[cfg(test)]
mod tests {
    use super::is_client_route;

    #[test]
    fn clients_of_every_format_are_traffic_and_operators_are_not() {
        for (route, of_clients) in [
            ("/v1/chat/completions", true),
            ("/v1/messages", true),
            ("/api/chat", true),
            ("/api/generate", true),
            ("/admin/v1/overview", false),
            ("/metrics", false),
            ("/v1/load_lora_adapter", false),
            ("/v1/unload_lora_adapter", false),
            ("unmatched", false),
        ] {
            assert_eq!(is_client_route(route), of_clients, "{route}");
        }
    }
}
