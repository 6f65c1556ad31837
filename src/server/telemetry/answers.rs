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
    pub route: &'static str,
    /// The request's id, for the log.
    pub request_id: String,
    /// Name of the API key it was sent with, for the log.
    pub caller: Option<Arc<str>>,
    /// HTTP status; for a stream that failed after its header was sent, the status of the failure.
    pub status: u16,
    /// From receipt to the first token; `None` if there was none.
    pub time_to_first_token: Option<Duration>,
    /// Gaps between consecutive tokens.
    pub inter_token: Vec<Duration>,
    /// From receipt to the last byte.
    pub duration: Duration,
    /// Prompt tokens processed.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// The generation that answered, for the log.
    pub generation: Option<String>,
    /// Its span, if it is traced.
    pub trace: Option<TraceContext>,
}

impl RequestFinished {
    /// Whether it is a client request, as opposed to an operator request or an unmatched path.
    pub fn is_traffic(&self) -> bool {
        self.route.starts_with("/v1/") || self.route == IN_PROCESS
    }
}

/// The labels that identify a rule in metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleLabels {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// Its severity.
    pub severity: &'static str,
}

/// An active rule and the number of judged answers that violate it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RuleCount {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// Its severity.
    pub severity: &'static str,
    /// Judged answers that violate it, since the rule became active.
    pub count: u64,
}

/// The result of judging an answer to a client.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Whether the answer violates no enforced policy.
    pub complies: bool,
    /// The violated rules, including those of `dryrun` policies.
    pub violations: Vec<RuleLabels>,
    /// From the answer's last byte to the judgement.
    pub lag: Duration,
}
