//! How much one key may ask for, and how much is taken on at once. What is too much is refused with
//! 429 and a time after which to try again; nothing queues here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Most of one thing in a minute; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests.
    pub requests: Option<u32>,
    /// Tokens of prompt and completion.
    pub tokens: Option<u32>,
}

/// A bucket that holds a minute's worth and refills evenly. It may go below zero: tokens are known
/// only when an answer has ended, and then what was too much is waited for.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    filled_at: Instant,
}

impl Bucket {
    fn full(per_minute: u32, now: Instant) -> Self {
        Self {
            level: f64::from(per_minute),
            filled_at: now,
        }
    }

    fn refill(&mut self, per_minute: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        let capacity = f64::from(per_minute);
        self.level = (self.level + passed * capacity / 60.0).min(capacity);
        self.filled_at = now;
    }

    /// Time until it holds `wanted`.
    fn wait_for(&self, wanted: f64, per_minute: u32) -> Duration {
        let missing = (wanted - self.level).max(0.0);
        Duration::from_secs_f64((missing * 60.0 / f64::from(per_minute)).min(3600.0))
    }
}

#[derive(Debug, Default)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// What a key has left after a request was admitted; for the response's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remaining {
    pub(crate) requests: Option<(u32, u32)>,
    pub(crate) tokens: Option<(u32, u32)>,
}

/// The counters behind the limits.
#[derive(Debug)]
pub struct Limiter {
    /// One entry for each configured key, so its size is the operator's.
    buckets: Mutex<HashMap<Arc<str>, Buckets>>,
    concurrent: Arc<Semaphore>,
    most: usize,
}

impl Limiter {
    /// At most `most` requests at once.
    pub fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self {
            buckets: Mutex::default(),
            concurrent: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// A place among the running requests, given back when dropped.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.concurrent).try_acquire_owned();
        place.map_err(|_| ApiError::TooManyAtOnce { limit: self.most })
    }

    /// Requests that hold a place.
    pub fn running(&self) -> usize {
        self.most - self.concurrent.available_permits()
    }

    /// Takes one request from a key's bucket.
    pub(crate) fn admit(
        &self,
        name: &Arc<str>,
        rates: Rates,
        now: Instant,
    ) -> Result<Remaining, ApiError> {
        let mut all = self.lock();
        let buckets = all.entry(Arc::clone(name)).or_default();
        let mut left = Remaining::default();
        if let Some(limit) = rates.tokens {
            let bucket = buckets.tokens.get_or_insert(Bucket::full(limit, now));
            bucket.refill(limit, now);
            if bucket.level < 1.0 {
                return Err(refused("tokens", limit, bucket.wait_for(1.0, limit)));
            }
            left.tokens = Some((limit, bucket.level as u32));
        }
        if let Some(limit) = rates.requests {
            let bucket = buckets.requests.get_or_insert(Bucket::full(limit, now));
            bucket.refill(limit, now);
            if bucket.level < 1.0 {
                return Err(refused("requests", limit, bucket.wait_for(1.0, limit)));
            }
            bucket.level -= 1.0;
            left.requests = Some((limit, bucket.level as u32));
        }
        Ok(left)
    }

    /// Takes the tokens of an answer that has ended from its key's bucket.
    pub(crate) fn charge(&self, name: &str, tokens: usize) {
        let mut all = self.lock();
        if let Some(bucket) = all.get_mut(name).and_then(|b| b.tokens.as_mut()) {
            bucket.level -= tokens as f64;
        }
    }

    /// Forgets keys that are not configured any more.
    pub(crate) fn keep(&self, known: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| known(name));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Buckets>> {
        // Nothing panics while the lock is held.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(what: &'static str, limit: u32, wait: Duration) -> ApiError {
    ApiError::RateLimited {
        what,
        limit,
        retry_after: wait.as_secs_f64().ceil().max(1.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(requests: u32, tokens: u32) -> Rates {
        let limit = |n| (n > 0).then_some(n);
        Rates {
            requests: limit(requests),
            tokens: limit(tokens),
        }
    }

    #[test]
    fn a_minutes_worth_at_once_then_evenly() {
        let limiter = Limiter::new(1);
        let (name, start) = (Arc::from("a"), Instant::now());
        let mut at = start;
        for left in [1, 0] {
            let remaining = limiter.admit(&name, rates(2, 0), at).unwrap();
            assert_eq!(remaining.requests, Some((2, left)));
        }
        let refused = limiter.admit(&name, rates(2, 0), at).unwrap_err();
        let expect = ApiError::RateLimited {
            what: "requests",
            limit: 2,
            retry_after: 30,
        };
        assert_eq!(refused, expect);
        let other = Arc::from("b");
        assert!(
            limiter.admit(&other, rates(2, 0), at).is_ok(),
            "another key"
        );
        at += Duration::from_secs(30);
        assert!(limiter.admit(&name, rates(2, 0), at).is_ok());
        assert!(limiter.admit(&name, rates(2, 0), at).is_err());
        at += Duration::from_secs(3600);
        assert!(limiter.admit(&name, rates(2, 0), at).is_ok());
    }

    #[test]
    fn tokens_are_paid_afterwards() {
        let limiter = Limiter::new(1);
        let (name, now) = (Arc::from("a"), Instant::now());
        assert!(limiter.admit(&name, rates(0, 60), now).is_ok());
        limiter.charge("a", 90);
        limiter.charge("stranger", 90);
        let refused = limiter.admit(&name, rates(0, 60), now).unwrap_err();
        assert!(
            matches!(
                refused,
                ApiError::RateLimited {
                    what: "tokens",
                    retry_after: 31,
                    ..
                }
            ),
            "{refused:?}"
        );
        let later = now + Duration::from_secs(31);
        assert!(limiter.admit(&name, rates(0, 60), later).is_ok());
        limiter.keep(|name| name != "a");
        assert!(limiter.lock().is_empty());
    }

    #[test]
    fn places_are_given_back() {
        let limiter = Limiter::new(1);
        let place = limiter.place().unwrap();
        assert_eq!(limiter.running(), 1);
        assert_eq!(
            limiter.place().unwrap_err(),
            ApiError::TooManyAtOnce { limit: 1 }
        );
        drop(place);
        assert!(limiter.place().is_ok());
    }
}
