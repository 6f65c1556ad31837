//! The [`Engine`] that queues sequences on copies of the weights.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Builder, Copies, PrepareError};
use crate::adapter::generation::{Generation, GenerationId};
use crate::admission::Admission;
use crate::driver::Driver;
use crate::engine::Engine;
use crate::health::Health;
use crate::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};

/// How long a shutdown waits for running sequences to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// An engine with a copy of the weights for each generation.
#[derive(Debug)]
pub(crate) struct MergedEngine {
    admission: Admission,
    copies: Arc<Copies>,
}

impl MergedEngine {
    pub(crate) fn new(builder: Box<dyn Builder>, admission: Admission, copies: usize) -> Self {
        let (tokenizer, shared) = (admission.tokenizer.clone(), admission.shared.clone());
        Self {
            copies: Arc::new(Copies::new(builder, tokenizer, shared, copies)),
            admission,
        }
    }
}

impl Engine for MergedEngine {
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        let generation = request.generation.clone();
        let max_tokens = request.sampling.max_tokens;
        let admission = &self.admission;
        admission.submit(request, |sequence| {
            self.copies.submit(&generation, || {
                let (tokenizer, shared) = (admission.tokenizer.clone(), admission.shared.clone());
                Driver::new(sequence, max_tokens, tokenizer, shared)
            })
        })
    }

    fn prepare(
        &self,
        generation: &Arc<Generation>,
        wait: &dyn Fn(Duration) -> bool,
    ) -> Result<(), PrepareError> {
        self.admission.shared.health.check(&generation.id)?;
        self.copies.prepare(generation, wait)
    }

    fn health(&self) -> &Arc<Health> {
        &self.admission.shared.health
    }

    fn serve(&self, generation: &GenerationId) {
        self.copies.serve(generation);
    }

    fn release(&self, generation: &GenerationId) {
        self.copies.release(generation);
    }

    fn stats(&self) -> EngineStats {
        self.admission.stats()
    }

    fn is_busy(&self) -> bool {
        self.admission.is_busy()
    }

    fn max_model_len(&self) -> usize {
        self.admission.max_model_len
    }

    fn shutdown(&self) {
        let stopping = &self.admission.shared.stopping;
        stopping.store(true, Ordering::Release);
        self.copies.stop();
        let until = Instant::now() + SHUTDOWN_LIMIT;
        while self.is_busy() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}
