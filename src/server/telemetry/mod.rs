//! Logs, metrics and traces, all derived from one [`Event`].

#![expect(
    clippy::disallowed_types,
    reason = "the one place that declares metrics"
)]

mod answers;
pub mod compliance;
pub mod event;
mod families;
mod logging;
pub mod metrics;
pub mod names;
pub mod schemas;
#[cfg(test)]
mod tests;
pub mod timeline;
pub mod traces;
pub mod traffic;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use answers::IN_PROCESS;
pub(crate) use answers::is_client_route;
pub use compliance::Compliance;
pub use event::{
    Event, Judged, LeaseCounts, LossPart, Outcome, Refusal, RequestFinished, RuleCount, RuleLabels,
    Stage,
};
pub use metrics::Metrics;

use realign_core::clock::unix_seconds;
use timeline::Timelines;
use traces::Exporter;
use traffic::Traffic;

/// How many events a subscriber may fall behind before it misses some. A run of a thousand training
/// steps emits about two thousand events, and a subscriber reads each within milliseconds.
const SUBSCRIBER_BACKLOG: usize = 1024;

/// Emits events to the log, the metrics, the trace exporter and subscribers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    metrics: Arc<Metrics>,
    events: broadcast::Sender<Arc<Event>>,
    traffic: Arc<Traffic>,
    timelines: Arc<Timelines>,
    exporter: Option<Arc<Exporter>>,
}

impl Telemetry {
    /// Creates an instance with its own metrics registry.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let (events, _) = broadcast::channel(SUBSCRIBER_BACKLOG);
        Ok(Self {
            metrics: Arc::new(Metrics::new()?),
            events,
            traffic: Arc::default(),
            timelines: Arc::default(),
            exporter: None,
        })
    }

    /// Also sends traces, through `exporter`.
    pub(crate) fn with_exporter(mut self, exporter: Exporter) -> Self {
        self.exporter = Some(Arc::new(exporter));
        self
    }

    /// Logs an event, applies it to the metrics and, unless it is a per-request event, sends it to
    /// subscribers. Never blocks.
    pub(crate) fn emit(&self, event: Event) {
        logging::log(&event);
        self.metrics.record(&event);
        self.traffic.record(&event, unix_seconds());
        self.timelines.record(&event, unix_seconds());
        if let Some(exporter) = &self.exporter {
            exporter.record(&event);
        }
        if !event.is_frequent() {
            // An error only means that there is no subscriber.
            let _no_subscriber = self.events.send(Arc::new(event));
        }
    }

    /// Every policy, realignment and swap event from now on, for the admin event stream.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// The metrics, including the current number of dropped spans.
    pub(crate) fn metrics(&self) -> &Metrics {
        if let Some(exporter) = &self.exporter {
            self.metrics.set_spans_dropped(exporter.dropped());
        }
        &self.metrics
    }

    /// Requests and judgements of the last two hours.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Stages and losses of recent realignments.
    pub(crate) fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    /// The trace exporter, if traces are enabled.
    pub(crate) fn exporter(&self) -> Option<&Exporter> {
        self.exporter.as_deref()
    }
}
