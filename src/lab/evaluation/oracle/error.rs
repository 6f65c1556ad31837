//! Errors of `realign eval oracle`.

use realign_align::oracle::features::FeatureError;
use realign_align::oracle::judge::JudgeError;
use realign_align::oracle::probe::ProbeError;

/// Why the methods could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum OracleEvalError {
    /// The model could not read a response.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// A probe could not be fitted.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The judge is unusable or did not answer.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// The built-in list of refusal words does not compile.
    #[error(transparent)]
    RefusalWords(#[from] regex::Error),
}
