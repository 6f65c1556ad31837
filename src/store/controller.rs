//! The right to publish: a lease with a fencing token, and `CURRENT`, both moved by compare-and-swap.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use realign_core::clock::unix_seconds;
use realign_core::crash_point;

use crate::error::StoreError;
use crate::objects::{Objects, Version};
use crate::records::{Current, FORMAT, Lease, encode};
use crate::store::{CURRENT, LEASE, Store, history_key};

/// How often a write of `CURRENT` is tried against writes of others, when a lease is taken.
const TRIES: usize = 5;

/// Monotonic time since some beginning. Simulations replace it.
pub(crate) type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// A controller's place among those that share a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may publish.
    Holder {
        /// Its token.
        fencing: u64,
        /// What `CURRENT` says.
        current: Current,
    },
    /// It may not; holds why.
    Standby(String),
}

/// One run of a controller.
pub struct Controller {
    store: Store,
    name: String,
    term: Duration,
    clock: Clock,
    /// Held while the store is asked.
    state: Mutex<State>,
    /// What the state was when the store was asked last. Never held for long.
    shown: Mutex<Shown>,
}

/// A state, and until when it holds.
#[derive(Clone, Debug)]
struct Shown {
    standing: Standing,
    until: Duration,
}

/// What this run knows.
enum State {
    Standby {
        /// The lease as it was seen last, and when it was first seen so.
        seen: Option<(Version, Duration)>,
        why: String,
    },
    Holder(Box<Held>),
}

/// A lease that this run holds.
struct Held {
    lease: Lease,
    version: Version,
    /// By this process' clock. Others wait longer than this.
    until: Duration,
    /// What `CURRENT` says; `None` after a write whose result is unknown.
    current: Option<(Current, Version)>,
}

impl Controller {
    /// A controller that holds nothing yet. `name` must be another one for each run of each
    /// controller; `term` is how long others wait before they take over from one that is silent.
    pub fn new(store: Store, name: String, term: Duration) -> Self {
        let start = Instant::now();
        Self::with_clock(store, name, term, Box::new(move || start.elapsed()))
    }

