//! Events become log lines and metrics together; see [`Event`].

pub mod event;
mod families;
mod logging;
pub mod metrics;
pub mod names;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use event::{Event, LeaseCounts, LossPart, Outcome, RequestFinished, Stage};
pub use metrics::Metrics;

/// Events a slow subscriber may fall behind before it misses some. A run of a thousand training
/// steps emits about two thousand, and a subscriber reads them within milliseconds.
const SUBSCRIBER_BACKLOG: usize = 1024;

/// The one door for everything worth knowing. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    events: broadcast::Sender<Arc<Event>>,
}

impl Telemetry {
    /// A telemetry with its own metrics registry.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn new() -> Result<Self, prometheus::Error> {
        let (events, _) = broadcast::channel(SUBSCRIBER_BACKLOG);
        Ok(Self {
            metrics: Arc::new(Metrics::new()?),
            events,
        })
    }

    /// Logs an event, applies it to the metrics and, if it is no per-request event, hands it to
    /// subscribers. Never blocks.
    pub fn emit(&self, event: Event) {
        logging::log(&event);
        self.metrics.record(&event);
        let frequent = matches!(
            event,
            Event::RequestFinished(_) | Event::EngineStats(_) | Event::Leases(_)
        );
        if !frequent {
            // An error means that nobody listens, which is the usual case.
            let _ = self.events.send(Arc::new(event));
        }
    }

    /// Every policy, realignment and swap event from now on, for the admin event stream.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
