//! The metrics of one server, and how events update them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::{Registry, TextEncoder};

use super::event::{
    AlignmentState, EngineSnapshot, Event, Eviction, Examined, GateMeasured, Judged, LeaseCounts,
    ListenerRole, LossPart, Outcome, Refusal, RequestFinished, RuleCount, RuleLabels, Stage,
    Trigger,
};
use super::families::{
    Build, Compliance, Policy, Realignment, Serving, Shared, Swap, Targets, Threads,
};
use super::names;
use realign_core::{Collectable, Thread, clock};

/// The metrics registry of one server. There are no global metrics, so servers in one process do
/// not interfere.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    serving: Serving,
    policy: Policy,
    realignment: Realignment,
    swap: Swap,
    compliance: Compliance,
    threads: Threads,
    shared: Shared,
    targets: Targets,
    /// When the current generation stopped being aligned to the active policies; `None` while it
    /// is.
    gap_since: Mutex<Option<Instant>>,
    /// Policies and rules that have compliance series, by role.
    exam_series: Mutex<ExamSeries>,
}

/// Policies and rules that have compliance series, by role.
type ExamSeries = HashMap<&'static str, Vec<(String, String)>>;

impl Metrics {
    /// Registers every metric, and initialises series with a fixed set of labels to zero, so that
    /// rates and alerts work before the first event.
    ///
    /// # Errors
    /// Only if two metrics share a name or a name is malformed.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let build = Build {
            registry: Registry::new(),
        };
        let info = build.int_gauges(names::BUILD_INFO, "The program's version.", &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            serving: Serving::register(&build)?,
            policy: Policy::register(&build)?,
            realignment: Realignment::register(&build)?,
            swap: Swap::register(&build)?,
            compliance: Compliance::register(&build)?,
            threads: Threads::register(&build)?,
            shared: Shared::register(&build)?,
            targets: Targets::register(&build)?,
            gap_since: Mutex::new(None),
            exam_series: Mutex::default(),
            registry: build.registry,
        };
        metrics.start_at_zero();
        Ok(metrics)
    }

    fn start_at_zero(&self) {
        for outcome in Outcome::ALL {
            for trigger in Trigger::ALL {
                self.realignment
                    .realignments
                    .with_label_values(&[outcome.as_str(), trigger.as_str()]);
            }
        }
        self.set_alignment(AlignmentState::Unknown);
        for stage in Stage::ALL {
            self.realignment
                .stage
                .with_label_values(&[stage.as_str()])
                .set(0);
        }
        for result in ["ok", "failed"] {
            self.policy.reloads.with_label_values(&[result]);
            self.swap.swaps.with_label_values(&[result]);
        }
        for kind in Collectable::ALL {
            self.swap.collected.with_label_values(&[kind.as_str()]);
        }
        for reason in Refusal::ALL {
            self.serving.refused.with_label_values(&[reason.as_str()]);
        }
        for listener in ListenerRole::ALL {
            for reason in Eviction::ALL {
                let evicted = &self.serving.evicted;
                evicted.with_label_values(&[listener.as_str(), reason.as_str()]);
            }
        }
        for verdict in ["complies", "violates"] {
            self.compliance.responses.with_label_values(&[verdict]);
        }
        self.record_leases(LeaseCounts::default());
    }

    /// Sets how often each thread has panicked since the start.
    pub(crate) fn set_thread_panics(&self, panics: &[(Thread, u64)]) {
        self.threads.advance_to(panics);
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.realignment.gap_open.set(self.gap_open_seconds());
        let families = self.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_else(|error| {
                // Only a family without a name or without metrics can fail, and `gather` omits
                // those.
                tracing::error!(%error, "metrics could not be encoded");
                String::new()
            })
    }

    /// Updates the metrics for an event.
    pub(crate) fn record(&self, event: &Event) {
        match event {
            Event::PolicyReloaded { policies, .. } => {
                self.policy.reloads.with_label_values(&["ok"]).inc();
                self.policy.reload_successful.set(1);
                let now = clock::since_1970().as_secs_f64();
                self.policy.reload_success_timestamp.set(now);
                let series = policies
                    .iter()
                    .map(|p| [p.policy.clone(), p.revision.clone()]);
                self.policy.policy_info.replace(series.collect());
            }
            Event::PolicyReloadFailed { .. } => {
                self.policy.reloads.with_label_values(&["failed"]).inc();
                self.policy.reload_successful.set(0);
            }
            Event::RealignmentStarted { .. } => {
                self.realignment.progress.set(0.0);
                self.set_stage(None);
            }
            Event::StageEntered { stage, .. } => self.set_stage(Some(*stage)),
            Event::StageFinished { stage, took, .. } => self
                .realignment
                .stage_duration
                .with_label_values(&[stage.as_str()])
                .observe(took.as_secs_f64()),
            Event::Progress { ratio, .. } => self.realignment.progress.set(ratio.clamp(0.0, 1.0)),
            Event::DataRead {
                refused, not_read, ..
            } => {
                let data = &self.realignment;
                data.refused_rows.set(gauge_value(*refused));
                data.unread_files.set(gauge_value(*not_read));
            }
            Event::Triaged {
                invert,
                punish,
                retain,
                ..
            } => {
                self.record_triage(*invert, *punish, *retain);
            }
            Event::TrainLoss { parts, .. } => self.record_losses(parts),
            Event::Gated { measured, .. } => self.record_gate(measured),
            Event::RealignmentFinished {
                outcome, trigger, ..
            } => {
                self.realignment
                    .realignments
                    .with_label_values(&[outcome.as_str(), trigger.map_or("", Trigger::as_str)])
                    .inc();
                self.set_stage(None);
                if *outcome == Outcome::Succeeded {
                    self.realignment.progress.set(1.0);
                }
            }
            Event::SwapPublished {
                to,
                policy_revision,
                took,
                ..
            } => {
                self.swap.swaps.with_label_values(&["ok"]).inc();
                self.swap.swap_duration.observe(took.as_secs_f64());
                let revision = policy_revision.clone().unwrap_or_default();
                // A generation has one label, also if other policies led to it before.
                self.swap.generation_info.remove(to);
                self.swap.generation_info.insert([to.clone(), revision]);
            }
            Event::SwapFailed { .. } => self.swap.swaps.with_label_values(&["failed"]).inc(),
            Event::GenerationRetired { generation } => self.swap.generation_info.remove(generation),
            Event::Collected {
                removed,
                adapters_bytes,
            } => self.record_collected(removed, *adapters_bytes),
            Event::Examined(examined) => self.record_exam(examined),
            Event::StoreSeen(seen) => self.shared.set(seen),
            Event::FleetSeen(seen) => self.targets.set(seen),
            Event::FleetAnswered(answer) => self.targets.answered(answer),
            Event::FleetJudged(judged) => self.targets.judged(judged),
            Event::ViolationsFound(rules) => {
                for rule in rules {
                    self.compliance.violations.count(rule);
                }
            }
            Event::RequestFinished(request) => self.record_request(request),
            Event::ConnectionEvicted { listener, reason } => self
                .serving
                .evicted
                .with_label_values(&[listener.as_str(), reason.as_str()])
                .inc(),
            Event::RequestRefused { reason } => self
                .serving
                .refused
                .with_label_values(&[reason.as_str()])
                .inc(),
            Event::SchemaViolated { .. } => self.serving.invalid_answers.inc(),
            Event::ComplianceJudged(judged) => self.record_judged(judged),
            Event::ComplianceDropped => self.compliance.dropped.inc(),
            Event::EngineStats(snapshot) => self.record_engine(snapshot),
            Event::Leases(counts) => self.record_leases(*counts),
        }
    }

    /// Sets the generation that serves at startup, before any swap.
    pub(crate) fn set_initial_generation(&self, generation: &str, policy_revision: Option<&str>) {
        let revision = policy_revision.unwrap_or_default().to_string();
        self.swap
            .generation_info
            .insert([generation.to_string(), revision]);
    }

    /// Sets the rules that judge answers; only these have series.
    pub(crate) fn set_rules(&self, rules: BTreeSet<RuleLabels>) {
        self.compliance.violations.set(rules, self.judged());
    }

    /// Answers that were judged.
    fn judged(&self) -> u64 {
        let responses = &self.compliance.responses;
        let of = |verdict| responses.with_label_values(&[verdict]).get();
        of("complies") + of("violates")
    }

    /// Every active rule with the number of judged answers that violate it.
    pub(crate) fn violations(&self) -> Vec<RuleCount> {
        let judged = self.judged();
        let counts = self.compliance.violations.counts();
        counts
            .into_iter()
            .map(|(rule, count, since)| RuleCount {
                policy: rule.policy,
                rule: rule.rule,
                severity: rule.severity,
                count,
                judged: judged.saturating_sub(since),
            })
            .collect()
    }

    /// Sets whether the generation that an operator pinned does not serve.
    pub(crate) fn set_pin_lost(&self, lost: bool) {
        self.swap.pin_lost.set(i64::from(lost));
    }

    /// Sets whether what serves is aligned to the active policies.
    pub(crate) fn set_alignment(&self, state: AlignmentState) {
        for other in AlignmentState::ALL {
            self.realignment
                .alignment_state
                .with_label_values(&[other.as_str()])
                .set(i64::from(*other == state));
        }
        let mut since = self.gap_since();
        if state == AlignmentState::Aligned {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
    }

    /// How long the current generation has not been aligned to the active policies, in seconds; 0
    /// while it is.
    pub(crate) fn gap_open_seconds(&self) -> f64 {
        self.gap_since()
            .map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// Sets the total number of spans that did not reach the collector.
    pub(crate) fn set_spans_dropped(&self, total: u64) {
        self.compliance.spans_dropped.advance_to(total);
    }

    fn gap_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.gap_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn record_judged(&self, judged: &Judged) {
        let verdict = if judged.complies {
            "complies"
        } else {
            "violates"
        };
        let compliance = &self.compliance;
        compliance.responses.with_label_values(&[verdict]).inc();
        compliance.lag.observe(judged.lag.as_secs_f64());
        for rule in &judged.violations {
            compliance.violations.count(rule);
        }
    }

    fn set_stage(&self, now: Option<Stage>) {
        for stage in Stage::ALL {
            let value = i64::from(now == Some(*stage));
            self.realignment
                .stage
                .with_label_values(&[stage.as_str()])
                .set(value);
        }
    }

    fn record_triage(&self, invert: usize, punish: usize, retain: usize) {
        for (category, count) in [("invert", invert), ("punish", punish), ("retain", retain)] {
            self.realignment
                .triage_pairs
                .with_label_values(&[category])
                .set(gauge_value(count));
        }
        let all = invert + punish + retain;
        let gap = if all == 0 {
            0.0
        } else {
            (invert + punish) as f64 / all as f64
        };
        self.realignment.alignment_gap.set(gap);
    }

    fn record_losses(&self, parts: &[(LossPart, f64)]) {
        for (part, value) in parts {
            self.realignment
                .train_loss
                .with_label_values(&[part.as_str()])
                .set(*value);
        }
    }

    fn record_gate(&self, measured: &GateMeasured) {
        let roles = [
            ("current", measured.agreement_current),
            ("candidate", measured.agreement_candidate),
        ];
        for (role, ratio) in roles {
            self.realignment
                .gate_agreement
                .with_label_values(&[role])
                .set(ratio);
        }
        for (check, delta) in &measured.capability {
            self.realignment
                .gate_capability
                .with_label_values(&[check])
                .set(*delta);
        }
    }

    fn record_collected(&self, removed: &[(&'static str, u64)], adapters_bytes: u64) {
        for (kind, count) in removed {
            self.swap
                .collected
                .with_label_values(&[kind])
                .inc_by(*count);
        }
        let bytes = i64::try_from(adapters_bytes).unwrap_or(i64::MAX);
        self.swap.adapters_bytes.set(bytes);
    }

    /// A role's series are replaced as a whole: rules that are gone leave none behind.
    fn record_exam(&self, examined: &Examined) {
        let role = examined.role.as_str();
        let mut series = self.exam_series();
        let gauges = &self.realignment.policy_compliance;
        for (policy, rule) in series.remove(role).unwrap_or_default() {
            if let Err(error) = gauges.remove_label_values(&[&policy, &rule, role]) {
                tracing::debug!(%error, policy, rule, "an outdated series did not exist");
            }
        }
        let mut present = Vec::new();
        for (policy, rule, ratio) in &examined.compliance {
            gauges
                .with_label_values(&[policy.as_str(), rule.as_str(), role])
                .set(*ratio);
            present.push((policy.clone(), rule.clone()));
        }
        series.insert(role, present);
        if let Some(diverted) = examined.diverted {
            self.realignment
                .control_diverted
                .with_label_values(&[role])
                .set(diverted);
        }
    }

    fn exam_series(&self) -> MutexGuard<'_, ExamSeries> {
        self.exam_series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn record_request(&self, request: &RequestFinished) {
        let status = request.status.to_string();
        self.serving
            .requests
            .with_label_values(&[request.route, status.as_str()])
            .inc();
        self.serving
            .request_duration
            .observe(request.duration.as_secs_f64());
        if let Some(first) = request.time_to_first_token {
            self.serving
                .time_to_first_token
                .observe(first.as_secs_f64());
        }
        for gap in &request.inter_token {
            self.serving.inter_token_latency.observe(gap.as_secs_f64());
        }
        self.serving
            .prompt_tokens
            .inc_by(request.prompt_tokens as u64);
        self.serving
            .generation_tokens
            .inc_by(request.completion_tokens as u64);
    }

    fn record_engine(&self, engine: &EngineSnapshot) {
        let serving = &self.serving;
        serving.requests_running.set(gauge_value(engine.running));
        serving.requests_waiting.set(gauge_value(engine.waiting));
        serving.kv_cache_usage.set(engine.kv_cache_usage);
        for (counter, total) in [
            (&serving.prefix_queries, engine.prefix_queries),
            (&serving.prefix_hits, engine.prefix_hits),
            (&serving.preemptions, engine.preemptions),
            (&serving.drafted, engine.drafted),
            (&serving.accepted, engine.accepted),
            (&serving.nonfinite, engine.nonfinite),
        ] {
            counter.advance_to(total);
        }
    }

    fn record_leases(&self, counts: LeaseCounts) {
        let roles = [
            ("current", counts.current),
            ("previous", counts.previous),
            ("retired", counts.retired),
            ("base", counts.base),
        ];
        for (role, count) in roles {
            self.swap
                .leases
                .with_label_values(&[role])
                .set(gauge_value(count));
        }
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
