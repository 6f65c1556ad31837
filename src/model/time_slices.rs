//! Divides the time of the CPU's cores between serving and learning.
//!
//! Left to the scheduler, a learning thread that runs when a step of the engine begins keeps its
//! core for milliseconds, and the step waits for its slowest thread. So a step has all cores:
//! learning stops before its next small piece of work, and continues when the step has ended. Where
//! one step follows another the engine then pauses briefly, so that learning gets its share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

/// Longest pause between two steps.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How one server divides the cores' time. The server makes it, its engine and its learning passes
/// share it; other values in the process, with models of their own, are independent of it.
#[derive(Debug, Default)]
pub struct TimeSlices {
    /// Learning's share of the time while requests run; 0 if there is no server to share with.
    share: f32,
    /// How much the scheduler prefers other threads to learning ones: what learning does between
    /// two checks for a step should not delay the step.
    nice: u8,
    /// Steps of the engine being computed.
    serving: AtomicUsize,
    /// Learning passes being computed.
    learning: AtomicUsize,
    lock: Mutex<()>,
    step_ended: Condvar,
    /// Threads that learn; made by the first pass, `None` if the system gave none.
    learners: OnceLock<Option<ThreadPool>>,
}

impl TimeSlices {
    /// For a server: while requests run, learning gets `share` of the time, above 0 and below 1,
    /// and all of it otherwise. Its threads run with the niceness `nice`, 0 to 19: as other
    /// programs do, to after all others.
    pub fn new(share: f64, nice: u8) -> Self {
        Self {
            share: share as f32,
            nice,
            ..Self::default()
        }
    }

    /// For a command without a server: learning never waits.
    pub fn undivided() -> Self {
        Self::default()
    }

    fn is_divided(&self) -> bool {
        self.share > 0.0
    }

    /// Begins a step of the engine.
    pub fn serving(&self) -> ServingSlice<'_> {
        self.serving.fetch_add(1, Ordering::SeqCst);
        ServingSlice {
            slices: self,
            began: Instant::now(),
        }
    }

    /// Begins a learning pass; the engine pauses between its steps as long as one runs.
    pub(crate) fn learning(&self) -> LearningSlice<'_> {
        self.learning.fetch_add(1, Ordering::SeqCst);
        LearningSlice(self)
    }

    /// Waits for the end of a step of the engine, if one is being computed. Learning calls this
    /// before every piece of work of some tens of microseconds.
    #[inline]
    pub fn yield_to_serving(&self) {
        if self.serving.load(Ordering::Relaxed) > 0 && self.is_divided() {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let Ok(mut guard) = self.lock.lock() else {
            return;
        };
        while self.serving.load(Ordering::SeqCst) > 0 {
            // The limit is a second line of defence: a wake-up that got lost costs no more than this.
            match self.step_ended.wait_timeout(guard, LONGEST_PAUSE) {
                Ok((next, _)) => guard = next,
                Err(_) => return,
            }
        }
    }

    /// Runs a learning pass on the learning threads, or on this one if the system gave none.
    pub fn learn<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        let _slice = self.learning();
        match self.learners.get_or_init(|| self.start_learners()) {
            Some(pool) => pool.install(pass),
            None => pass(),
        }
    }

    /// As many threads as there are cores, of low priority if there is a server to share them with.
    fn start_learners(&self) -> Option<ThreadPool> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (is_divided, nice) = (self.is_divided(), self.nice);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("learn-{i}"))
            .start_handler(move |_| {
                if is_divided {
                    lower_priority(nice);
                }
            })
            .build()
            .ok()
    }
}

/// Lowers the priority of this thread; it never raises it, which an inherited niceness would
/// forbid. Where that fails, steps are delayed a little more.
#[cfg(target_os = "linux")]
fn lower_priority(nice: u8) {
    // SAFETY: no pointers are passed; 0 means the calling thread.
    unsafe {
        let own = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, own.max(i32::from(nice)));
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority(_nice: u8) {}

/// A step of the engine, as long as it lives.
#[derive(Debug)]
pub struct ServingSlice<'a> {
    slices: &'a TimeSlices,
    began: Instant,
}

