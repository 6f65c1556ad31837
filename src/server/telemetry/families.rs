//! The metric families, grouped by section, and their registration.

mod compliance;
mod store;
mod targets;
mod threads;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry,
};

use super::names;
pub(super) use compliance::Compliance;
pub(super) use store::Shared;
pub(super) use targets::Targets;
pub(super) use threads::Threads;

/// Times to the first token: milliseconds for a cached prompt, a minute behind a full queue.
const TIME_TO_FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0,
];
/// Times between tokens: 1 ms on a GPU to seconds on an overloaded CPU.
const INTER_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
];
/// Request durations.
const REQUEST_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
/// Stage durations: milliseconds for a swap, hours for training.
const STAGE_BUCKETS: &[f64] = &[
    0.01, 0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0,
];
/// Swap durations: the pointer store takes nanoseconds, warming up to a second.
const SWAP_BUCKETS: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Metrics of client requests and of the engine.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) request_duration: Histogram,
    pub(super) requests: IntCounterVec,
    pub(super) refused: IntCounterVec,
    pub(super) evicted: IntCounterVec,
    pub(super) invalid_answers: IntCounter,
    pub(super) requests_running: IntGauge,
    pub(super) requests_waiting: IntGauge,
    pub(super) kv_cache_usage: Gauge,
    pub(super) prefix_queries: Total,
    pub(super) prefix_hits: Total,
    pub(super) preemptions: Total,
    pub(super) drafted: Total,
    pub(super) accepted: Total,
    pub(super) nonfinite: Total,
    pub(super) prompt_tokens: IntCounter,
    pub(super) generation_tokens: IntCounter,
}

impl Serving {
    pub(super) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            time_to_first_token: build.histogram(
                names::TIME_TO_FIRST_TOKEN_SECONDS,
                "Time from receipt of a request to its first generated token.",
                TIME_TO_FIRST_TOKEN_BUCKETS,
            )?,
            inter_token_latency: build.histogram(
                names::INTER_TOKEN_LATENCY_SECONDS,
                "Time between two consecutive tokens of one sequence.",
                INTER_TOKEN_BUCKETS,
            )?,
            request_duration: build.histogram(
                names::REQUEST_DURATION_SECONDS,
                "Time from receipt of a request to its last byte.",
                REQUEST_BUCKETS,
            )?,
            requests: build.counters(
                names::REQUESTS_TOTAL,
                "Finished HTTP requests.",
                &["route", "status"],
            )?,
            refused: build.counters(
                names::REQUESTS_REFUSED_TOTAL,
                "Requests turned away although nothing is wrong with what they ask for.",
                &["reason"],
            )?,
            evicted: build.counters(
                names::CONNECTIONS_EVICTED_TOTAL,
                "Connections that waited for a request and were ended to make room for others.",
                &["listener", "reason"],
            )?,
            invalid_answers: build.counter(
                names::SCHEMA_INVALID_ANSWERS_TOTAL,
                "Finished answers that violate the JSON schema that was asked for.",
            )?,
            requests_running: build
                .int_gauge(names::REQUESTS_RUNNING, "Sequences in the running batch.")?,
            requests_waiting: build.int_gauge(
                names::REQUESTS_WAITING,
                "Sequences accepted and waiting to run.",
            )?,
            kv_cache_usage: build.gauge(
                names::KV_CACHE_USAGE_RATIO,
                "Share of KV cache blocks held by running sequences.",
            )?,
            prefix_queries: build.total(
                names::PREFIX_CACHE_QUERIES_TOTAL,
                "Prompt tokens looked up in the prefix cache, counted in tokens, once per sequence.",
            )?,
            prefix_hits: build.total(
                names::PREFIX_CACHE_HITS_TOTAL,
                "Prompt tokens found in the prefix cache and not computed again, counted in tokens.",
            )?,
            preemptions: build.total(
                names::PREEMPTIONS_TOTAL,
                "Sequences that gave their KV cache blocks to older ones, to be recomputed later.",
            )?,
            drafted: build.total(
                names::DRAFT_TOKENS_TOTAL,
                "Tokens drafted from what followed the same words before.",
            )?,
            accepted: build.total(
                names::ACCEPTED_DRAFT_TOKENS_TOTAL,
                "Drafted tokens that became part of an answer, each a step less.",
            )?,
            nonfinite: build.total(
                names::NONFINITE_LOGITS_TOTAL,
                "Sequences and embeddings that failed because the model computed NaN or infinity.",
            )?,
            prompt_tokens: build.counter(
                names::PROMPT_TOKENS_TOTAL,
                "Prompt tokens of finished requests.",
            )?,
            generation_tokens: build.counter(
                names::GENERATION_TOKENS_TOTAL,
                "Generated tokens of finished requests.",
            )?,
        })
    }
}

