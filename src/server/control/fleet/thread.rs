//! The thread that looks at the store, again and again.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::Event;
use super::super::context::Context;
use super::Member;
use super::status::Reported;
use realign_core::Thread;
use realign_core::supervision::Vital;

/// The longest that a look may take: a large generation over a slow network.
const LONGEST: Duration = Duration::from_secs(1800);
/// The longest pause while the store fails.
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// A running thread. Dropping it ends it.
pub(in crate::control) struct MemberThread {
    vital: Arc<Vital>,
    /// Dropped to end the thread.
    stop: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl MemberThread {
    /// Starts to look at the store.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(in crate::control) fn start(
        member: Arc<Member>,
        context: Arc<Context>,
        events: Sender<Event>,
    ) -> std::io::Result<Self> {
        let vital = Arc::new(Vital::new(Thread::Store, LONGEST));
        let (stop, stopped) = channel();
        let own = vital.clone();
        let run = move || {
            let stopped = Stopped(stopped);
            own.run_restarting(
                || !stopped.go_on(),
                || run(&member, &context, &events, &stopped, &own),
            );
            member.leave_store();
        };
        let thread = std::thread::Builder::new().name(Thread::Store.as_str().into());
        Ok(Self {
            vital,
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread.spawn(run)?)),
        })
    }

    /// The signs of life of the thread.
    pub(in crate::control) fn vital(&self) -> Arc<Vital> {
        self.vital.clone()
    }

    /// Ends the thread, which gives the lease back. Calling it again does nothing.
    pub(in crate::control) fn end(&self) {
        drop(self.stop.lock().ok().and_then(|mut stop| stop.take()));
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the store's thread panicked");
        }
    }
}

impl Drop for MemberThread {
    fn drop(&mut self) {
        self.end();
    }
}

/// Disconnected when the thread should end.
struct Stopped(Receiver<()>);

impl Stopped {
    fn go_on(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits; whether the thread should go on then.
    fn wait(&self, pause: Duration) -> bool {
        self.0.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
    }
}

fn run(
    member: &Member,
    context: &Context,
    events: &Sender<Event>,
    stopped: &Stopped,
    vital: &Vital,
) {
    let interval = member.interval();
    let mut pause = Duration::ZERO;
    let mut reported = Reported::default();
    let mut could_realign = false;
    while stopped.wait(pause) {
        vital.beat();
        let looked = member.sync(context, &|| stopped.go_on());
        member.note(&looked);
        let owes = std::mem::take(&mut member.seen().owes_publication);
        match looked {
            Ok(looked) => {
                let begins = looked.may_realign && (!could_realign || owes);
                could_realign = looked.may_realign;
                if looked.swapped || begins {
                    // A closed channel means that the loop is shutting down.
                    let _closed = events.send(Event::StoreChanged);
                }
                member.report(context, &mut reported);
                pause = varied(interval);
            }
            Err(_) => {
                member.seen().owes_publication |= owes;
                could_realign &= member.may_not_realign().is_none();
                pause = varied((pause * 2).clamp(interval, LAST_PAUSE.max(interval)));
            }
        }
        member.measure(context);
        vital.rest();
    }
}

/// Servers that started together must not ask together for ever.
fn varied(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..1.2))
}

impl Member {
    /// Time between two looks while the store answers.
    fn interval(&self) -> Duration {
        let renewal = self.controller.as_ref().map(|c| c.interval());
        renewal.map_or(self.settings.poll, |r| r.min(self.settings.poll))
    }
}