impl ServingSlice<'_> {
    /// Ends the step, and lets learning, if there is any, compute for its share.
    pub fn end(self) {
        let (slices, took) = (self.slices, self.began.elapsed());
        drop(self);
        if slices.is_divided() && slices.learning.load(Ordering::SeqCst) > 0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "the pause is the share that learning gets"
            )]
            std::thread::sleep(pause(took, slices.share));
        }
    }
}

impl Drop for ServingSlice<'_> {
    fn drop(&mut self) {
        self.slices.serving.fetch_sub(1, Ordering::SeqCst);
        if self.slices.learning.load(Ordering::SeqCst) > 0 {
            // With the lock held, no thread is between its check and its wait.
            drop(self.slices.lock.lock());
            self.slices.step_ended.notify_all();
        }
    }
}

/// A learning pass, as long as it lives.
#[derive(Debug)]
pub(crate) struct LearningSlice<'a>(&'a TimeSlices);

impl Drop for LearningSlice<'_> {
    fn drop(&mut self) {
        self.0.learning.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long learning computes after a step that took so long.
fn pause(took: Duration, share: f32) -> Duration {
    let share = share.clamp(0.0, 0.95);
    took.mul_f32(share / (1.0 - share)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_waits_for_a_step_and_gets_its_share_after_it() {
        let slices = TimeSlices::new(0.25, 19);
        let began = Instant::now();
        let step = slices.serving();
        std::thread::scope(|scope| {
            let learner = scope.spawn(|| {
                let slice = slices.learning();
                slices.yield_to_serving();
                let waited = began.elapsed();
                std::thread::sleep(Duration::from_millis(100));
                drop(slice);
                waited
            });
            std::thread::sleep(Duration::from_millis(60));
            step.end();
            let paused = began.elapsed();
            assert!(learner.join().unwrap() >= Duration::from_millis(60));
            assert!(paused >= Duration::from_millis(80), "{paused:?}");
        });
        assert_eq!(
            slices.learning.load(Ordering::SeqCst),
            0,
            "no pause any more"
        );
    }

    #[test]
    fn two_values_do_not_influence_each_other() {
        let (one, other) = (TimeSlices::new(0.25, 19), TimeSlices::new(0.75, 19));
        let step = one.serving();
        // Would never return if it waited for the step.
        other.learn(|| other.yield_to_serving());
        let pass = other.learning();
        assert_eq!(one.learning.load(Ordering::SeqCst), 0, "no pause after it");
        step.end();
        drop(pass);
        let thread = |slices: &TimeSlices| slices.learn(|| std::thread::current().id());
        assert_ne!(thread(&one), thread(&other), "each has its own threads");
    }

    #[test]
    fn without_a_server_learning_never_waits() {
        let slices = TimeSlices::undivided();
        let step = slices.serving();
        // Would never return if it waited for the step.
        slices.learn(|| slices.yield_to_serving());
        drop(step);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_have_low_priority_only_where_serving_shares_the_cores() {
        // SAFETY: no pointers are passed; 0 means the calling thread.
        let nice = |slices: &TimeSlices| {
            slices.learn(|| unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
        };
        let usual = nice(&TimeSlices::undivided());
        for given in [7, 19] {
            let divided = TimeSlices::new(0.25, given);
            assert_eq!(nice(&divided), usual.max(given.into()));
        }
        assert_eq!(nice(&TimeSlices::undivided()), usual);
    }

    #[test]
    fn the_pause_is_the_share_of_the_whole() {
        let ten = Duration::from_millis(10);
        assert_eq!(pause(ten, 0.5), ten);
        assert_eq!(pause(ten, 0.0), Duration::ZERO);
        assert_eq!(pause(10 * ten, 0.9), LONGEST_PAUSE);
    }
}
