//! Rate limits per key, and a limit of concurrent requests. Requests beyond them are refused with
//! 429 and `Retry-After`; nothing is queued here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Limits per minute; `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Maximum number of requests.
    pub(crate) requests: Option<u32>,
    /// Maximum number of tokens of prompt and completion.
    pub(crate) tokens: Option<u32>,
}

/// A token bucket that holds one minute's limit and refills evenly. Its level may become negative:
/// an answer's tokens are known only when it has ended, so an excess delays the next requests.
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

    /// Time until the level reaches `wanted`.
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

/// Limit and remainder of a key's requests and tokens after a request was admitted, for response
/// headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remaining {
    pub(crate) requests: Option<(u32, u32)>,
    pub(crate) tokens: Option<(u32, u32)>,
}

/// Enforces the limits.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// One entry per configured key, so the operator controls its size.
    buckets: Mutex<HashMap<Arc<str>, Buckets>>,
    concurrent: Arc<Semaphore>,
    max_concurrent: usize,
}

impl Limiter {
    /// Allows at most `max_concurrent` concurrent requests.
    pub(crate) fn new(max_concurrent: usize) -> Self {
        let max_concurrent = max_concurrent.min(Semaphore::MAX_PERMITS);
        Self {
            buckets: Mutex::default(),
            concurrent: Arc::new(Semaphore::new(max_concurrent)),
            max_concurrent,
        }
    }

    /// Acquires a permit for a running request, released when dropped.
    ///
    /// # Errors
    /// [`ApiError::TooManyAtOnce`].
    pub(crate) fn acquire(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = Arc::clone(&self.concurrent).try_acquire_owned();
        permit.map_err(|_| ApiError::TooManyAtOnce {
            limit: self.max_concurrent,
        })
    }

    /// Number of requests that hold a permit.
    pub(crate) fn running(&self) -> usize {
        self.max_concurrent - self.concurrent.available_permits()
    }

    /// Charges one request to a key.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`] if the key has used up a limit.
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

    /// Charges the tokens of a completed answer to its key.
    pub(crate) fn charge(&self, name: &str, tokens: usize) {
        let mut all = self.lock();
        if let Some(bucket) = all.get_mut(name).and_then(|b| b.tokens.as_mut()) {
            bucket.level -= tokens as f64;
        }
    }

    /// Drops the state of keys that are no longer configured.
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
    fn permits_are_released() {
        let limiter = Limiter::new(1);
        let permit = limiter.acquire().unwrap();
        assert_eq!(limiter.running(), 1);
        assert_eq!(
            limiter.acquire().unwrap_err(),
            ApiError::TooManyAtOnce { limit: 1 }
        );
        drop(permit);
        assert!(limiter.acquire().is_ok());
    }
}
