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
    /// YaRN (arXiv 2309.00071): frequencies that turn often are kept, those that turn rarely
    /// divided, and a ramp lies between.
    Yarn {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Turns within the original context from which a frequency is kept.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Context before the stretch, in tokens.
        original_max_position: f64,
        /// Whether the ramp begins and ends at whole indices.
        truncate: bool,
        /// Factor on cosines and sines.
        amplitude: f64,
    },
    /// LongRoPE (arXiv 2402.13753): one divisor per frequency, and a factor on cosines and sines.
    LongRope {
        /// The divisors within the original context.
        divisors: Vec<f32>,
        /// Factor on cosines and sines.
        amplitude: f64,
    },
    /// No rotation: every frequency is zero.
    Still,
}

/// YaRN's growth of attention with the stretch, 1 + 0.1 m ln(factor).
pub(super) fn yarn_scale(factor: f64, m: f64) -> f64 {
    if factor > 1.0 {
        1.0 + 0.1 * m * factor.ln()
    } else {
        1.0
    }
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

    /// The rotary embedding that rotates nothing.
    pub(super) fn still() -> Self {
        Self {
            theta: 1.0,
            scaling: RopeScaling::Still,
        }
    }

    /// Factor on cosines and sines; 1 for most.
    pub fn amplitude(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { amplitude, .. } | RopeScaling::LongRope { amplitude, .. } => {
                *amplitude
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divisors(_)
            | RopeScaling::Still => 1.0,
        }
    }

    /// The `width / 2` frequencies of heads of which `width` columns are rotated, in radians per token. Computed in f64, kept in f32, which
    /// is what the reference implementations round to.
    pub fn frequencies(&self, width: usize) -> Vec<f32> {
        (0..width / 2)
            .map(|i| {
                let plain = 1.0 / self.theta.powf(2.0 * i as f64 / width as f64);
                (plain / self.divisor(i, plain, width)) as f32
            })
            .collect()
    }

    /// What divides frequency `i` of `width / 2`, whose unstretched value is `plain`.
    fn divisor(&self, i: usize, plain: f64, width: usize) -> f64 {
        match &self.scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Still => f64::INFINITY,
            RopeScaling::Linear { factor } => *factor,
            RopeScaling::Divisors(divisors) | RopeScaling::LongRope { divisors, .. } => {
                divisors.get(i).map_or(1.0, |d| f64::from(*d))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                // How often the wave turns within the original context; it settles all three cases.
                let turns = original_max_position * plain / std::f64::consts::TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                blended(kept, *factor)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position,
                truncate,
                ..
            } => {
                let last = (width - 1) as f64;
                // The index of the frequency that turns so often within the original context.
                let index = |turns: f64| {
                    let wave = original_max_position / (turns * std::f64::consts::TAU);
                    width as f64 * wave.ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (index(*beta_fast), index(*beta_slow));
                let (low, high) = if *truncate {
                    (low.floor(), high.ceil())
                } else {
                    (low, high)
                };
                let (low, high) = (low.max(0.0), high.min(last));
                let high = if low == high { high + 0.001 } else { high };
                blended(1.0 - (i as f64 - low) / (high - low), *factor)
            }
        }
    }

    /// What is wrong with the numbers, if anything.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), RopeError> {
        positive("the base frequency", self.theta)?;
        match &self.scaling {
            RopeScaling::None | RopeScaling::Still => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position,
                amplitude,
                ..
            } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("original_max_position_embeddings", *original_max_position)?;
                positive("attention_factor", *amplitude)?;
                // The ramp lies on a logarithm to the base.
                positive("the base frequency, less 1,", self.theta - 1.0)
            }
            RopeScaling::LongRope {
                divisors,
                amplitude,
            } => {
                positive("attention_factor", *amplitude)?;
                check_divisors(divisors, head_dim)
            }
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
            RopeScaling::Divisors(divisors) => check_divisors(divisors, head_dim),
        }
    }
}

fn positive(name: &'static str, value: f64) -> Result<(), RopeError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(RopeError::NotPositive { name, value })
    }
}

fn check_divisors(divisors: &[f32], head_dim: usize) -> Result<(), RopeError> {
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

/// The divisor of a frequency that is kept to this share, 0 to 1, and divided by `factor` to the
/// rest of it.
fn blended(kept: f64, factor: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    1.0 / (kept + (1.0 - kept) / factor)
}
