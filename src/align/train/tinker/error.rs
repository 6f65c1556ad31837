//! Errors of training on an engine.

/// Why an engine trained nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TinkerError {
    /// The environment variable with the engine's key is not set.
    #[error(
        "the environment variable {0} of train.tinker.key_env is not set: set it to the engine's key, \
         or remove the setting"
    )]
    NoKey(String),
    /// The engine was unreachable or kept failing.
    #[error(
        "the training engine {url} did not answer after {attempts} attempts: {why}; see that it runs, or set \
         train.engine = \"local\""
    )]
    Unreachable {
        /// Its root.
        url: String,
        /// Number of attempts made.
        attempts: u32,
        /// The last failure, in words.
        why: String,
    },
    /// The engine rejected a request.
    #[error("the training engine {url} refused {path}: status {status}: {body}; {advice}")]
    Refused {
        /// Its root.
        url: String,
        /// What was asked for.
        path: String,
        /// HTTP status.
        status: u16,
        /// The beginning of the response's body.
        body: String,
        /// What to do.
        advice: &'static str,
    },
    /// The run took too long.
    #[error(
        "the training engine was not done after {minutes} minutes, and nothing was published: raise \
         train.max_minutes, or see what holds the engine up"
    )]
    TooLong {
        /// `train.max_minutes`.
        minutes: u64,
    },
    /// An answer has another form than was asked for.
    #[error(
        "the training engine answered something else than was asked for: {0}; see that it speaks the Tinker API \
         as SkyRL serves it"
    )]
    Answer(String),
    /// The engine has no such base model, or several.
    #[error("{what}: set train.tinker.model to one of those that the engine has: {known}")]
    Model {
        /// What is wrong.
        what: String,
        /// The engine's base models.
        known: String,
    },
    /// The engine's base model computes something else than the one that is served here.
    #[error(
        "the engine's base model {model} is another one than the model served here: their log-probabilities of the same \
         answers differ by {difference} nats a token (at most {limit} is rounding); start the engine with the model \
         served here, or set train.tinker.model"
    )]
    OtherBase {
        /// The engine's name for it.
        model: String,
        /// Mean absolute difference.
        difference: String,
        /// What is allowed.
        limit: String,
    },
    /// The recipe asks for something that the API cannot say.
    #[error("train.{field} is {value}; {advice}, or set train.engine = \"local\"")]
    Unsupported {
        /// The setting's key below `train.`.
        field: &'static str,
        /// Its value.
        value: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// What the engine trained cannot be used.
    #[error("what the training engine trained cannot be used: {0}; nothing was published")]
    Adapter(String),
}

impl TinkerError {
    /// Whether the same run may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, TinkerError::Unreachable { .. })
    }

    /// What to do about a status.
    pub(super) fn advice(status: u16) -> &'static str {
        match status {
            401 | 403 => "give it its key: train.tinker.key_env names an environment variable",
            404 => {
                "train.tinker.url is the engine's root, without /api/v1; a model that it forgot means that it was \
                 restarted"
            }
            _ => "its log says more",
        }
    }
}
