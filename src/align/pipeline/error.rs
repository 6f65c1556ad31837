//! Errors of the pipeline.

use crate::impact::ImpactError;
use crate::oracle::corrective::CorrectiveError;
use crate::train::TrainError;

/// Why a pair cannot be rendered as token ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source}: {what}", source = location)]
pub struct RenderError {
    /// `file:line` of the pair.
    pub(crate) location: String,
    /// The error of the chat template or the tokenizer.
    pub(crate) what: String,
}

/// Why the pipeline produced no candidate.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A pair cannot be rendered as token ids.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The endpoint that writes compliant responses failed.
    #[error(transparent)]
    Corrective(#[from] CorrectiveError),
    /// The scores give no weights.
    #[error(transparent)]
    Impact(#[from] ImpactError),
    /// Training produced no adapter; never [`TrainError::Cancelled`].
    #[error(transparent)]
    Train(TrainError),
    /// The candidate could not be asked what it was trained on.
    #[error("the candidate could not be reviewed: {0}")]
    Review(String),
    /// The observer cancelled the run.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation of the reference or of the impact scores failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<TrainError> for PipelineError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Cancelled => PipelineError::Cancelled,
            other => PipelineError::Train(other),
        }
    }
}
