//! Cache of judges' answers, and parallel requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Storage of judges' probabilities, by hash of the request. As with a verdict cache, a failed read
/// or write only repeats a request.
pub trait ScoreCache: Send + Sync + std::fmt::Debug {
    /// The stored probability.
    fn get(&self, key: &[u8; 32]) -> Option<f64>;

    /// Stores a probability.
    fn put(&self, key: &[u8; 32], probability: f64);
}

/// A cache that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryScoreCache {
    scores: Mutex<HashMap<[u8; 32], f64>>,
}

impl ScoreCache for MemoryScoreCache {
    fn get(&self, key: &[u8; 32]) -> Option<f64> {
        let scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        scores.get(key).copied()
    }

    fn put(&self, key: &[u8; 32], probability: f64) {
        let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        scores.insert(*key, probability);
    }
}

/// Applies `work` to every item on at most `threads` threads, fewer if the system refuses one; results
/// in the items' order.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let claim = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match items.get(index) {
                Some(item) => done.push((index, work(item))),
                None => return done,
            }
        }
    };
    let mut all: Vec<(usize, R)> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.clamp(1, items.len().max(1)))
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, claim).ok())
            .collect();
        let mut all = claim();
        for helper in helpers {
            match helper.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}
