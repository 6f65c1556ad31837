//! Judges answers to clients against the active policies, after they were sent.
//!
//! Serving puts an answer into a bounded queue and continues; if the queue is full, the answer is
//! dropped and counted. One thread judges, counts, and writes the decision log.

mod decisions;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use decisions::{DecisionLog, DecisionLogError, DecisionLogOptions};

use realign_core::Thread;
use realign_core::supervision::Vital;

use super::{Event, Judged, RuleLabels, Telemetry};
use realign_align::oracle::{Exchange, Matchers, Oracle, RuleOracle, Violation, needs_services};
use realign_align::policy::PolicySet;

/// Maximum size of all queued texts, in bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// How often an idle thread checks whether the policies have changed.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The longest that one judgement may take before the thread counts as hung.
const LONGEST_JUDGEMENT: Duration = Duration::from_secs(600);

/// An answer to a client, to be judged.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The request's id.
    pub(crate) request_id: String,
    /// The route's template.
    pub(crate) route: &'static str,
    /// Name of the API key the request was sent with.
    pub(crate) caller: Option<Arc<str>>,
    /// The generation that answered.
    pub(crate) generation: Option<String>,
    /// The last user message, or the text that was completed.
    pub prompt: String,
    /// The answer's text.
    pub(crate) response: String,
    /// When its last byte was sent.
    pub(crate) sent_at: Instant,
    /// The same time in Unix seconds.
    pub(crate) unix_seconds: u64,
}