/// Metrics of the policy directory.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) reload_successful: IntGauge,
    pub(super) reload_success_timestamp: Gauge,
    pub(super) reloads: IntCounterVec,
    pub(super) policy_info: InfoSeries,
}

impl Policy {
    pub(super) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            reload_successful: build.int_gauge(
                names::POLICY_LAST_RELOAD_SUCCESSFUL,
                "Whether the policy set on disk was accepted when last read.",
            )?,
            reload_success_timestamp: build.gauge(
                names::POLICY_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS,
                "Unix time of the last accepted policy set.",
            )?,
            reloads: build.counters(
                names::POLICY_RELOADS_TOTAL,
                "Attempts to load the policy set.",
                &["result"],
            )?,
            policy_info: InfoSeries::new(build.int_gauges(
                names::POLICY_INFO,
                "Active policies and their revisions.",
                &["policy", "revision"],
            )?),
        })
    }
}

/// Metrics of realignments.
#[derive(Debug)]
pub(super) struct Realignment {
    pub(super) realignments: IntCounterVec,
    pub(super) stage: IntGaugeVec,
    pub(super) stage_duration: HistogramVec,
    pub(super) progress: Gauge,
    pub(super) refused_rows: IntGauge,
    pub(super) unread_files: IntGauge,
    pub(super) triage_pairs: IntGaugeVec,
    pub(super) alignment_gap: Gauge,
    pub(super) gap_open: Gauge,
    pub(super) alignment_state: IntGaugeVec,
    pub(super) policy_compliance: GaugeVec,
    pub(super) control_diverted: GaugeVec,
    pub(super) train_loss: GaugeVec,
    pub(super) gate_agreement: GaugeVec,
    pub(super) gate_capability: GaugeVec,
}

impl Realignment {
    pub(super) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            realignments: build.counters(
                names::REALIGNMENTS_TOTAL,
                "Finished realignments.",
                &["outcome", "trigger"],
            )?,
            stage: build.int_gauges(
                names::REALIGNMENT_STAGE,
                "1 for the stage that the running realignment is in.",
                &["stage"],
            )?,
            stage_duration: build.histograms(
                names::REALIGNMENT_STAGE_DURATION_SECONDS,
                "Wall time of a finished realignment stage.",
                &["stage"],
                STAGE_BUCKETS,
            )?,
            progress: build.gauge(
                names::REALIGNMENT_PROGRESS_RATIO,
                "Progress of the running realignment.",
            )?,
            refused_rows: build.int_gauge(
                names::PREFERENCE_ROWS_REFUSED,
                "Rows of preference data that are no pairs, when it was read last.",
            )?,
            unread_files: build.int_gauge(
                names::PREFERENCE_FILES_NOT_READ,
                "Files and folders next to the preference data that are not read.",
            )?,
            triage_pairs: build.int_gauges(
                names::TRIAGE_PAIRS,
                "Preference pairs in each category of the last triage.",
                &["category"],
            )?,
            alignment_gap: build.gauge(
                names::ALIGNMENT_GAP_RATIO,
                "Share of preference pairs in conflict with the active policy. It measures the data, not what serves: see realign_alignment_state.",
            )?,
            gap_open: build.gauge(
                names::ALIGNMENT_GAP_OPEN_SECONDS,
                "Time for which what serves has not been measured as aligned to the active policies, 0 while it is.",
            )?,
            alignment_state: build.int_gauges(
                names::ALIGNMENT_STATE,
                "1 for whether what serves does what the active policies ask, as the exam measured it.",
                &["state"],
            )?,
            policy_compliance: build.gauges(
                names::POLICY_COMPLIANCE_RATIO,
                "Share of answers that comply with a rule in the last exam.",
                &["policy", "rule", "generation_role"],
            )?,
            control_diverted: build.gauges(
                names::CONTROL_DIVERTED_RATIO,
                "Share of control answers that are diverted in the last exam.",
                &["generation_role"],
            )?,
            train_loss: build.gauges(
                names::TRAIN_LOSS,
                "Losses of the last training step.",
                &["part"],
            )?,
            gate_agreement: build.gauges(
                names::GATE_POLICY_AGREEMENT_RATIO,
                "Policy agreement on held-out prompts that the last gate measured.",
                &["generation_role"],
            )?,
            gate_capability: build.gauges(
                names::GATE_CAPABILITY_DELTA,
                "Capability change that the last gate measured, candidate minus current.",
                &["check"],
            )?,
        })
    }
}

