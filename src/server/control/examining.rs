//! An exam by itself, without a realignment: at the start, on a timer, after an operator's swap, or
//! because an operator asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::context::Context;
use super::exam::Watch;
use crate::telemetry::event::ExamRole;
use realign_align::exam::ExamError;
use realign_align::triage::triage_cached;

/// An exam that is being sat.
pub(super) struct Examining {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Examining {
    /// Has what serves sit the exam of the active policies; calls `ended` at the end.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        context: Arc<Context>,
        ended: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        context.set_examining(true);
        let for_thread = context.clone();
        let run = move || {
            let attempt = std::panic::AssertUnwindSafe(|| examine(&for_thread, &stopped));
            if std::panic::catch_unwind(attempt).is_err() {
                for_thread.keep_failure("internal error: the exam panicked".into());
            }
            for_thread.set_examining(false);
            ended();
        };
        let thread = std::thread::Builder::new().name("exam".into()).spawn(run);
        let thread = thread.inspect_err(|_| context.set_examining(false))?;
        Ok(Self { stop, thread })
    }

    /// Asks it to stop and waits for it.
    pub(super) fn cancel(self) {
        self.stop.store(true, Ordering::Release);
        self.join();
    }

    /// One that has ended.
    #[cfg(test)]
    pub(super) fn ended() -> std::io::Result<Self> {
        let thread = std::thread::Builder::new().spawn(|| ())?;
        let stop = Arc::default();
        Ok(Self { stop, thread })
    }

    /// Waits for it.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the exam's thread panicked");
        }
    }
}

fn examine(context: &Context, stop: &Arc<AtomicBool>) {
    let active = context.active();
    if !active.set.policies().iter().any(|p| p.is_enforced()) {
        return;
    }
    let inputs = match context.inputs(&active.set) {
        Ok(inputs) => inputs,
        Err(error) => return context.keep_failure(error.to_string()),
    };
    let stopped = stop.clone();
    let oracle = context
        .oracle()
        .proceeding_while(move || !stopped.load(Ordering::Acquire));
    let (triage, _) = triage_cached(&inputs.dataset.pairs, &oracle, context.db.as_ref());
    let proceed = || !stop.load(Ordering::Acquire);
    if !proceed() {
        return;
    }
    let exam = match context.assemble_exam(&active.set, (&inputs, &triage), &proceed) {
        Ok(exam) => exam,
        Err(ExamError::Cancelled) => return,
        Err(error) => return context.keep_failure(error.to_string()),
    };
    let serving = context.registry.lease_current();
    let watch = Watch {
        proceed: &proceed,
        answered: &|| (),
    };
    match context.sit(&exam, &oracle, &serving, watch) {
        // It was judged in part.
        Ok(_) if !proceed() => {}
        // Other policies may have become active meanwhile; they have an exam of their own.
        Ok((_, report)) if Arc::ptr_eq(&context.policies(), &active.set) => {
            context.keep_report(Some(ExamRole::Current), &report);
        }
        Ok(_) | Err(ExamError::Cancelled) => {}
        Err(error) => context.keep_failure(error.to_string()),
    }
}
