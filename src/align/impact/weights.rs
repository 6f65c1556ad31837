//! From raw scores to training weights.

use serde::Serialize;

use crate::train::WeightScale;

/// Weights of the conflicting pairs, in the order of their scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Weights {
    /// One weight per score, finite and not negative.
    pub values: Vec<f64>,
    /// Share of scores that were below zero and were clamped to 0.
    pub clamped_ratio: f64,
}

/// Why scores cannot be turned into weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpactError {
    /// No score is positive.
    #[error(
        "none of the {pairs} conflicting pairs has a positive impact: learning from them would move the model away from the policy; check the policy's examples and the data, or set train.weight_scale = \"uniform\""
    )]
    NothingHelps {
        /// Number of conflicting pairs.
        pairs: usize,
    },
    /// A score is NaN or infinite.
    #[error(
        "the impact score of conflicting pair {index} is {value}: the model's numbers are broken"
    )]
    NotFinite {
        /// Index among the conflicting pairs.
        index: usize,
        /// The score, formatted.
        value: String,
    },
}

/// w = max(0, score / γ), then scaled. γ cancels in every scale; it is kept because the paper has
/// it.
///
/// # Errors
/// [`ImpactError`] if no score is positive, or one is not finite.
pub fn weigh(scores: &[f64], gamma: f64, scale: WeightScale) -> Result<Weights, ImpactError> {
    if let Some((index, value)) = scores.iter().enumerate().find(|(_, s)| !s.is_finite()) {
        return Err(ImpactError::NotFinite {
            index,
            value: value.to_string(),
        });
    }
    let clamped_ratio =
        scores.iter().filter(|s| **s < 0.0).count() as f64 / scores.len().max(1) as f64;
    if scale == WeightScale::Uniform {
        return Ok(Weights {
            values: vec![1.0; scores.len()],
            clamped_ratio,
        });
    }
    let positive: Vec<f64> = scores.iter().map(|s| (s / gamma).max(0.0)).collect();
    let sum: f64 = positive.iter().sum();
    if sum <= 0.0 {
        return Err(ImpactError::NothingHelps {
            pairs: scores.len(),
        });
    }
    let target = match scale {
        WeightScale::MeanOne => scores.len() as f64,
        WeightScale::SumOne | WeightScale::Uniform => 1.0,
    };
    Ok(Weights {
        values: positive.iter().map(|w| w / sum * target).collect(),
        clamped_ratio,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_clamped_and_scaled() {
        let scores = [3.0, -1.0, 1.0, 0.0];
        let mean_one = weigh(&scores, 1.0, WeightScale::MeanOne).unwrap();
        assert_eq!(mean_one.values, [3.0, 0.0, 1.0, 0.0]);
        assert_eq!(mean_one.clamped_ratio, 0.25);
        assert_eq!(
            weigh(&scores, 7.0, WeightScale::MeanOne).unwrap(),
            mean_one,
            "gamma cancels"
        );
        assert_eq!(
            weigh(&scores, 1.0, WeightScale::SumOne).unwrap().values,
            [0.75, 0.0, 0.25, 0.0]
        );
        assert_eq!(
            weigh(&scores, 1.0, WeightScale::Uniform).unwrap().values,
            [1.0; 4]
        );
    }

    #[test]
    fn hopeless_and_broken_scores_are_errors() {
        assert_eq!(
            weigh(&[-1.0, 0.0], 1.0, WeightScale::MeanOne),
            Err(ImpactError::NothingHelps { pairs: 2 })
        );
        assert!(matches!(
            weigh(&[1.0, f64::NAN], 1.0, WeightScale::MeanOne),
            Err(ImpactError::NotFinite { index: 1, .. })
        ));
    }
}