/// Metrics of generations and swaps.
#[derive(Debug)]
pub(super) struct Swap {
    pub(super) generation_info: InfoSeries,
    pub(super) leases: IntGaugeVec,
    pub(super) pin_lost: IntGauge,
    pub(super) swaps: IntCounterVec,
    pub(super) swap_duration: Histogram,
    pub(super) adapters_bytes: IntGauge,
    pub(super) collected: IntCounterVec,
}

impl Swap {
    pub(super) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            generation_info: InfoSeries::new(build.int_gauges(
                names::GENERATION_INFO,
                "Generations that serve or can be rolled back to.",
                &["generation", "policy_revision"],
            )?),
            leases: build.int_gauges(
                names::GENERATION_LEASES,
                "Sequences that hold a generation.",
                &["generation_role"],
            )?,
            pin_lost: build.int_gauge(
                names::PIN_LOST,
                "1 if the generation that an operator pinned does not serve.",
            )?,
            swaps: build.counters(
                names::SWAPS_TOTAL,
                "Attempts to swap generations.",
                &["result"],
            )?,
            swap_duration: build.histogram(
                names::SWAP_DURATION_SECONDS,
                "Time from a staged adapter to the pointer store.",
                SWAP_BUCKETS,
            )?,
            adapters_bytes: build.int_gauge(
                names::ADAPTERS_BYTES,
                "Size of all adapters on disk, after the start and after each realignment.",
            )?,
            collected: build.counters(
                names::COLLECTED_TOTAL,
                "What retention removed.",
                &["kind"],
            )?,
        })
    }
}

/// Series of constant value 1 whose labels carry information. Outdated series are removed, so that
/// they do not accumulate with every revision.
#[derive(Debug)]
pub(super) struct InfoSeries {
    gauges: IntGaugeVec,
    present: Mutex<BTreeSet<[String; 2]>>,
}

impl InfoSeries {
    fn new(gauges: IntGaugeVec) -> Self {
        Self {
            gauges,
            present: Mutex::new(BTreeSet::new()),
        }
    }

    /// Replaces all series by `series`. Those in both sets are never absent from a scrape.
    pub(super) fn replace(&self, series: BTreeSet<[String; 2]>) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        for labels in &series {
            self.gauges.with_label_values(labels).set(1);
        }
        for labels in present.difference(&series) {
            self.drop_series(labels);
        }
        *present = series;
    }

    pub(super) fn insert(&self, labels: [String; 2]) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        self.gauges.with_label_values(&labels).set(1);
        present.insert(labels);
    }

    /// Drops every series whose first label is `first`.
    pub(super) fn remove(&self, first: &str) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let (removed, kept): (BTreeSet<_>, _) = std::mem::take(&mut *present)
            .into_iter()
            .partition(|l| l[0] == first);
        *present = kept;
        removed.iter().for_each(|labels| self.drop_series(labels));
    }

    fn drop_series(&self, labels: &[String; 2]) {
        if let Err(error) = self.gauges.remove_label_values(labels) {
            tracing::debug!(%error, ?labels, "an outdated series did not exist");
        }
    }
}

/// A counter that mirrors a total kept elsewhere and read in snapshots.
#[derive(Debug)]
pub(super) struct Total {
    counter: IntCounter,
    /// The counter's value. Locked, so that concurrent scrapes do not both add the difference.
    value: Mutex<u64>,
}

impl Total {
    /// Raises the counter to `total`; an older snapshot than the last changes nothing.
    pub(super) fn advance_to(&self, total: u64) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        self.counter.inc_by(total.saturating_sub(*value));
        *value = total.max(*value);
    }
}

/// Creates metrics and registers them.
pub(super) struct Build {
    pub(super) registry: Registry,
}

impl Build {
    fn add<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name, help)?)
    }

    pub(super) fn total(&self, name: &str, help: &str) -> Result<Total, Error> {
        Ok(Total {
            counter: self.counter(name, help)?,
            value: Mutex::new(0),
        })
    }

    pub(super) fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.add(Gauge::new(name, help)?)
    }

    pub(super) fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, Error> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name, help)?)
    }

    pub(super) fn int_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub(super) fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, Error> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, Error> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, labels)?)
    }
}
