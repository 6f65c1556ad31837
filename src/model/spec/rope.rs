//! Rotary frequencies: θ^(−2i/head_dim), and the ways in which families stretch them.

/// The rotary embedding of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched beyond the context they were first trained for.
    pub scaling: RopeScaling,
}

/// A change to every frequency.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by one factor (arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, those between blended.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above original context / this are divided.
        low_freq_factor: f64,
        /// Wavelengths below original context / this are kept.
        high_freq_factor: f64,
        /// Context before the stretch, in tokens.
        original_max_position: f64,
    },
    /// One divisor per frequency, as a GGUF file's `rope_freqs.weight` lists them.
    Divisors(Vec<f32>),
}

/// What is wrong with a model's rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(super) enum RopeError {
    #[error("{name} must be finite and positive, got {value}")]
    NotPositive { name: &'static str, value: f64 },
    #[error("low_freq_factor must be below high_freq_factor")]
    Factors,
    #[error("{divisors} divisors do not fit head_dim {head_dim}: half as many are needed")]
    Divisors { divisors: usize, head_dim: usize },
}

impl RopeSpec {
    /// Frequencies that are not stretched.
    pub fn plain(theta: f64) -> Self {
        Self {
            theta,
            scaling: RopeScaling::None,
        }
    }

    /// The `head_dim / 2` frequencies, in radians per token. Computed in f64, kept in f32, which
    /// is what the reference implementations round to.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = 1.0 / self.theta.powf(2.0 * i as f64 / head_dim as f64);
                (plain / self.scaling.divisor(i, plain)) as f32
            })
            .collect()
    }

    /// What is wrong with the numbers, if anything.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), RopeError> {
        let positive = |name, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(RopeError::NotPositive { name, value })
            }
        };
        positive("the base frequency", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                positive("original_max_position_embeddings", *original_max_position)?;
                if low_freq_factor < high_freq_factor {
                    Ok(())
                } else {
                    Err(RopeError::Factors)
                }
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != head_dim / 2 {
                    return Err(RopeError::Divisors {
                        divisors: divisors.len(),
                        head_dim,
                    });
                }
                divisors
                    .iter()
                    .try_for_each(|d| positive("a divisor", f64::from(*d)))
            }
        }
    }
}

impl RopeScaling {
    /// What divides frequency `i`, whose unstretched value is `plain`.
    fn divisor(&self, i: usize, plain: f64) -> f64 {
        match self {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => *factor,
            RopeScaling::Divisors(divisors) => divisors.get(i).map_or(1.0, |d| f64::from(*d)),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                // How often the wave turns within the original context; it settles all three cases.
                let turns = original_max_position * plain / std::f64::consts::TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0.0, 1.0);
                1.0 / (kept + (1.0 - kept) / factor)
            }
        }
    }
}
