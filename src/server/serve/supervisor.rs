//! Watches the threads that a server cannot do without. `/health`, `/ready` and the metrics ask it,
//! and running answers are given up when the engine is dead.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::threads::StopSignal;
use crate::api::{Cut, HealthPort};
use crate::control::Control;
use realign_core::Thread;
use realign_core::supervision::{Life, Vital};

/// How often the threads are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The threads of one server.
pub(super) struct Supervisor {
    vitals: Vec<Arc<Vital>>,
    control: Arc<Control>,
    stop: Arc<StopSignal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts to watch these threads. `cut` gives running answers up.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        mut vitals: Vec<Arc<Vital>>,
        control: Arc<Control>,
        cut: watch::Sender<Option<Cut>>,
    ) -> std::io::Result<Self> {
        let own = Arc::new(Vital::new(Thread::Supervisor, 100 * LOOK));
        vitals.push(own.clone());
        let stop = Arc::new(StopSignal::default());
        let (watched, stopped) = (vitals.clone(), stop.clone());
        let run = move || {
            own.run_restarting(
                || stopped.wait(Duration::ZERO),
                || look(&watched, &own, &stopped, &cut),
            );
        };
        let thread = std::thread::Builder::new()
            .name(Thread::Supervisor.as_str().into())
            .spawn(run)?;
        Ok(Self {
            vitals,
            control,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn end(&self) {
        self.stop.set();
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the supervisor's thread panicked");
        }
    }

    fn lives(&self) -> impl Iterator<Item = (Thread, Life)> {
        self.vitals
            .iter()
            .map(|vital| (vital.thread(), vital.life()))
    }
}

/// Reports threads that die or fall silent, until it is told to stop.
fn look(vitals: &[Arc<Vital>], own: &Vital, stop: &StopSignal, cut: &watch::Sender<Option<Cut>>) {
    let mut reported = vec![Life::Alive; vitals.len()];
    loop {
        own.beat();
        for (vital, before) in vitals.iter().zip(&mut reported) {
            let life = vital.life();
            if std::mem::discriminant(&life) != std::mem::discriminant(before) {
                report(vital.thread(), &life, cut);
            }
            *before = life;
        }
        if stop.wait(LOOK) {
            return;
        }
    }
}

fn report(thread: Thread, life: &Life, cut: &watch::Sender<Option<Cut>>) {
    match life {
        Life::Alive | Life::Ended => {}
        Life::Silent(silent) => tracing::error!(
            %thread,
            seconds = silent.as_secs(),
            "the thread gives no sign of life"
        ),
        Life::Dead(why) => {
            tracing::error!(%thread, why, "the thread is dead: /health fails until a restart");
            if thread == Thread::Engine {
                // A drain's deadline is the stronger signal.
                cut.send_if_modified(|cut| {
                    let first = cut.is_none();
                    cut.get_or_insert(Cut::EngineStopped);
                    first
                });
            }
        }
    }
}

impl HealthPort for Supervisor {
    fn failure(&self) -> Option<String> {
        self.lives().find_map(|(thread, life)| match life {
            Life::Dead(why) => Some(format!("{thread}: {why}; restart the server")),
            Life::Alive | Life::Silent(_) | Life::Ended => None,
        })
    }

    fn unready(&self) -> Option<String> {
        let vital = |thread| matches!(thread, Thread::Engine | Thread::Control);
        let unwell = self.lives().filter(|(thread, _)| vital(*thread));
        let unwell = unwell.filter_map(|(thread, life)| match life {
            Life::Dead(why) => Some(format!("{thread}: {why}; restart the server")),
            Life::Silent(silent) => Some(format!(
                "{thread}: no sign of life for {} s",
                silent.as_secs()
            )),
            Life::Alive | Life::Ended => None,
        });
        let first = unwell.into_iter().next();
        first
            .or_else(|| self.control.policies_missing())
            .or_else(|| self.control.out_of_step())
    }

    fn measure(&self) {
        self.control.measure_store();
    }

    fn panics(&self) -> Vec<(Thread, u64)> {
        let counts = self.vitals.iter().map(|v| (v.thread(), v.panics()));
        counts.collect()
    }
}
