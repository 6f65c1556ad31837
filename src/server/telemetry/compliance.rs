//! Judges answers to clients against the active policies, after they were sent.
//!
//! Serving hands an answer over and goes on: the queue is bounded, and what finds no place in it is
//! dropped and counted. One thread judges, counts, and writes the decision log.

mod decisions;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use decisions::{DecisionLog, DecisionLogError, Limits};

use super::{Event, Judged, RuleLabels, Telemetry};
use realign_align::oracle::{Exchange, Matchers, Oracle, RuleOracle};
use realign_align::policy::PolicySet;

/// Most text that may wait to be judged, whatever the number of answers.
const WAITING_BYTES: usize = 64 << 20;
/// How often the thread looks whether the policies changed while there is nothing to judge.
const IDLE_LOOK: Duration = Duration::from_millis(200);

/// One answer to a client.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request's id.
    pub request_id: String,
    /// The route's template.
    pub route: &'static str,
    /// Name of the key it came with.
    pub caller: Option<Arc<str>>,
    /// The generation that answered.
    pub generation: Option<String>,
    /// The last user message, or the text that was completed.
    pub prompt: String,
    /// The answer's text.
    pub response: String,
    /// When its last byte was handed to the network.
    pub sent_at: Instant,
    /// The same in Unix seconds.
    pub unix_seconds: u64,
}

impl Answer {
    fn bytes(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

/// The active policy set and what its rules may ask, whenever they are wanted.
pub type Policies = Box<dyn Fn() -> (Arc<PolicySet>, Arc<Matchers>) + Send>;

/// The serving side's handle.
#[derive(Debug)]
pub struct Compliance {
    share: f64,
    queue: SyncSender<Answer>,
    waiting_bytes: Arc<AtomicUsize>,
    telemetry: Arc<Telemetry>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Compliance {
    /// Starts the judging thread. A `share` of the answers is asked for; `queue` may wait.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        (share, queue): (f64, usize),
        policies: Policies,
        log: Option<DecisionLog>,
        telemetry: Arc<Telemetry>,
    ) -> std::io::Result<Self> {
        let (sender, inbox) = sync_channel(queue);
        let stop = Arc::new(AtomicBool::new(false));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let judge = Judge {
            policies,
            active: None,
            log,
            telemetry: Arc::clone(&telemetry),
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("compliance".into())
            .spawn(move || judge.run(&inbox, &stopping))?;
        Ok(Self {
            share,
            queue: sender,
            waiting_bytes,
            telemetry,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Whether the next answer is one of those to be judged.
    pub fn wants(&self) -> bool {
        self.share >= 1.0 || rand::random::<f64>() < self.share
    }

    /// Hands an answer over, or drops it if too many wait. Never blocks.
    pub fn offer(&self, answer: Answer) {
        let bytes = answer.bytes();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = before + bytes <= WAITING_BYTES;
        if !fits || self.queue.try_send(answer).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.telemetry.emit(Event::ComplianceDropped);
        }
    }

    /// Judges what waits, writes it down, and ends the thread.
    pub fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the compliance thread panicked");
        }
    }
}

/// What the thread owns.
struct Judge {
    policies: Policies,
    active: Option<Active>,
    log: Option<DecisionLog>,
    telemetry: Arc<Telemetry>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// The set that is judged by. `dryrun` policies are judged and counted like the others; a response
/// that violates nothing else still complies.
struct Active {
    set: Arc<PolicySet>,
    oracle: RuleOracle,
}

impl Judge {
    fn run(mut self, inbox: &Receiver<Answer>, stop: &AtomicBool) {
        loop {
            // A short wait once the server goes down: what came before is judged, then it ends.
            let stopping = stop.load(Ordering::Acquire);
            let wait = if stopping { Duration::ZERO } else { IDLE_LOOK };
            match inbox.recv_timeout(wait) {
                Ok(answer) => {
                    self.waiting_bytes
                        .fetch_sub(answer.bytes(), Ordering::AcqRel);
                    // By the policies of now, not by those of when the wait began.
                    self.look();
                    self.judge(&answer);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    if let Some(log) = &mut self.log {
                        log.flush();
                    }
                    if stopping {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes a new policy set up, and lets the series of rules that are gone expire.
    fn look(&mut self) {
        let (set, matchers) = (self.policies)();
        let same = |active: &Active| Arc::ptr_eq(&active.set, &set);
        if self.active.as_ref().is_some_and(same) {
            return;
        }
        let oracle = RuleOracle::with_dryrun(&set).with_matchers(matchers);
        let rules = oracle.rules().map(|(policy, rule)| RuleLabels {
            policy: policy.id.clone(),
            rule: rule.id.clone(),
            severity: rule.severity.as_str(),
        });
        self.telemetry.metrics().set_rules(rules.collect());
        self.active = Some(Active { set, oracle });
    }

    fn judge(&mut self, answer: &Answer) {
        let Some(active) = &self.active else { return };
        let exchange = Exchange {
            prompt: &answer.prompt,
            response: &answer.response,
            labels: &[],
        };
        let judgement = active.oracle.judge(&exchange);
        let enforced = |policy: &str| active.set.get(policy).is_some_and(|p| p.is_enforced());
        // What could not be decided is not compliant.
        let undecided = judgement.undecided.iter().any(|u| enforced(&u.policy));
        let violations = judgement.violations;
        let complies = !undecided && !violations.iter().any(|v| enforced(&v.policy));
        if let Some(log) = &mut self.log {
            let revision = active.oracle.revision();
            log.write(answer, &violations, (complies, revision));
        }
        let labels = violations.into_iter().map(|violation| RuleLabels {
            policy: violation.policy,
            rule: violation.rule,
            severity: violation.severity.as_str(),
        });
        self.telemetry.emit(Event::ComplianceJudged(Judged {
            complies,
            violations: labels.collect(),
            lag: answer.sent_at.elapsed(),
        }));
    }
}

#[cfg(test)]
mod tests;