    pub(crate) fn with_clock(store: Store, name: String, term: Duration, clock: Clock) -> Self {
        Self {
            store,
            name,
            term,
            clock,
            state: Mutex::new(standby(NOT_ASKED)),
            shown: Mutex::new(Shown {
                standing: Standing::Standby(NOT_ASKED.into()),
                until: Duration::MAX,
            }),
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How often [`Controller::tick`] is called.
    pub fn interval(&self) -> Duration {
        self.term / 5
    }

    /// Whether it may publish now, without asking the store or waiting for it.
    pub fn standing(&self) -> Standing {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if (self.clock)() >= shown.until {
            return Standing::Standby(EXPIRED.into());
        }
        shown.standing.clone()
    }

    /// Has [`Controller::standing`] say what this state is.
    fn show(&self, state: &State) {
        let (standing, until) = match state {
            State::Standby { why, .. } => (Standing::Standby(why.clone()), Duration::MAX),
            State::Holder(held) => {
                let fencing = held.lease.fencing;
                let known = held.current.as_ref().map(|(current, _)| current.clone());
                let standing = known.map_or_else(
                    || Standing::Standby(UNKNOWN.into()),
                    |current| Standing::Holder { fencing, current },
                );
                (standing, held.until)
            }
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Shown { standing, until };
    }

    /// Renews the lease, or takes it if it is free. To be called every [`Controller::interval`].
    ///
    /// # Errors
    /// [`StoreError`] if the store fails. A lease that is held stays so until its term is over.
    pub fn tick(&self) -> Result<Standing, StoreError> {
        let mut state = self.state();
        let done = match &mut *state {
            State::Holder(held) => self.renew(held),
            State::Standby { seen, .. } => self.take(seen),
        };
        let failed = match done {
            Ok(None) => None,
            Ok(Some(next)) => {
                *state = next;
                None
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &failed {
            match &mut *state {
                State::Holder(held) if (self.clock)() >= held.until => {
                    *state = standby(&format!("{EXPIRED}: {error}"));
                }
                State::Holder(_) => {}
                State::Standby { why, .. } => *why = error.to_string(),
            }
        }
        self.show(&state);
        drop(state);
        failed.map_or_else(|| Ok(self.standing()), Err)
    }

    /// What follows from a renewal; `None` if the lease is held as before.
    fn renew(&self, held: &mut Held) -> Result<Option<State>, StoreError> {
        let started = (self.clock)();
        if started >= held.until {
            // Another may have taken it: this run begins anew, with a new token.
            return Ok(Some(standby(EXPIRED)));
        }
        let next = Lease {
            beat: held.lease.beat + 1,
            ..held.lease.clone()
        };
        let objects = &self.store.objects;
        let swapped = swap(&**objects, LEASE, &next, Some(&held.version))?;
        let Some(version) = swapped else {
            return Ok(Some(standby("another controller took the lease")));
        };
        held.lease = next;
        held.version = version;
        held.until = started + self.usable();
        if held.current.is_none() {
            held.current = self.read_own(held.lease.fencing)?;
        }
        Ok(held
            .current
            .is_none()
            .then(|| standby("another controller wrote CURRENT")))
    }

    /// For how long a renewed lease may be used: less than others wait.
    fn usable(&self) -> Duration {
        self.term.mul_f64(0.8)
    }

    /// Takes the lease if it is free, or its holder was silent for too long.
    fn take(&self, seen: &mut Option<(Version, Duration)>) -> Result<Option<State>, StoreError> {
        let now = (self.clock)();
        let there: Option<(Lease, Version)> = self.store.read(LEASE)?;
        if let Some((lease, version)) = &there {
            let since = match seen {
                Some((before, since)) if before == version => *since,
                _ => {
                    *seen = Some((version.clone(), now));
                    now
                }
            };
            let wait = self.term.max(Duration::from_millis(lease.term_ms));
            // Its own is one that this run gave up on, and holds no more.
            let free = lease.released || lease.holder == self.name;
            if !free && now.saturating_sub(since) < wait {
                return Ok(Some(State::Standby {
                    seen: seen.clone(),
                    why: format!("controller {} holds the lease", lease.holder),
                }));
            }
        }
        let current = self.store.read_current()?;
        // Above both: a lease that was removed by hand must not begin with a token that was used.
        let used = there.as_ref().map_or(0, |(lease, _)| lease.fencing);
        let used = used.max(current.as_ref().map_or(0, |(current, _)| current.fencing));
        let lease = Lease {
            format: FORMAT,
            holder: self.name.clone(),
            fencing: used + 1,
            beat: 0,
            term_ms: u64::try_from(self.term.as_millis()).unwrap_or(u64::MAX),
            released: false,
        };
        let started = (self.clock)();
        let before = there.as_ref().map(|(_, version)| version);
        let Some(version) = swap(&*self.store.objects, LEASE, &lease, before)? else {
            return Ok(Some(standby("another controller took the lease first")));
        };
        let until = started + self.usable();
        // From here on nothing that an earlier holder writes comes about.
        let Some(current) = self.fence(lease.fencing)? else {
            return Ok(Some(standby("another controller took the lease first")));
        };
        Ok(Some(State::Holder(Box::new(Held {
            lease,
            version,
            until,
            current: Some(current),
        }))))
    }

    /// Writes a new token into `CURRENT`, which else stays as it is; `None` if a higher one is there.
    fn fence(&self, fencing: u64) -> Result<Option<(Current, Version)>, StoreError> {
        for _ in 0..TRIES {
            let there = self.store.read_current()?;
            let before = there.as_ref().map(|(_, version)| version);
            let current = there
                .as_ref()
                .map_or_else(Current::nothing, |(current, _)| current.clone());
            if current.fencing > fencing {
                return Ok(None);
            }
            let fenced = Current { fencing, ..current };
            if let Some(version) = swap(&*self.store.objects, CURRENT, &fenced, before)? {
                return Ok(Some((fenced, version)));
            }
        }
        Err(StoreError::Unavailable(
            "CURRENT changes under every attempt to write it".into(),
        ))
    }

    /// `CURRENT`, if it still bears this token.
    fn read_own(&self, fencing: u64) -> Result<Option<(Current, Version)>, StoreError> {
        let there = self.store.read_current()?;
        Ok(there.filter(|(current, _)| current.fencing == fencing))
    }

    /// Moves `CURRENT` to what `next` says of generation, base and policies, and returns what it says
    /// then. If it says so already, nothing is written.
    ///
    /// # Errors
    /// [`StoreError::NotHolder`] if this controller may not publish. After another error `CURRENT` may
    /// have been moved: asking again finds out.
    pub fn publish(&self, next: &Current) -> Result<Current, StoreError> {
        let mut state = self.state();
        let published = self.publish_as(&mut state, next);
        self.show(&state);
        published
    }

    fn publish_as(&self, state: &mut State, next: &Current) -> Result<Current, StoreError> {
        let held = match state {
            State::Standby { why, .. } => return Err(StoreError::NotHolder(why.clone())),
            State::Holder(held) => held,
        };
        if (self.clock)() >= held.until {
            *state = standby(EXPIRED);
            return Err(StoreError::NotHolder(EXPIRED.into()));
        }
        let fencing = held.lease.fencing;
        let known = match held.current.take() {
            Some(known) => Some(known),
            None => self.read_own(fencing)?,
        };
        let Some((current, version)) = known else {
            return Err(lost(state));
        };
        if current.says_the_same(next) {
            held.current = Some((current.clone(), version));
            return Ok(current);
        }
        let next = Current {
            format: FORMAT,
            epoch: current.epoch + 1,
            writer: self.name.clone(),
            fencing,
            at: unix_seconds(),
            ..next.clone()
        };
        if let Err(error) = self.complete_history(&current) {
            held.current = Some((current, version));
            return Err(error);
        }
        crash_point("share:after-history");
        // As late as possible: what was done before may have taken long.
        if (self.clock)() >= held.until {
            *state = standby(EXPIRED);
            return Err(StoreError::NotHolder(EXPIRED.into()));
        }
        // Until the answer is there, it is unknown what `CURRENT` says.
        match swap(&*self.store.objects, CURRENT, &next, Some(&version))? {
            Some(version) => held.current = Some((next.clone(), version)),
            None => return Err(lost(state)),
        }
        crash_point("share:after-current");
        if let Err(error) = self.complete_history(&next) {
            tracing::warn!(%error, epoch = next.epoch, "the history is completed at the next publication");
        }
        Ok(next)
    }

    /// Every epoch has its record before the next one begins.
    fn complete_history(&self, current: &Current) -> Result<(), StoreError> {
        if current.epoch == 0 {
            return Ok(());
        }
        let created = self
            .store
            .objects
            .create(&history_key(current.epoch), encode(current));
        created.map(drop)
    }

    /// Gives the lease back, so that another controller need not wait.
    ///
    /// # Errors
    /// [`StoreError`]; others then wait for the term.
    pub fn release(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        let before = std::mem::replace(&mut *state, standby("it gave the lease back"));
        self.show(&state);
        let State::Holder(held) = before else {
            return Ok(());
        };
        let Held { lease, version, .. } = *held;
        let given_back = Lease {
            released: true,
            beat: lease.beat + 1,
            ..lease
        };
        swap(&*self.store.objects, LEASE, &given_back, Some(&version)).map(drop)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NOT_ASKED: &str = "it has not asked the store yet";
const EXPIRED: &str = "the lease could not be renewed in time";
const UNKNOWN: &str = "the result of the last write of CURRENT is not known yet";

fn standby(why: &str) -> State {
    State::Standby {
        seen: None,
        why: why.into(),
    }
}

fn lost(state: &mut State) -> StoreError {
    let why = "another controller wrote CURRENT";
    *state = standby(why);
    StoreError::NotHolder(why.into())
}

/// Writes an object in place of this version of it, or of none; `None` if another is there. What an
/// attempt wrote whose answer was lost is found to be there.
fn swap<T: serde::Serialize>(
    objects: &dyn Objects,
    key: &str,
    record: &T,
    before: Option<&Version>,
) -> Result<Option<Version>, StoreError> {
    let bytes = encode(record);
    let written = match before {
        None => objects.create(key, bytes.clone())?,
        Some(version) => objects.replace(key, bytes.clone(), version)?,
    };
    if written.is_some() {
        return Ok(written);
    }
    // The client repeats a request whose answer was lost; records name their writer, so another's differ.
    let there = objects.read(key)?;
    let own = there.filter(|there| there.bytes == bytes);
    Ok(own.map(|own| own.version))
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("name", &self.name)
            .field("standing", &self.standing())
            .finish_non_exhaustive()
    }
}
