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

/// Who sends a request: the name of its key and the limits of that.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    pub(crate) rates: Rates,
}

/// A token bucket that holds one minute's limit and refills evenly.
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

impl Buckets {
    /// The bucket of a kind, refilled.
    fn filled(&mut self, kind: Kind, limit: u32, now: Instant) -> &mut Bucket {
        let bucket = match kind {
            Kind::Requests => &mut self.requests,
            Kind::Tokens => &mut self.tokens,
        };
        let bucket = bucket.get_or_insert(Bucket::full(limit, now));
        bucket.refill(limit, now);
        bucket
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Requests,
    Tokens,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// Limit and remainder of a key's requests and tokens, for response headers.
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
    /// [`ApiError::RateLimited`] if the key has used up its requests.
    pub(crate) fn admit(&self, caller: &Caller, now: Instant) -> Result<(), ApiError> {
        let Some(limit) = caller.rates.requests else {
            return Ok(());
        };
        self.take(caller, Kind::Requests, limit, 1.0, now)
    }

    /// Takes from a key the tokens that a request may use at most.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`] if the key has not so many left now, [`ApiError::TooManyTokens`]
    /// if it never has so many.
    pub(crate) fn reserve(
        &self,
        caller: &Caller,
        tokens: usize,
        now: Instant,
    ) -> Result<(), ApiError> {
        let Some(limit) = caller.rates.tokens else {
            return Ok(());
        };
        if tokens as f64 > f64::from(limit) {
            return Err(ApiError::TooManyTokens { tokens, limit });
        }
        self.take(caller, Kind::Tokens, limit, tokens as f64, now)
    }

    /// Replaces a request's reservation by what it used.
    pub(crate) fn settle(&self, name: &str, reserved: usize, used: usize) {
        let mut all = self.lock();
        if let Some(bucket) = all.get_mut(name).and_then(|b| b.tokens.as_mut()) {
            // The next refill caps the level.
            bucket.level += reserved as f64 - used as f64;
        }
    }

    /// What a key has left.
    pub(crate) fn remaining(&self, caller: &Caller, now: Instant) -> Remaining {
        let mut all = self.lock();
        let buckets = all.entry(Arc::clone(&caller.name)).or_default();
        let mut left = |kind: Kind, limit: Option<u32>| {
            let limit = limit?;
            // `as` turns a level below 0 into 0.
            Some((limit, buckets.filled(kind, limit, now).level as u32))
        };
        Remaining {
            requests: left(Kind::Requests, caller.rates.requests),
            tokens: left(Kind::Tokens, caller.rates.tokens),
        }
    }

    fn take(
        &self,
        caller: &Caller,
        kind: Kind,
        limit: u32,
        wanted: f64,
        now: Instant,
    ) -> Result<(), ApiError> {
        let mut all = self.lock();
        let buckets = all.entry(Arc::clone(&caller.name)).or_default();
        let bucket = buckets.filled(kind, limit, now);
        if bucket.level < wanted {
            let wait = bucket.wait_for(wanted, limit);
            return Err(ApiError::RateLimited {
                what: kind.name(),
                limit,
                retry_after: wait.as_secs_f64().ceil().max(1.0) as u64,
            });
        }
        bucket.level -= wanted;
        Ok(())
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

/// The most tokens of each of `answers` answers after `prompt` tokens of prompts where the client did
/// not limit them: a quarter of what its key has in a minute, for all of them together. So a request
/// without a limit leaves room for others, and is admitted whenever the key has used little.
pub(crate) fn default_max_tokens(per_minute: u32, prompt: usize, answers: usize) -> usize {
    let minute = per_minute as usize;
    let all = (minute / 4).min(minute.saturating_sub(prompt));
    (all / answers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str, requests: u32, tokens: u32) -> Caller {
        let limit = |n| (n > 0).then_some(n);
        Caller {
            name: name.into(),
            rates: Rates {
                requests: limit(requests),
                tokens: limit(tokens),
            },
        }
    }

    #[test]
    fn a_minutes_worth_at_once_then_evenly() {
        let limiter = Limiter::new(1);
        let (a, b, start) = (caller("a", 2, 0), caller("b", 2, 0), Instant::now());
        let mut at = start;
        for left in [1, 0] {
            limiter.admit(&a, at).unwrap();
            assert_eq!(limiter.remaining(&a, at).requests, Some((2, left)));
        }
        let refused = limiter.admit(&a, at).unwrap_err();
        let expect = ApiError::RateLimited {
            what: "requests",
            limit: 2,
            retry_after: 30,
        };
        assert_eq!(refused, expect);
        assert!(limiter.admit(&b, at).is_ok(), "another key");
        at += Duration::from_secs(30);
        assert!(limiter.admit(&a, at).is_ok());
        assert!(limiter.admit(&a, at).is_err());
        at += Duration::from_secs(3600);
        assert!(limiter.admit(&a, at).is_ok());
    }

    #[test]
    fn tokens_are_reserved_and_settled() {
        let limiter = Limiter::new(1);
        let (a, now) = (caller("a", 0, 60), Instant::now());
        let left = |at| limiter.remaining(&a, at).tokens.unwrap().1;
        limiter.reserve(&a, 40, now).unwrap();
        assert_eq!(left(now), 20);
        let refused = limiter.reserve(&a, 21, now).unwrap_err();
        let expect = ApiError::RateLimited {
            what: "tokens",
            limit: 60,
            retry_after: 1,
        };
        assert_eq!(refused, expect);
        limiter.settle("a", 40, 10);
        limiter.settle("stranger", 0, 90);
        assert_eq!(left(now), 50);
        limiter.reserve(&a, 50, now).unwrap();
        limiter.settle("a", 50, 80);
        assert_eq!(left(now), 0, "never shown below 0");
        assert!(matches!(
            limiter.reserve(&a, 10, now),
            Err(ApiError::RateLimited {
                retry_after: 40,
                ..
            })
        ));
        let later = now + Duration::from_secs(40);
        assert!(limiter.reserve(&a, 10, later).is_ok());
        limiter.settle("a", 10, 0);
        assert_eq!(
            left(later + Duration::from_secs(600)),
            60,
            "at most a minute's worth"
        );
        limiter.keep(|name| name != "a");
        assert!(limiter.lock().is_empty());
    }

    #[test]
    fn what_never_fits_is_told_from_what_does_not_fit_now() {
        let limiter = Limiter::new(1);
        let (a, now) = (caller("a", 0, 60), Instant::now());
        let refused = limiter.reserve(&a, 61, now).unwrap_err();
        let (tokens, limit) = (61, 60);
        assert_eq!(refused, ApiError::TooManyTokens { tokens, limit });
        assert!(limiter.reserve(&a, 60, now).is_ok(), "it cost nothing");
        assert!(limiter.reserve(&caller("b", 0, 0), usize::MAX, now).is_ok());
    }

    #[test]
    fn an_answer_without_a_limit_leaves_room_for_others() {
        for ((minute, prompt, answers), expect) in [
            ((1000, 100, 1), 250),
            ((1000, 100, 4), 62),
            ((1000, 900, 1), 100),
            ((1000, 1000, 1), 1),
            ((1000, 5000, 2), 1),
            ((1, 0, 1), 1),
        ] {
            let found = default_max_tokens(minute, prompt, answers);
            assert_eq!(found, expect, "{minute} {prompt} {answers}");
        }
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
