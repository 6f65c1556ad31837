//! What a process does not take with it when it is killed, and what it cannot decide: the disk, the
//! clock, the operator's files, the judge, the trainer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::Event;
use super::super::context::Context;
use super::super::data::Listing;
use super::super::error::ReadPoliciesError;
use super::super::examining::Examining;
use super::super::pointer::CurrentFile;
use super::super::realign::Job;
use super::super::stop::StopFlag;
use super::super::surroundings::Surroundings;
use super::faults::{Fault, Faults, Write};
use super::policies::{Files, needs_judge, snapshot};
use crate::state::StateDb;
use realign_align::oracle::{Prepared, Services, prepare_trusted};
use realign_align::pipeline::Inputs;
use realign_align::policy::{PolicySet, Snapshot};
use realign_align::preferences::{Dataset, DatasetError};
use realign_core::clock;
use realign_engine::adapter::AdapterError;
use realign_engine::adapter::generation::{Generation, GenerationId};

/// More realignments than a schedule has.
const ALL: usize = 1000;

/// A realignment that was started.
pub(super) struct Launched {
    pub(super) id: String,
    pub(super) hash: String,
    pub(super) flag: Arc<StopFlag>,
}

struct State {
    faults: Arc<Mutex<Faults>>,
    current: Option<GenerationId>,
    /// Generations whose files cannot be used.
    damaged: BTreeSet<String>,
    /// Imported generations, then those that realignments published.
    published: Vec<String>,
    elapsed: Duration,
    files: Option<Files>,
    read_error: bool,
    judge_down: bool,
    no_threads: bool,
    data: u64,
    no_data: bool,
    job: Option<Launched>,
    /// Exams that were to begin, and whether they do.
    exams: usize,
    sits: bool,
    /// What never may happen, and did.
    breach: Option<String>,
}

/// Everything outside of the process.
pub(super) struct Outside {
    pub(super) base: GenerationId,
    base_hash: String,
    pub(super) db: Arc<StateDb>,
    start: Instant,
    state: Mutex<State>,
}

thread_local! {
    /// The database of the schedule that ended last on this thread, for the next one.
    static SPARE: RefCell<Option<Arc<StateDb>>> = const { RefCell::new(None) };
}

impl Drop for Outside {
    fn drop(&mut self) {
        clock::pretend(None);
        // What panicked may have left anything behind. A thread that ends keeps nothing.
        if !std::thread::panicking() {
            let db = self.db.clone();
            let _kept = SPARE.try_with(|spare| spare.replace(Some(db)));
        }
    }
}

/// Switches that an operation flips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    ReadError,
    JudgeDown,
    NoThreads,
    NoData,
    DiskFull,
}

