//! The trait that all engines implement, whatever computes their logits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use realign_core::supervision::Vital;

use crate::adapter::generation::{Generation, GenerationId};
use crate::health::Health;
use crate::merged::PrepareError;
use crate::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};

/// A running engine, shared by all its callers. [`Engine::shutdown`] ends it.
pub type EngineHandle = Arc<dyn Engine>;

/// Runs sequences of many generations concurrently.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Queues one sequence. Does not block.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing is queued then.
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError>;

    /// Makes the engine ready to serve a generation at once, and probes it: it computes a few tokens,
    /// and all their logits must be finite. Everything that is activated comes through here. An
    /// engine that merges adapters builds a copy of the weights first, which takes seconds; while
    /// there is no room for the copy, `wait` is told how long the caller has waited and says whether
    /// to keep waiting.
    ///
    /// # Errors
    /// [`PrepareError`]; what served before still does.
    fn prepare(
        &self,
        generation: &Arc<Generation>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError>;

    /// Which generations compute numbers, and who is told when one does not.
    fn health(&self) -> &Arc<Health>;

    /// Says which generation serves, after the pointer store. What only other generations need may
    /// be freed once no sequence uses it.
    fn serve(&self, _generation: &GenerationId) {}

    /// Says that a generation that was prepared will not serve.
    fn release(&self, _generation: &GenerationId) {}

    /// A snapshot of the load and of the totals since the start.
    fn stats(&self) -> EngineStats;

    /// Whether any sequence is running or waiting. Training yields while there is one.
    fn is_busy(&self) -> bool;

    /// The signs of life of the thread that computes all sequences; `None` if there is no such
    /// thread.
    fn vital(&self) -> Option<Arc<Vital>> {
        None
    }

    /// Longest prompt plus completion, in tokens.
    fn max_model_len(&self) -> usize;

    /// Ends the engine after the step it is in and waits for its thread. Sequences still in it
    /// fail with a reason; drain first if they should finish.
    fn shutdown(&self);
}
