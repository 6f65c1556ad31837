//! The sequential test: does the next generation fail more often than what serves?
//!
//! Requests fall to the next generation with a known probability, the share. So if it does not fail
//! more often, a failure is one of its own with at most that probability, whatever the share of failures
//! is and however it changes over the day. Of each failure only one thing is looked at: whose it is. The
//! likelihood of these labels under "it fails `k` times as often as is tolerated", divided by their
//! likelihood at the limit of what is tolerated, is a supermartingale as long as no more than that is
//! the case; so is the mean over several `k` (a mixture sequential probability ratio test). By Ville's
//! inequality it ever exceeds `1/a` with a probability of at most `a`, so it may be looked at after
//! every request, and the share may change on the way.

use super::split::WHOLE;

/// How many times as often as is tolerated the next generation may fail, in the alternatives.
const TIMES: [f64; 5] = [1.5, 2.0, 4.0, 16.0, 256.0];

/// Evidence that the next generation fails more often than is tolerated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evidence {
    /// How many times as often it may fail.
    tolerated: f64,
    /// The logarithm of the likelihood ratio of each alternative.
    logs: [f64; TIMES.len()],
}

impl Evidence {
    pub(crate) fn new(tolerated: f64) -> Self {
        Self {
            tolerated,
            logs: [0.0; TIMES.len()],
        }
    }

    /// A request failed that was given to the next generation with this share.
    pub(crate) fn failed(&mut self, of_candidate: bool, share: u16) {
        if share == 0 || share >= WHOLE {
            return;
        }
        let share = f64::from(share) / f64::from(WHOLE);
        // The probability that a failure is the next generation's, where it fails so many times as often.
        let own = |times: f64| share * times / (share * times + 1.0 - share);
        let limit = own(self.tolerated);
        for (log, times) in self.logs.iter_mut().zip(TIMES) {
            let other = own(self.tolerated * times);
            *log += match of_candidate {
                true => (other / limit).ln(),
                false => ((1.0 - other) / (1.0 - limit)).ln(),
            };
        }
    }

    /// The logarithm of the mean of the likelihood ratios.
    pub(crate) fn log(&self) -> f64 {
        let most = self.logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.logs.iter().map(|log| (log - most).exp()).sum();
        most + (sum / TIMES.len() as f64).ln()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const LIMIT: f64 = 300.0;

    /// After how many requests in the canary it is found that it fails more often, if at all.
    fn found(random: &mut ChaCha8Rng, rates: [f64; 2], share: u16, most: u64) -> Option<u64> {
        let mut evidence = Evidence::new(1.2);
        let mut own = 0;
        while own < most {
            let of_candidate = random.random_range(0..WHOLE) < share;
            own += u64::from(of_candidate);
            if random.random_bool(rates[usize::from(of_candidate)]) {
                evidence.failed(of_candidate, share);
                if evidence.log() >= LIMIT.ln() {
                    return Some(own);
                }
            }
        }
        None
    }

    #[test]
    fn looking_after_every_request_raises_no_more_false_alarms_than_promised() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for (rates, share) in [
            ([0.1, 0.12], 500),
            ([0.1, 0.12], 5000),
            ([0.02, 0.02], 500),
            ([0.5, 0.6], 5000),
        ] {
            let runs = 600;
            let alarms = (0..runs)
                .filter(|_| found(&mut random, rates, share, 500).is_some())
                .count();
            println!("{rates:?} at {share}: {alarms} false alarms of {runs}");
            // At most 1 in 300 each: 2 of 600, and 5 standard deviations.
            assert!(alarms <= 9, "{rates:?} at {share}: {alarms} of {runs}");
        }
    }

    #[test]
    fn a_generation_that_fails_is_found_quickly() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        for (rates, share, most) in [
            ([0.0, 1.0], 500, 5),
            ([0.0, 1.0], 5000, 30),
            ([0.01, 0.2], 500, 60),
            ([0.01, 0.05], 500, 600),
            ([0.01, 0.05], 5000, 1000),
        ] {
            let mut after: Vec<u64> = (0..100)
                .map(|_| found(&mut random, rates, share, 100_000).unwrap())
                .collect();
            after.sort_unstable();
            println!("{rates:?} at {share}: after {} to {}", after[50], after[95]);
            assert!(after[50] <= most, "{rates:?} at {share}: {}", after[50]);
        }
    }

    #[test]
    fn failures_of_what_serves_speak_for_the_next() {
        let mut evidence = Evidence::new(1.0);
        assert_eq!(evidence.log(), 0.0);
        for _ in 0..20 {
            evidence.failed(false, 5000);
        }
        assert!(evidence.log() < 0.0);
        let before = evidence.clone();
        evidence.failed(true, WHOLE);
        evidence.failed(true, 0);
        assert_eq!(evidence, before, "nothing to compare with");
    }
}