impl Outside {
    pub(super) fn new(base: GenerationId, base_hash: &str) -> Arc<Self> {
        let faults = Arc::new(Mutex::new(Faults::default()));
        let asked = faults.clone();
        let may_commit = move || matches!(asked.lock().unwrap().write(), Write::Done);
        let spare = SPARE.with_borrow_mut(Option::take);
        let db = spare.unwrap_or_else(|| Arc::new(StateDb::in_memory().unwrap()));
        db.begin_anew(may_commit).unwrap();
        clock::pretend(Some(1_800_000_000));
        let imported = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"].map(String::from);
        let state = State {
            faults,
            current: None,
            damaged: BTreeSet::new(),
            published: imported.into(),
            elapsed: Duration::ZERO,
            files: Some(Files::new()),
            read_error: false,
            judge_down: false,
            no_threads: false,
            data: 0,
            no_data: false,
            job: None,
            exams: 0,
            sits: false,
            breach: None,
        };
        Arc::new(Self {
            base,
            base_hash: base_hash.into(),
            db,
            start: Instant::now(),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn faults<T>(&self, act: impl FnOnce(&mut Faults) -> T) -> T {
        let faults = self.state().faults.clone();
        let mut faults = faults.lock().unwrap();
        act(&mut faults)
    }

    /// Begins an operation whose writes meet this fault.
    pub(super) fn arm(&self, fault: Option<Fault>) {
        self.faults(|faults| faults.arm(fault));
    }

    /// Kills the process: what it still does, as it is dropped, reaches nothing.
    pub(super) fn kill(&self) {
        self.faults(|faults| faults.dead = true);
        self.state().job = None;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.faults(|faults| faults.dead)
    }

    /// Whether a write of the operation failed.
    pub(super) fn has_failed(&self) -> bool {
        self.faults(|faults| faults.failed)
    }

    pub(super) fn set(&self, trouble: Trouble, on: bool) {
        if trouble == Trouble::DiskFull {
            return self.faults(|faults| faults.full = on);
        }
        let mut state = self.state();
        match trouble {
            Trouble::ReadError => state.read_error = on,
            Trouble::JudgeDown => state.judge_down = on,
            Trouble::NoThreads => state.no_threads = on,
            Trouble::NoData => state.no_data = on,
            Trouble::DiskFull => {}
        }
    }

    pub(super) fn pass(&self, time: Duration) {
        self.state().elapsed += time;
    }

    pub(super) fn now(&self) -> Instant {
        self.start + self.state().elapsed
    }

    /// The policy directory; `None` if it is missing.
    pub(super) fn files(&self) -> Option<Files> {
        self.state().files.clone()
    }

    pub(super) fn write(&self, files: Option<Files>) {
        self.state().files = files;
    }

    /// The files, if they can be read now.
    pub(super) fn readable(&self) -> Option<Files> {
        let state = self.state();
        state.files.clone().filter(|_| !state.read_error)
    }

    pub(super) fn is_missing(&self) -> bool {
        let state = self.state();
        state.files.is_none() && !state.read_error
    }

    /// What `CURRENT` names.
    pub(super) fn named(&self) -> Option<GenerationId> {
        self.state().current.clone()
    }

    pub(super) fn is_judge_down(&self) -> bool {
        self.state().judge_down
    }

    pub(super) fn change_data(&self) {
        // A few versions, so that inputs come back.
        let mut state = self.state();
        state.data = (state.data + 1) % 3;
    }

    pub(super) fn set_clock(&self, seconds: u64) {
        clock::pretend(Some(seconds));
    }

    /// How many realignments have ended.
    pub(super) fn ended_rows(&self) -> Result<usize, String> {
        let rows = self.db.realignments(ALL).map_err(|e| e.to_string())?;
        Ok(rows.iter().filter(|row| row.outcome.is_some()).count())
    }

    pub(super) fn damage(&self, id: &str, damaged: bool) {
        let mut state = self.state();
        if damaged {
            state.damaged.insert(id.into());
        } else {
            state.damaged.clear();
        }
    }

    pub(super) fn publish(&self, id: &str) {
        let mut state = self.state();
        state.damaged.remove(id);
        if !state.published.iter().any(|known| known == id) {
            state.published.push(id.into());
        }
    }

    pub(super) fn published(&self) -> Vec<String> {
        self.state().published.clone()
    }

    /// The realignment that runs.
    pub(super) fn job<T>(&self, look: impl FnOnce(&Launched) -> T) -> Option<T> {
        self.state().job.as_ref().map(look)
    }

    pub(super) fn end_job(&self) -> Option<Launched> {
        self.state().job.take()
    }

    /// The adapter directory is not mounted.
    pub(super) fn lose_current(&self) {
        self.state().current = None;
    }

    /// How many exams were to begin.
    pub(super) fn exams(&self) -> usize {
        self.state().exams
    }

    /// From now on exams begin, and never come to a result.
    pub(super) fn sit_exams(&self) {
        self.state().sits = true;
    }

    pub(super) fn breach(&self) -> Option<String> {
        self.state().breach.clone()
    }

    /// What a realignment to a set is a function of.
    pub(super) fn hash(&self, revision: &str) -> String {
        let data = self.state().data;
        hex::encode(Sha256::digest(format!("{revision}/{data}")))
    }

    pub(super) fn load(&self, id: &GenerationId) -> Result<Generation, AdapterError> {
        let state = self.state();
        let usable = state.published.contains(&id.0) && !state.damaged.contains(&id.0);
        if !usable && *id != self.base {
            return Err(AdapterError::Unknown {
                id: id.clone(),
                root: "adapters".into(),
            });
        }
        Ok(Generation {
            id: id.clone(),
            base_hash: self.base_hash.clone(),
            policy_revision: None,
            adapter: None,
        })
    }
}

impl Outside {
    fn name(&self, id: &GenerationId) -> Result<(), AdapterError> {
        let write = self.faults(Faults::write);
        if !matches!(write, Write::Refused) {
            self.state().current = Some(id.clone());
        }
        match write {
            Write::Done => Ok(()),
            _ => Err(AdapterError::io("CURRENT")(io::Error::other("injected"))),
        }
    }
}

impl CurrentFile for Outside {
    fn current(&self) -> Result<Option<GenerationId>, AdapterError> {
        Ok(self.state().current.clone())
    }

    fn point_to(&self, generation: &Arc<Generation>, _: bool) -> Result<(), AdapterError> {
        self.name(&generation.id)
    }

    fn name_again(&self, id: &GenerationId) -> Option<Result<(), AdapterError>> {
        Some(self.name(id))
    }
}

/// The outside, as a process sees it.
pub(super) struct Seen(pub(super) Arc<Outside>);

impl Surroundings for Seen {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn policies(&self, _: &Context) -> io::Result<Snapshot> {
        let state = self.0.state();
        match &state.files {
            _ if state.read_error => Err(io::Error::other("injected")),
            None => Err(io::ErrorKind::NotFound.into()),
            Some(files) => Ok(snapshot(files)),
        }
    }

    fn data(&self, _: &Context) -> Listing {
        vec![("pairs.jsonl".into(), self.0.state().data, None)]
    }

    fn prepare(&self, context: &Context, set: &PolicySet) -> Result<Prepared, ReadPoliciesError> {
        if self.0.is_judge_down() && needs_judge(set) {
            return Err(ReadPoliciesError::Directory {
                directory: "judge".into(),
                error: io::Error::other("injected"),
            });
        }
        let services = Services {
            features: None,
            scores: context.db.clone(),
            probes: None,
            closing: None,
        };
        Ok(prepare_trusted(set, &services)?)
    }

    fn inputs(&self, _: &Context, set: &PolicySet) -> Result<Inputs, DatasetError> {
        if self.0.state().no_data {
            return Err(DatasetError::Directory {
                path: "preferences".into(),
                source: io::Error::other("injected"),
            });
        }
        let dataset = Dataset {
            pairs: Vec::new(),
            skipped: Vec::new(),
            unread: Vec::new(),
            duplicates: 0,
            contradictions: Vec::new(),
            digest: String::new(),
        };
        Ok(Inputs {
            hash: self.0.hash(set.revision()),
            policy_revision: set.revision().into(),
            dataset,
            train: Vec::new(),
            holdout: Vec::new(),
        })
    }

    fn realign(
        &self,
        context: Arc<Context>,
        _: Sender<Event>,
        job: Job,
    ) -> io::Result<JoinHandle<()>> {
        if self.0.state().no_threads {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let thread = std::thread::Builder::new().spawn(|| ())?;
        context.log(context.db.open_attempt(&job.inputs.hash, ""));
        let loaded = context.active().loaded;
        let mut state = self.0.state();
        if !loaded {
            state.breach = Some(format!("{} was started without active policies", job.id));
        }
        if let Some(other) = &state.job {
            let both = format!("{} runs, and {} was started", other.id, job.id);
            state.breach = Some(both);
        }
        state.job = Some(Launched {
            id: job.id,
            hash: job.inputs.hash,
            flag: job.flag,
        });
        Ok(thread)
    }

    fn examine(&self, _: Arc<Context>, _: Sender<Event>) -> io::Result<Examining> {
        let mut state = self.0.state();
        state.exams += 1;
        match state.sits {
            true => Examining::ended(),
            false => Err(io::Error::other("no exam in a simulation")),
        }
    }

    fn collect(&self, _: &Context) {}
}
