//! Errors of building copies of the weights.

use crate::adapter::generation::GenerationId;

/// Why a copy of the weights could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The builder cannot load it.
    #[error("{0}")]
    Load(String),
    /// The thread that should build it could not be started.
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
    /// It was loaded, but generating a first token failed. Holds the engine's reason.
    #[error("{0}")]
    Generate(String),
    /// Building it panicked. Holds the panic's message.
    #[error("internal error: {0}")]
    Panicked(String),
    /// It was loaded, but dropped its first sequence without a token.
    #[error("its first token never came")]
    NoToken,
}

/// Why a generation cannot be made ready to serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The copy could not be built.
    #[error("generation {generation} could not be loaded into the engine: {reason}")]
    Build {
        /// The generation that was to be built.
        generation: GenerationId,
        /// The builder's reason.
        reason: String,
    },
    /// It computes what is no number.
    #[error(
        "generation {generation} is broken: a probe of it came to logits that are not finite numbers \
         (NaN or infinity); train it again, or activate another"
    )]
    NotFinite {
        /// The generation that was probed.
        generation: GenerationId,
    },
    /// It served, and was taken out of service.
    #[error(
        "generation {generation} was taken out of service, because one sequence after another came \
         to logits that are not finite numbers (NaN or infinity); train it again, or activate another"
    )]
    TakenOut {
        /// The generation that was taken out of service.
        generation: GenerationId,
    },
    /// The engine has stopped, or is shutting down.
    #[error("the engine has stopped")]
    Stopped,
    /// Running sequences hold all the copies there may be.
    #[error(
        "generation {generation} needs another copy of the weights, and running requests hold all \
         {limit} (engine.copies) for longer than {seconds} s"
    )]
    NoRoom {
        /// The generation that was to be built.
        generation: GenerationId,
        /// Copies allowed, `engine.copies`.
        limit: usize,
        /// How long the caller waited for a free copy.
        seconds: u64,
    },
}
