//! How many prompt tokens a step may have beside streams: as many as keep its time within a target.
//!
//! What a step costs is learned from the steps that ran: seconds ≈ decoding + r · rows + p · pairs, where
//! pairs counts, for each prompt row, the positions that it attends to. Old steps count less and less, so
//! the estimate follows what else the machine does.

use std::time::Duration;

/// Fewest prompt tokens of a step, whatever they cost: a prompt has to come to its end.
const LEAST: usize = 16;
/// Prompt tokens of a step while nothing is known about their cost.
const FIRST: usize = 64;
/// What a step counts after the next one, as a multiple.
const FADE: f64 = 0.9;

/// The prompt rows of a step, and what goes with them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// Rows of decoding sequences.
    pub(crate) decoding: usize,
    /// Rows of prompts.
    pub(crate) rows: usize,
    /// For each of those, the positions it attends to, summed.
    pub(crate) pairs: f64,
}

impl Load {
    /// Adds a chunk of a prompt of which `depth` tokens are computed.
    pub(crate) fn add(&mut self, rows: usize, depth: usize) {
        self.rows += rows;
        self.pairs += rows as f64 * (depth as f64 + rows as f64 / 2.0);
    }
}

/// What steps cost, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    target: f64,
    /// A step that only decodes.
    decoding: Option<f64>,
    fit: Fit,
}

impl Pace {
    /// Nothing is known yet.
    pub(crate) fn new(target: Duration) -> Self {
        Self {
            target: target.as_secs_f64(),
            decoding: None,
            fit: Fit::default(),
        }
    }

    /// Prompt rows that a step with streams may have, if they attend to `depth` positions before them.
    /// Prompts get at least as much time as decoding takes, even if the target is shorter.
    pub(crate) fn rows(&self, depth: usize) -> usize {
        let decoding = self.decoding.unwrap_or_default();
        let Some((row, pair)) = self.fit.solved() else {
            return FIRST;
        };
        let time = self.target.max(2.0 * decoding) - decoding;
        let cost = row + pair * depth as f64;
        // A float that is too large or not a number becomes the largest or the least integer.
        ((time / cost) as usize).max(LEAST)
    }

    /// Learns from a step.
    pub(crate) fn learn(&mut self, load: Load, took: Duration) {
        let took = took.as_secs_f64();
        if load.rows == 0 {
            let before = self.decoding.unwrap_or(took);
            self.decoding = Some(before + (took - before) * (1.0 - FADE));
            return;
        }
        let decoding = self.decoding.filter(|_| load.decoding > 0);
        let own = (took - decoding.unwrap_or_default()).max(0.0);
        self.fit.add(load.rows as f64, load.pairs, own);
    }
}

/// Least squares of time over rows and pairs, older steps fading.
#[derive(Clone, Debug, Default)]
struct Fit {
    rows_rows: f64,
    rows_pairs: f64,
    pairs_pairs: f64,
    rows_time: f64,
    pairs_time: f64,
}

impl Fit {
    fn add(&mut self, rows: f64, pairs: f64, time: f64) {
        for (sum, term) in [
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_pairs, rows * pairs),
            (&mut self.pairs_pairs, pairs * pairs),
            (&mut self.rows_time, rows * time),
            (&mut self.pairs_time, pairs * time),
        ] {
            *sum = *sum * FADE + term;
        }
    }

    /// Seconds of a row and of a pair; `None` before the first step.
    fn solved(&self) -> Option<(f64, f64)> {
        if self.rows_rows <= 0.0 {
            return None;
        }
        let alone = (self.rows_time / self.rows_rows, 0.0);
        let determinant = self.rows_rows * self.pairs_pairs - self.rows_pairs * self.rows_pairs;
        // Steps of one depth say nothing about what depth costs.
        if determinant <= 1e-3 * self.rows_rows * self.pairs_pairs {
            return Some(alone);
        }
        let row =
            (self.rows_time * self.pairs_pairs - self.pairs_time * self.rows_pairs) / determinant;
        let pair =
            (self.rows_rows * self.pairs_time - self.rows_pairs * self.rows_time) / determinant;
        // Noise may ask for a negative cost: then all of it is the rows', or all the pairs'.
        Some(match (row > 0.0, pair > 0.0) {
            (true, true) => (row, pair),
            (false, true) => (0.0, self.pairs_time / self.pairs_pairs),
            _ => alone,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECODING: f64 = 0.004;

    /// Seconds of a step on a machine that needs 0.3 ms a row and 0.2 µs a pair.
    fn seconds(load: Load) -> f64 {
        DECODING + 0.0003 * load.rows as f64 + 0.2e-6 * load.pairs
    }

    #[test]
    fn steps_beside_streams_keep_to_the_target_at_every_depth() {
        let mut pace = Pace::new(Duration::from_millis(50));
        for _ in 0..20 {
            let load = Load {
                decoding: 4,
                ..Load::default()
            };
            pace.learn(load, Duration::from_secs_f64(seconds(load)));
        }
        let (mut depth, mut steps) = (0, Vec::new());
        while depth < 12_000 {
            let rows = pace.rows(depth);
            let mut load = Load {
                decoding: 4,
                ..Load::default()
            };
            load.add(rows, depth);
            let took = seconds(load);
            pace.learn(load, Duration::from_secs_f64(took));
            steps.push((rows, took));
            depth += rows;
        }
        for (rows, took) in &steps[3..] {
            assert!(*took < 0.055, "{rows} rows took {took}");
            assert!(*took > 0.035, "{rows} rows took only {took}");
        }
        let (first, last) = (steps[3].0, steps[steps.len() - 1].0);
        assert!(last * 5 < first, "{first} rows at first, {last} at the end");
    }

    #[test]
    fn a_large_model_gets_as_much_time_for_prompts_as_for_decoding() {
        let mut pace = Pace::new(Duration::from_millis(50));
        assert_eq!(pace.rows(0), FIRST);
        let decoding = Load {
            decoding: 1,
            ..Load::default()
        };
        pace.learn(decoding, Duration::from_millis(100));
        let mut load = decoding;
        load.add(64, 0);
        pace.learn(load, Duration::from_millis(100 + 64 * 4));
        // 4 ms a row, and 100 ms for them.
        assert_eq!(pace.rows(0), 25);
        assert_eq!(Pace::new(Duration::ZERO).rows(0), FIRST);
    }

    #[test]
    fn costs_that_cannot_be_told_apart_or_are_absurd_leave_a_usable_answer() {
        let mut pace = Pace::new(Duration::from_millis(50));
        let mut load = Load::default();
        load.add(64, 100);
        for took in [0, 0, 1, 3600] {
            pace.learn(load, Duration::from_secs(took));
            assert!(pace.rows(100) >= LEAST);
            assert!(pace.rows(usize::MAX) >= LEAST);
        }
        assert_eq!(pace.rows(0), LEAST);
    }
}
