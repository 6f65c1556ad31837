//! A team of threads that runs one parallel section after another with little to say in between.
//!
//! A decode step is a chain of some two hundred sections of a few microseconds each; handing each
//! to a general task pool costs as much as the section itself. Threads that wait therefore spin
//! for a moment before they sleep. The moment is bounded: on a busy machine a waiting thread soon
//! gives its core away. Work is claimed piece by piece, so a thread that gets no time delays only
//! the piece it holds.
//!
//! A thread claims pieces of its own share first, one after the other, and then of the others': what it reads
//! lies in one stretch of memory, which the processor reads ahead. With pieces dealt out in turn, a core reads
//! as little as half as fast.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::sync::{
    self, Arc, AtomicBool, AtomicU32, AtomicUsize, JoinHandle, Ordering, SPINS, Thread, current,
    park, spawn, wait_a_moment,
};

/// What a section runs for each piece: the thread's number and the piece's.
type Section<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    /// Counts sections; a change tells the workers that `section` is new.
    epoch: AtomicU32,
    section: sync::Shared<Option<*const Section<'static>>>,
    leader: sync::Shared<Option<Thread>>,
    /// Next piece to claim of each thread's share, and how many pieces there are in all.
    next: Vec<Counter>,
    pieces: AtomicUsize,
    /// Workers that have not left the current section.
    inside: AtomicUsize,
    leader_sleeps: AtomicBool,
    stopping: AtomicBool,
    panicked: AtomicBool,
    sleeping: Vec<AtomicBool>,
}

/// On a cache line of its own: every claim writes to it.
#[repr(align(64))]
struct Counter(AtomicUsize);

// SAFETY: `section` and `leader` are written by the leader alone, while no worker is inside a
// section, and read by workers only between acquiring the epoch that follows the write and leaving
// the section.
unsafe impl Sync for Shared {}
// SAFETY: as above; a `Thread` and a pointer to a `Sync` closure may be used from any thread.
unsafe impl Send for Shared {}

/// The threads. The thread that owns the team leads it and computes too.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} threads)", self.threads())
    }
}

impl Team {
    /// A team of `threads` threads, the leader counted; at least one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            section: sync::Shared::new(None),
            leader: sync::Shared::new(None),
            next: (0..=workers)
                .map(|_| Counter(AtomicUsize::new(0)))
                .collect(),
            pieces: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            leader_sleeps: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            sleeping: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut team = Self {
            shared: shared.clone(),
            workers: Vec::with_capacity(workers),
        };
        for index in 0..workers {
            let shared = shared.clone();
            let name = format!("compute-{}", index + 1);
            let worker = spawn(name, move || work(&shared, index))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads that take part, the leader counted.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(thread, piece)` once for every piece and returns when all are done.
    ///
    /// # Panics
    /// If `f` does on any thread.
    pub(crate) fn run(&mut self, pieces: usize, f: impl Fn(usize, usize) + Sync) {
        if self.workers.is_empty() || pieces <= 1 {
            return (0..pieces).for_each(|piece| f(0, piece));
        }
        let s = &*self.shared;
        let section: *const Section<'_> = &f;
        // SAFETY: no worker is inside a section, because the previous call waited for all to
        // leave. The erased lifetime is honoured: this call, even when it unwinds, waits below for
        // all workers to leave before `f` is dropped.
        unsafe {
            let section =
                std::mem::transmute::<*const Section<'_>, *const Section<'static>>(section);
            s.section.with_mut(|cell| *cell = Some(section));
            s.leader.with_mut(|cell| *cell = Some(current()));
        }
        for (thread, next) in s.next.iter().enumerate() {
            next.0
                .store(share(s, pieces, thread).start, Ordering::Relaxed);
        }
        s.pieces.store(pieces, Ordering::Relaxed);
        s.inside.store(self.workers.len(), Ordering::Relaxed);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&s.sleeping) {
            if sleeping.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| claim(s, 0, &f)));
        join(s);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if s.panicked.swap(false, Ordering::AcqRel) {
            // The worker's own message has gone to stderr.
            resume_unwind(Box::new("a compute thread panicked"));
        }
    }
}

/// Waits until all workers have left the section.
fn join(s: &Shared) {
    let mut spins = 0;
    while s.inside.load(Ordering::Acquire) != 0 {
        if spins < SPINS {
            spins += 1;
            wait_a_moment();
            continue;
        }
        s.leader_sleeps.store(true, Ordering::SeqCst);
        if s.inside.load(Ordering::SeqCst) != 0 {
            park();
        }
        s.leader_sleeps.store(false, Ordering::SeqCst);
    }
}

/// The pieces that a thread is the first to claim.
fn share(s: &Shared, pieces: usize, thread: usize) -> Range<usize> {
    let threads = s.next.len();
    pieces * thread / threads..pieces * (thread + 1) / threads
}

fn claim(s: &Shared, thread: usize, f: &Section<'_>) {
    let pieces = s.pieces.load(Ordering::Relaxed);
    for owner in (thread..s.next.len()).chain(0..thread) {
        let end = share(s, pieces, owner).end;
        loop {
            let piece = s.next[owner].0.fetch_add(1, Ordering::Relaxed);
            if piece >= end {
                break;
            }
            f(thread, piece);
        }
    }
}

fn work(s: &Shared, index: usize) {
    let mut seen = 0;
    while let Some(epoch) = next_epoch(s, index, seen) {
        seen = epoch;
        // SAFETY: written before the epoch that was just acquired; the leader waits for this
        // thread to leave before it changes or drops it.
        if let Some(f) = s.section.with(|cell| unsafe { (*cell).map(|f| &*f) })
            && catch_unwind(AssertUnwindSafe(|| claim(s, index + 1, f))).is_err()
        {
            s.panicked.store(true, Ordering::Release);
        }
        // SAFETY: as above; it is read before this thread leaves, and a handle outlives its use.
        let leader = s.leader.with(|cell| unsafe { (*cell).clone() });
        if s.inside.fetch_sub(1, Ordering::SeqCst) == 1
            && s.leader_sleeps.load(Ordering::SeqCst)
            && let Some(leader) = leader
        {
            leader.unpark();
        }
    }
}

/// Waits for the next section; `None` when the team ends.
fn next_epoch(s: &Shared, index: usize, seen: u32) -> Option<u32> {
    let mut spins = 0;
    loop {
        let epoch = s.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return Some(epoch);
        }
        if s.stopping.load(Ordering::Acquire) {
            return None;
        }
        if spins < SPINS {
            spins += 1;
            wait_a_moment();
            continue;
        }
        s.sleeping[index].store(true, Ordering::SeqCst);
        if s.epoch.load(Ordering::SeqCst) == seen && !s.stopping.load(Ordering::SeqCst) {
            park();
        }
        s.sleeping[index].store(false, Ordering::SeqCst);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Panics inside sections were caught and reported by `run`.
            let _ended = worker.join();
        }
    }
}

/// A slice that threads of a team write disjoint parts of.
#[derive(Clone, Copy)]
pub(crate) struct Shards<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: handing out parts is unsafe and demands that they be disjoint; `T: Send` lets the parts
// be written on other threads.
unsafe impl<T: Send> Sync for Shards<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    /// Shares out a slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            life: std::marker::PhantomData,
        }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// No other part that is alive may overlap this one.
    ///
    /// # Panics
    /// If the part does not lie inside the slice.
    #[allow(clippy::mut_from_ref)] // the contract above is what makes it sound
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part out of range");
        // SAFETY: inside the slice by the check, disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
