//! What can go wrong with a store.

/// Why the store did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not answer, or answers with an error of its own. Whether a write was done is unknown.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
    /// It refuses these credentials.
    #[error(
        "the store refuses the credentials for {key}: {reason}; the environment names them \
         (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity token, or the machine's role)"
    )]
    Denied {
        /// The object.
        key: String,
        /// What it answered.
        reason: String,
    },
    /// It cannot write under a condition, without which two controllers would both publish.
    #[error("the store does not support conditional writes, which realign relies on: {0}")]
    Unconditional(String),
    /// An object holds what it should not.
    #[error("{key} in the store {problem}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Another controller may publish, or none may at present.
    #[error("this server may not publish: {0}")]
    NotHolder(String),
    /// The client could not be set up.
    #[error("the store cannot be set up: {0}")]
    Setup(String),
}

impl StoreError {
    pub(crate) fn damaged(key: &str, problem: impl Into<String>) -> Self {
        Self::Damaged {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Whether waiting may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Denied { .. } | Self::NotHolder(_) => true,
            Self::Unconditional(_) | Self::Damaged { .. } | Self::Setup(_) => false,
        }
    }
}
