//! Carries out what the core decides: writes, tells requests, works at targets.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use realign_core::supervision::Vital;
use realign_core::{Thread, crash_point};

use crate::announce::{announce, stage};
use crate::canary::TrialStatus;
use crate::rollout::{Core, Durable, Event, Heard, Order, Rules, TargetStatus, View, Work};
use crate::state::{StateError, StateFile};
use crate::target::{Listing, Target, TargetError, TargetId};

/// Time between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// The longest that a tick may take: what it does is short, but for the disk.
const LONGEST: Duration = Duration::from_secs(60);

/// Opens the engine of a target.
pub type Connect = Box<dyn Fn(&TargetId) -> Arc<dyn Target> + Send + Sync>;
/// Is given what requests see, whenever that may have changed. Must return at once.
type Show = Box<dyn Fn(View) + Send + Sync>;
/// What is known of requests now; what was seen of them is told once.
type Hear = Box<dyn Fn() -> Heard + Send + Sync>;

/// What a runner is made of.
pub struct Settings {
    /// What the core decides by.
    pub rules: Rules,
    /// What outlives the process.
    pub file: StateFile,
    /// Opens the engine of a target.
    pub connect: Connect,
    /// Is given what requests see.
    pub show: Show,
    /// What is known of requests.
    pub hear: Hear,
}

/// Why an operator's order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It makes no sense now.
    #[error("{0}")]
    Refused(String),
    /// It could not be written down.
    #[error("{0}; nothing was changed")]
    Unwritten(String),
}

/// A rollout's process. It ends when it is dropped.
pub struct Runner {
    shared: Arc<Shared>,
    stop: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    vital: Arc<Vital>,
}

struct Shared {
    file: StateFile,
    connect: Connect,
    show: Show,
    hear: Hear,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    core: Core,
    /// Events that could not be acted upon, because the state could not be written.
    waiting: VecDeque<Event>,
    /// Why it could not, if so.
    unwritten: Option<String>,
    targets: HashMap<TargetId, Arc<dyn Target>>,
}

impl Runner {
    /// Reads where an earlier process stopped, and goes on.
    ///
    /// # Errors
    /// [`StateError`], or a thread that the system refuses.
    pub fn start(settings: Settings) -> Result<Self, StateError> {
        let Settings {
            rules,
            file,
            connect,
            show,
            hear,
        } = settings;
        let core = Core::new(rules, file.read()?);
        show(core.view());
        let shared = Arc::new(Shared {
            file: file.clone(),
            connect,
            show,
            hear,
            started: Instant::now(),
            state: Mutex::new(State {
                core,
                waiting: VecDeque::new(),
                unwritten: None,
                targets: HashMap::new(),
            }),
        });
        let vital = Arc::new(Vital::new(Thread::Fleet, LONGEST));
        let (stop, stopped) = channel();
        let (own, ticked) = (vital.clone(), shared.clone());
        let run = move || {
            let is_over = |wait| stopped_within(&stopped, wait);
            own.run_restarting(
                || is_over(Duration::ZERO),
                || {
                    while !is_over(TICK) {
                        own.beat();
                        ticked.tick();
                        own.rest();
                    }
                },
            );
        };
        let thread = std::thread::Builder::new().name(Thread::Fleet.as_str().into());
        let thread = thread.spawn(run).map_err(|error| file.failed(error))?;
        Ok(Self {
            shared,
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
            vital,
        })
    }

    /// Takes note of an event.
    pub fn deliver(&self, event: Event) {
        self.shared.deliver(event);
    }

    /// Carries out an operator's order: when this returns, it is on the disk.
    ///
    /// # Errors
    /// [`OrderError`]; then nothing has changed.
    pub fn order(&self, order: Order) -> Result<(), OrderError> {
        let mut state = self.shared.state();
        if let Some(why) = &state.unwritten {
            return Err(OrderError::Unwritten(why.clone()));
        }
        state.core.may(&order).map_err(OrderError::Refused)?;
        let acted = self.shared.act(&mut state, &Event::Order(order));
        acted.map_err(|error| OrderError::Unwritten(error.to_string()))?;
        self.shared.go_on(&mut state);
        Ok(())
    }

    /// The comparison of two generations under way.
    pub fn trial(&self) -> Option<TrialStatus> {
        self.shared.state().core.trial(self.shared.now())
    }

    /// What must outlive the process, as it was written last.
    pub fn durable(&self) -> Durable {
        self.shared.state().core.durable().clone()
    }

