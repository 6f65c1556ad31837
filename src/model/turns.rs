//! Serving and learning take turns on the cores that they share.
//!
//! Left to the scheduler, a learning thread that runs when a step of the engine begins keeps its
//! core for milliseconds, and the step waits for its slowest thread. So a step has all cores:
//! learning stops before its next small piece of work, and goes on when the step has ended. Where
//! one step follows another the engine then waits a little, so that learning gets its share.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest pause between two steps.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Steps being computed.
static SERVING: AtomicUsize = AtomicUsize::new(0);
/// Passes of learning being computed.
static LEARNING: AtomicUsize = AtomicUsize::new(0);
/// Bits of the share of the time that learning gets; 0 while nobody serves.
static SHARE: AtomicU32 = AtomicU32::new(0);
static LOCK: Mutex<()> = Mutex::new(());
static OVER: Condvar = Condvar::new();

/// Makes learning stand behind a server in this process: it gets this share of the time, above 0
/// and below 1, while requests run, and all of it while none does. A server says so before it learns
/// for the first time; a command that does nothing else has nobody to stand behind.
pub fn take_turns(share: f64) {
    SHARE.store((share as f32).to_bits(), Ordering::Relaxed);
}

/// Whether there is a server to stand behind.
pub fn is_polite() -> bool {
    share() > 0.0
}

fn share() -> f32 {
    f32::from_bits(SHARE.load(Ordering::Relaxed))
}

/// A step of the engine, as long as it lives.
#[derive(Debug)]
pub struct ServingTurn(Instant);

/// Begins a step of the engine.
pub fn serve() -> ServingTurn {
    SERVING.fetch_add(1, Ordering::SeqCst);
    ServingTurn(Instant::now())
}

impl ServingTurn {
    /// Ends the step, and lets learning, if there is any, compute for its share.
    pub fn end(self) {
        let took = self.0.elapsed();
        drop(self);
        if LEARNING.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(pause(took, share()));
        }
    }
}

impl Drop for ServingTurn {
    fn drop(&mut self) {
        SERVING.fetch_sub(1, Ordering::SeqCst);
        if LEARNING.load(Ordering::SeqCst) > 0 {
            // With the lock held nobody is between looking and waiting.
            drop(LOCK.lock());
            OVER.notify_all();
        }
    }
}

/// How long learning computes after a step that took so long.
fn pause(took: Duration, share: f32) -> Duration {
    let share = share.clamp(0.0, 0.95);
    took.mul_f32(share / (1.0 - share)).min(LONGEST_PAUSE)
}

/// A pass of learning, as long as it lives.
#[derive(Debug)]
pub struct LearningTurn(());

/// Begins a pass of learning; `None` where nobody serves.
pub fn learn() -> Option<LearningTurn> {
    is_polite().then(|| {
        LEARNING.fetch_add(1, Ordering::SeqCst);
        LearningTurn(())
    })
}

impl Drop for LearningTurn {
    fn drop(&mut self) {
        LEARNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for the end of a step of the engine, if one is being computed. Learning calls this before
/// every piece of work of some tens of microseconds.
#[inline]
pub fn make_way() {
    if SERVING.load(Ordering::Relaxed) > 0 && is_polite() {
        wait();
    }
}

#[cold]
fn wait() {
    let Ok(mut guard) = LOCK.lock() else { return };
    while SERVING.load(Ordering::SeqCst) > 0 {
        // The limit is a second line of defence: a wake-up that got lost costs no more than this.
        match OVER.wait_timeout(guard, LONGEST_PAUSE) {
            Ok((next, _)) => guard = next,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_waits_for_a_step_and_gets_its_share_after_it() {
        take_turns(0.25);
        let began = Instant::now();
        let step = serve();
        let learner = std::thread::spawn(move || {
            let turn = learn();
            make_way();
            let waited = began.elapsed();
            std::thread::sleep(Duration::from_millis(100));
            drop(turn);
            waited
        });
        std::thread::sleep(Duration::from_millis(60));
        step.end();
        let paused = began.elapsed();
        assert!(learner.join().unwrap() >= Duration::from_millis(60));
        assert!(paused >= Duration::from_millis(80), "{paused:?}");
        let began = Instant::now();
        serve().end();
        make_way();
        assert!(
            began.elapsed() < Duration::from_millis(20),
            "nobody learns any more"
        );
    }

    #[test]
    fn the_pause_is_the_share_of_the_whole() {
        let ten = Duration::from_millis(10);
        assert_eq!(pause(ten, 0.5), ten);
        assert_eq!(pause(ten, 0.0), Duration::ZERO);
        assert_eq!(pause(10 * ten, 0.9), LONGEST_PAUSE);
    }
}
