//! The slow twin as a backend, so that tests can run everything on it.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use realign_model::error::Result as ModelResult;
use realign_model::host_memory::{Headroom, headroom};
use realign_model::memory::{LearningBytes, Training};
use realign_model::{
    BLOCK_TOKENS, Backend, Decoder, Executor, ExecutorOptions, KvType, LearningPasses, LoraWeights,
    ModelFiles, ModelSpec, PassOptions, Recompute, Staged, TimeSlices,
};

use crate::Reference;
use crate::executor::ReferenceExecutor;
use crate::memory::activations;
use crate::ops::Plain;
use crate::passes::TensorPasses;
use crate::stepwise::head_rows;

const FLOAT: usize = size_of::<f32>();

/// A model's weights in f32.
///
/// # Errors
/// If a file cannot be read, lacks a tensor or has one of another shape.
pub fn load(files: &ModelFiles) -> ModelResult<Reference> {
    let decoder = files.load(&Device::Cpu, |stored| stored.dense())?;
    Ok(Reference::of(decoder))
}

impl Reference {
    /// The reference of these weights, which are f32 on the CPU.
    pub fn of(decoder: Decoder<Tensor>) -> Self {
        Self {
            decoder,
            ops: &Plain,
        }
    }
}

/// A model that is computed by candle's primitives.
#[derive(Clone, Debug)]
pub struct ReferenceBackend {
    model: Arc<Reference>,
    slices: Arc<TimeSlices>,
}

impl ReferenceBackend {
    /// Computes with this model.
    pub fn new(model: Reference) -> Self {
        Self {
            model: Arc::new(model),
            slices: Arc::default(),
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Reference> {
        &self.model
    }

    fn bytes(&self) -> usize {
        let maps = self.model.decoder.weights();
        let tables = [&self.model.decoder.embedding, &self.model.decoder.head];
        let tables = if self.model.decoder.spec.tied_embeddings {
            &tables[..1]
        } else {
            &tables[..]
        };
        let all = maps.chain(tables.iter().copied());
        all.map(|weight| FLOAT * weight.elem_count()).sum()
    }
}

impl Backend for ReferenceBackend {
    fn spec(&self) -> &ModelSpec {
        &self.model.decoder.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn stage(&self, adapter: &LoraWeights) -> Result<Staged> {
        Ok(Staged::new(adapter.detached()))
    }

    fn executor(&self, options: ExecutorOptions) -> Result<Box<dyn Executor>> {
        let executor = ReferenceExecutor::new(self.model.clone(), options.blocks);
        Ok(Box::new(executor))
    }

    fn passes(&self, options: PassOptions) -> Result<Box<dyn LearningPasses>> {
        let recompute = options.recompute == Recompute::On;
        Ok(Box::new(TensorPasses::new(self.model.clone(), recompute)))
    }

    fn bytes_per_block(&self, _: KvType) -> usize {
        BLOCK_TOKENS * size_of::<u32>()
    }

    fn bytes_per_token(&self) -> usize {
        let maps = self.model.decoder.weights();
        let all = maps.chain([&self.model.decoder.head]);
        all.map(|weight| FLOAT * weight.elem_count()).sum()
    }

    fn learning_bytes(&self, t: &Training) -> LearningBytes {
        let spec = self.spec();
        let (hidden, inner) = (spec.hidden_size, spec.inner_width());
        let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        let per_row = 2 * hidden
            + heads * (1 + usize::from(spec.variant.qk_norm))
            + spec.heads * spec.head_dim
            + 2 * inner
            + 2 * hidden * usize::from(spec.variant.output_norms);
        // Automatic differentiation keeps every intermediate result.
        let layer = FLOAT * t.rows * 3 * per_row;
        let working = FLOAT * t.rows * 4 * (inner + hidden + heads);
        let rows = if t.recompute {
            t.rows.min(head_rows(spec.vocab_size, false))
        } else {
            t.rows
        };
        LearningBytes {
            weights: self.bytes(),
            activations: activations(spec, layer, t) + working,
            logits: FLOAT * 2 * 2 * rows * spec.vocab_size,
        }
    }

    fn training_weight_bytes(&self) -> usize {
        self.bytes()
    }

    fn headroom(&self) -> Option<Headroom> {
        headroom()
    }

    fn time_slices(&self) -> &Arc<TimeSlices> {
        &self.slices
    }

    fn yields_to_steps(&self) -> bool {
        false
    }
}
