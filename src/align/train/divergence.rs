//! Detects runs whose loss diverges. Pure.

/// Number of first steps whose mean loss is the baseline.
const BEGINNING: usize = 5;
/// Weight of a new step in the exponentially smoothed loss.
const SMOOTHING: f64 = 0.2;
/// Loss of one preference pair before training, below which no baseline counts.
const UNTRAINED: f64 = std::f64::consts::LN_2;
/// Consecutive steps that must exceed the bound, so that one hard batch is not taken for
/// divergence.
const PATIENCE: usize = 5;

/// Watches the loss of every step for divergence.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    ratio: f64,
    seen: usize,
    beginning: f64,
    smoothed: f64,
    above: usize,
}

/// The rise of the loss that was detected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Risen {
    /// Mean loss of the first steps.
    pub(crate) beginning: f64,
    /// Smoothed loss at the detecting step.
    pub(crate) smoothed: f64,
}

impl Watch {
    /// A watch for which a run has diverged if its smoothed loss stays above `ratio` times the mean
    /// of its first steps.
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            ratio,
            seen: 0,
            beginning: 0.0,
            smoothed: 0.0,
            above: 0,
        }
    }

    /// Records the next step's loss, which must be finite; `Some` if the run has diverged.
    pub(crate) fn observe(&mut self, loss: f64) -> Option<Risen> {
        self.seen += 1;
        if self.seen <= BEGINNING {
            self.beginning += (loss - self.beginning) / self.seen as f64;
            self.smoothed = self.beginning;
            return None;
        }
        self.smoothed += SMOOTHING * (loss - self.smoothed);
        // The first batches may hold only pairs whose loss begins at 0.
        let bound = self.ratio * self.beginning.max(UNTRAINED);
        self.above = if self.smoothed > bound {
            self.above + 1
        } else {
            0
        };
        (self.above >= PATIENCE).then_some(Risen {
            beginning: self.beginning,
            smoothed: self.smoothed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_alarm(losses: impl IntoIterator<Item = f64>) -> Option<usize> {
        let mut watch = Watch::new(4.0);
        losses
            .into_iter()
            .position(|loss| watch.observe(loss).is_some())
    }

    #[test]
    fn a_rise_that_stays_is_found_and_a_spike_is_not() {
        let calm = (0..60).map(|i| 3.0 + f64::from(i % 7) * 0.3);
        assert_eq!(first_alarm(calm), None);
        let spike = (0..60).map(|i| if i == 20 { 60.0 } else { 3.0 });
        assert_eq!(first_alarm(spike), None, "one bad batch");
        let risen = (0..60).map(|i| if i < 20 { 3.0 } else { 30.0 });
        assert_eq!(first_alarm(risen), Some(25));
        let falling = (0..60).map(|i| 30.0 / f64::from(1 + i));
        assert_eq!(first_alarm(falling), None);
    }
}