impl Answer {
    fn bytes(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

/// Returns the active policy set and the matchers its rules use; `None` while none has been loaded.
pub(crate) type Policies = Box<dyn Fn() -> Option<(Arc<PolicySet>, Arc<Matchers>)> + Send>;

/// Told of every answer that got a verdict, with whether it complies.
pub(crate) type OnJudged = Box<dyn Fn(&Answer, bool) + Send>;

/// Which answers are judged, and how many may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// Fraction of the answers that is judged, 0 to 1.
    pub(crate) share: f64,
    /// Of those, the fraction that is shown to judges, 0 to 1.
    pub(crate) judge_share: f64,
    /// Maximum number of answers in the queue.
    pub(crate) queue: usize,
}

/// Handle of the judging thread, used by the serving side.
#[derive(Debug)]
pub struct Compliance {
    share: f64,
    queue: SyncSender<Answer>,
    waiting_bytes: Arc<AtomicUsize>,
    telemetry: Arc<Telemetry>,
    stop: Arc<AtomicBool>,
    vital: Arc<Vital>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Compliance {
    /// Starts the judging thread. It asks which policies are active, and tells of every verdict.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(
        sampling: Sampling,
        (policies, on_judged): (Policies, OnJudged),
        log: Option<DecisionLog>,
        telemetry: Arc<Telemetry>,
    ) -> std::io::Result<Self> {
        let (sender, inbox) = sync_channel(sampling.queue);
        let stop = Arc::new(AtomicBool::new(false));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let vital = Arc::new(Vital::new(Thread::Compliance, LONGEST_JUDGEMENT));
        let mut judge = Judge {
            vital: Arc::clone(&vital),
            policies,
            judge_share: sampling.judge_share,
            on_judged,
            active: None,
            log,
            telemetry: Arc::clone(&telemetry),
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        let (stopping, own) = (Arc::clone(&stop), Arc::clone(&vital));
        let run = move || {
            let stopped = || stopping.load(Ordering::Acquire);
            // An answer whose judgement panics is lost, and with it nothing else.
            own.run_restarting(stopped, || judge.run(&inbox, &stopping));
        };
        let thread = std::thread::Builder::new()
            .name(Thread::Compliance.as_str().into())
            .spawn(run)?;
        Ok(Self {
            share: sampling.share,
            queue: sender,
            waiting_bytes,
            telemetry,
            stop,
            vital,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The signs of life of the judging thread.
    pub(crate) fn vital(&self) -> Arc<Vital> {
        Arc::clone(&self.vital)
    }

    /// Decides at random whether the next answer is to be judged.
    pub(crate) fn should_judge(&self) -> bool {
        self.share >= 1.0 || rand::random::<f64>() < self.share
    }

    /// Queues an answer, or drops it if the queue is full. Never blocks.
    pub(crate) fn offer(&self, answer: Answer) {
        let bytes = answer.bytes();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = before + bytes <= MAX_WAITING_BYTES;
        if !fits || self.queue.try_send(answer).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.telemetry.emit(Event::ComplianceDropped);
        }
    }

    /// Judges the queued answers, flushes the decision log, and stops the thread.
    pub(crate) fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the compliance thread panicked");
        }
    }
}

/// The state of the judging thread.
struct Judge {
    vital: Arc<Vital>,
    policies: Policies,
    judge_share: f64,
    on_judged: OnJudged,
    active: Option<Active>,
    log: Option<DecisionLog>,
    telemetry: Arc<Telemetry>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// The policy set in use. `dryrun` policies are judged and counted like the others, but an answer
/// that violates only those still complies.
struct Active {
    set: Arc<PolicySet>,
    oracle: RuleOracle,
    /// The same without judges, where a rule has one.
    without_judges: Option<RuleOracle>,
}

impl Judge {
    fn run(&mut self, inbox: &Receiver<Answer>, stop: &AtomicBool) {
        loop {
            self.vital.beat();
            // At shutdown, judge what is already queued, then stop.
            let stopping = stop.load(Ordering::Acquire);
            let wait = if stopping {
                Duration::ZERO
            } else {
                IDLE_POLL_INTERVAL
            };
            match inbox.recv_timeout(wait) {
                Ok(answer) => {
                    self.waiting_bytes
                        .fetch_sub(answer.bytes(), Ordering::AcqRel);
                    self.judge_when_loaded(&answer, stop);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.refresh_policies();
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

    /// Judges by the policies active now, not those from before the wait. While none has been loaded
    /// nothing is said to comply: the answer waits, and is given up at shutdown.
    fn judge_when_loaded(&mut self, answer: &Answer, stop: &AtomicBool) {
        self.refresh_policies();
        while self.active.is_none() {
            if stop.load(Ordering::Acquire) {
                self.telemetry.emit(Event::ComplianceDropped);
                return;
            }
            self.vital.beat();
            std::thread::park_timeout(IDLE_POLL_INTERVAL);
            self.refresh_policies();
        }
        self.judge(answer);
    }

    /// Switches to a new policy set if there is one, and drops the series of removed rules.
    fn refresh_policies(&mut self) {
        let Some((set, matchers)) = (self.policies)() else {
            return;
        };
        let same = |active: &Active| Arc::ptr_eq(&active.set, &set);
        if self.active.as_ref().is_some_and(same) {
            return;
        }
        let (_, has_judges) = needs_services(&set);
        let without_judges = has_judges.then(|| {
            let matchers = Arc::new(matchers.without_judges());
            RuleOracle::with_dryrun(&set).with_matchers(matchers)
        });
        let oracle = RuleOracle::with_dryrun(&set).with_matchers(matchers);
        let rules = oracle.rules().map(|(policy, rule)| RuleLabels {
            policy: policy.id.clone(),
            rule: rule.id.clone(),
            severity: rule.severity.as_str(),
        });
        self.telemetry.metrics().set_rules(rules.collect());
        self.active = Some(Active {
            set,
            oracle,
            without_judges,
        });
    }

    fn judge(&mut self, answer: &Answer) {
        let Some(active) = &self.active else { return };
        let exchange = Exchange {
            prompt: &answer.prompt,
            response: &answer.response,
            labels: &[],
        };
        let spared = active
            .without_judges
            .as_ref()
            .filter(|_| rand::random::<f64>() >= self.judge_share);
        if let Some(oracle) = spared {
            let violations = oracle.judge(&exchange).violations;
            let labels = violations.into_iter().map(rule_labels).collect();
            self.telemetry.emit(Event::ViolationsFound(labels));
            return;
        }
        let judgement = active.oracle.judge(&exchange);
        let enforced = |policy: &str| active.set.get(policy).is_some_and(|p| p.is_enforced());
        // An answer that could not be decided does not comply.
        let undecided = judgement.undecided.iter().any(|u| enforced(&u.policy));
        let violations = judgement.violations;
        let complies = !undecided && !violations.iter().any(|v| enforced(&v.policy));
        if let Some(log) = &mut self.log {
            let revision = active.oracle.revision();
            log.write(answer, &violations, complies, revision);
        }
        (self.on_judged)(answer, complies);
        let labels = violations.into_iter().map(rule_labels);
        self.telemetry.emit(Event::ComplianceJudged(Judged {
            complies,
            violations: labels.collect(),
            lag: answer.sent_at.elapsed(),
        }));
    }
}

fn rule_labels(violation: Violation) -> RuleLabels {
    RuleLabels {
        policy: violation.policy,
        rule: violation.rule,
        severity: violation.severity.as_str(),
    }
}

#[cfg(test)]
mod tests;