    /// What people see of each target.
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.shared.state().core.targets()
    }

    /// Why the rollout does not go on, if it is for something else than a target.
    pub fn problem(&self) -> Option<String> {
        let state = self.shared.state();
        let ignored = || state.core.ignored().map(str::to_owned);
        state.unwritten.clone().or_else(ignored)
    }

    /// The signs of life of the thread.
    pub fn vital(&self) -> Arc<Vital> {
        self.vital.clone()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.stop.lock().ok().and_then(|mut stop| stop.take()));
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the rollout's thread panicked");
        }
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

fn stopped_within(stopped: &Receiver<()>, wait: Duration) -> bool {
    stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Acts upon an event, after those that wait for the disk.
    fn deliver(self: &Arc<Self>, event: Event) {
        let mut state = self.state();
        state.waiting.push_back(event);
        self.go_on(&mut state);
    }

    /// Time passed.
    fn tick(self: &Arc<Self>) {
        let mut state = self.state();
        // Asked while nothing can be switched: what is not held now is not held later.
        let heard = (self.hear)();
        state.waiting.push_back(Event::Tick(heard));
        self.go_on(&mut state);
    }

    fn go_on(self: &Arc<Self>, state: &mut State) {
        while let Some(event) = state.waiting.pop_front() {
            if let Err(error) = self.act(state, &event) {
                let why = error.to_string();
                if state.unwritten.as_ref() != Some(&why) {
                    tracing::error!(%error, "the rollout stands still until its state can be written");
                }
                state.unwritten = Some(why);
                state
                    .waiting
                    .retain(|event| !matches!(event, Event::Tick(_)));
                if !matches!(event, Event::Tick(_)) {
                    state.waiting.push_front(event);
                }
                return;
            }
            state.unwritten = None;
        }
    }

    fn act(self: &Arc<Self>, state: &mut State, event: &Event) -> Result<(), StateError> {
        let step = state.core.step(self.now(), event.clone());
        let (before, after) = (state.core.durable(), step.core.durable());
        if before != after {
            let stage = stage(after);
            crash_point(&format!("fleet:before-{stage}"));
            self.file.write(after)?;
            crash_point(&format!("fleet:after-{stage}"));
            announce(before, after);
        }
        state.core = step.core;
        (self.show)(state.core.view());
        if let Event::Targets(all) = event {
            state.targets.retain(|id, _| all.contains(id));
        }
        for (id, work) in step.work {
            let target = state.targets.entry(id.clone());
            let target = target.or_insert_with(|| (self.connect)(&id)).clone();
            let failed = self.begin(id, work, target);
            state.waiting.extend(failed);
        }
        Ok(())
    }

    /// Has a thread do a piece of work, whose result comes back as an event. Returns that event if the
    /// system has no thread for it.
    fn begin(self: &Arc<Self>, id: TargetId, work: Work, target: Arc<dyn Target>) -> Option<Event> {
        let shared = Arc::downgrade(self);
        let report = Report {
            shared,
            done: Some((id.clone(), work.clone())),
        };
        let thread = std::thread::Builder::new().name("fleet-work".into());
        let error = thread.spawn(move || report.run(&*target)).err()?;
        tracing::warn!(%error, "work at a target is put off");
        let why = TargetError::Unreachable(format!("no thread for its work: {error}"));
        Some(Event::Done(id, work, Err(why)))
    }
}

/// Tells how a piece of work ended, also if it panics.
struct Report {
    shared: Weak<Shared>,
    done: Option<(TargetId, Work)>,
}

impl Report {
    fn run(mut self, target: &dyn Target) {
        let Some((id, work)) = self.done.clone() else {
            return;
        };
        let result = work_at(target, &work);
        match &result {
            Ok(_) => tracing::debug!(target = %id, ?work, "done"),
            Err(error) if work == Work::List => tracing::debug!(target = %id, %error, "not there"),
            Err(error) => tracing::warn!(target = %id, ?work, %error, "a target refuses"),
        }
        self.done = None;
        self.tell(id, work, result);
    }

    fn tell(&self, id: TargetId, work: Work, result: Result<Option<Listing>, TargetError>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.deliver(Event::Done(id, work, result));
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Where no thread began, the one that asked for it tells.
        if !std::thread::panicking() {
            return;
        }
        if let Some((id, work)) = self.done.take() {
            let why = "this gateway failed at its work; its log says why";
            self.tell(id, work, Err(TargetError::Unreachable(why.into())));
        }
    }
}

fn work_at(target: &dyn Target, work: &Work) -> Result<Option<Listing>, TargetError> {
    match work {
        Work::List => target.list().map(Some),
        Work::Load { name, path, .. } => target.load(name, path).map(|()| None),
        Work::Probe { model, .. } => target.probe(model).map(|()| None),
        Work::Unload { name } => target.unload(name).map(|()| None),
    }
}

impl StateFile {
    fn failed(&self, error: io::Error) -> StateError {
        StateError::Io {
            path: self.path().into(),
            source: error,
        }
    }
}
