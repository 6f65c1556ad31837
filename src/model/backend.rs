//! What computes. A [`ComputeDevice`] is opened once; it loads a model into a [`Backend`], which
//! serves and trains it. Nothing above asks what kind of device that is.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result, bail};

use super::error::Result as ModelResult;
use super::host_memory::Headroom;
use super::learning::{LearningPasses, PassOptions, Precision};
use super::lora::LoraWeights;
use super::memory::{Budget, LearningBytes, Plan, Stored, Training};
use super::source::ModelFiles;
use super::spec::ModelSpec;
use super::step::{Outputs, Step};
use super::time_slices::TimeSlices;

/// A device that was opened.
pub trait ComputeDevice: fmt::Debug + Send + Sync {
    /// Loads a model's weights, and checks every shape against its configuration. Its engine and its
    /// learning passes divide the host's time as `slices` say.
    ///
    /// # Errors
    /// [`ModelError`](super::ModelError): files that cannot be read or do not fit together, or a
    /// device that has no room for them.
    fn load(&self, files: &ModelFiles, slices: Arc<TimeSlices>) -> ModelResult<Arc<dyn Backend>>;

    /// A model of these shapes with random weights, in integers of a GGUF type if there is one: what
    /// benchmarks of speed run, which does not depend on the values.
    ///
    /// # Errors
    /// If it does not fit the device, or a type has no integers.
    fn random(&self, spec: &ModelSpec, integers: Option<GgmlDType>) -> Result<Arc<dyn Backend>>;

    /// Bytes that are free in a memory of the device's own, where [`ComputeDevice::plan`] says what
    /// is needed; `None` for the host's, which needs no plan.
    fn free_bytes(&self) -> Option<usize> {
        None
    }

    /// What the device keeps of a GGUF file's weights; `None` for other files, whose weights take
    /// what [`ComputeDevice::plan`] assumes.
    ///
    /// # Errors
    /// If the header cannot be read.
    fn stored(&self, _files: &ModelFiles) -> ModelResult<Option<Stored>> {
        Ok(None)
    }

    /// What a server needs of the device's own memory, part by part.
    fn plan(&self, _spec: &ModelSpec, _budget: &Budget) -> Plan {
        Plan { parts: Vec::new() }
    }

    /// What the device reaches at best, measured on it; `None` where it is not measured.
    ///
    /// # Errors
    /// If it fails.
    fn ceilings(&self) -> Result<Option<Ceilings>> {
        Ok(None)
    }
}

/// What a device reaches at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes that a large copy reads and writes per second.
    pub copied: f64,
    /// Operations of a large 16-bit product per second.
    pub multiplied: f64,
}

/// A loaded model on a device.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Shapes and constants of the model.
    fn spec(&self) -> &ModelSpec;

    /// Where it computes: adapters under training, and those that passes read, are tensors there.
    fn device(&self) -> &Device;

    /// Puts an adapter into the form in which steps read it.
    ///
    /// # Errors
    /// If a factor is not a matrix, or the device refuses.
    fn stage(&self, adapter: &LoraWeights) -> Result<Staged>;

    /// What serves.
    ///
    /// # Errors
    /// If a thread cannot be started, or the cache does not fit the memory.
    fn executor(&self, options: ExecutorOptions) -> Result<Box<dyn Executor>>;

    /// What trains and scores.
    ///
    /// # Errors
    /// If the weights do not allow it.
    fn passes(&self, options: PassOptions) -> Result<Box<dyn LearningPasses>>;

    /// Bytes of keys and values of one block of an executor's cache, whose elements are of type `kv`
    /// where the device has a choice.
    fn bytes_per_block(&self, kv: KvType) -> usize;

    /// Bytes of weights that one decoded token reads: the layers' and the head's.
    fn bytes_per_token(&self) -> usize;

    /// Bytes that training takes in this form of the weights.
    fn learning_bytes(&self, training: &Training) -> LearningBytes;

    /// Bytes of the copy of the weights that training needs; 0 where it reads those that serve.
    fn training_weight_bytes(&self) -> usize {
        0
    }

    /// The memory that may still be taken where it computes; `None` where the system does not tell.
    fn headroom(&self) -> Option<Headroom>;

    /// How the engine and learning passes divide the host's time.
    fn time_slices(&self) -> &Arc<TimeSlices>;

    /// Whether learning passes yield to each step of the engine by themselves. Where they do not,
    /// learning waits between batches while requests run.
    fn yields_to_steps(&self) -> bool;
}

/// Sizes of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// Blocks of its cache, each of [`BLOCK_TOKENS`](super::BLOCK_TOKENS) tokens.
    pub blocks: usize,
    /// Threads, where it computes with the host's.
    pub threads: usize,
    /// Whether a device may record steps to run them again with one call.
    pub record: bool,
    /// Elements of its cache, where the device has a choice.
    pub kv: KvType,
    /// What it multiplies with weights in bfloat16.
    pub precision: Precision,
}

/// What keys and values are stored as on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits.
    F16,
    /// 8 bits, and a scale for each head's columns of a token; queries are rounded to 8 bits too, and weights to 16.
    Q8,
}

impl KvType {
    /// Every type, by its name in the configuration.
    pub const ALL: [(&'static str, Self); 3] =
        [("f32", Self::F32), ("f16", Self::F16), ("q8", Self::Q8)];

    /// Bytes of an element, without scales.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8 => 1,
        }
    }
}

/// Runs forward passes of one model. Owns the cache of keys and values, and all buffers.
pub trait Executor: Send {
    /// Logits per output.
    fn vocab_size(&self) -> usize;

    /// Whether it draws tokens itself, where a step's outputs say how.
    fn draws(&self) -> bool {
        false
    }

    /// Runs a step: writes its keys and values where its sequences keep them, and the logits of
    /// `step.outputs`, in that order. A row's result must not depend on the other sequences.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, or the device fails.
    fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()>;

    /// Shows the base model's residual stream where it enters each of `layers` (ascending; the number
    /// of layers itself is what leaves the last one), as (rows, hidden). Nothing above the last of
    /// them is computed.
    ///
    /// # Errors
    /// If the step does not fit the cache or the model, or `layers` is not ascending.
    fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        show: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()>;
}

/// An adapter in the form in which a backend's steps read it. Cheap to clone.
#[derive(Clone)]
pub struct Staged(Arc<dyn Any + Send + Sync>);

impl Staged {
    /// Wraps a backend's own form.
    pub fn new<T: Any + Send + Sync>(form: T) -> Self {
        Self(Arc::new(form))
    }

    /// The backend's own form.
    ///
    /// # Errors
    /// If another backend staged it.
    pub fn get<T: Any + Send + Sync>(&self) -> Result<Arc<T>> {
        match self.0.clone().downcast() {
            Ok(form) => Ok(form),
            Err(_) => bail!("the adapter was staged by another backend"),
        }
    }

    /// Whether both are the same staging of the same adapter.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Staged")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_that_was_staged_is_found() {
        let staged = Staged::new(7u32);
        assert_eq!(*staged.get::<u32>().unwrap(), 7);
        assert!(staged.get::<f32>().is_err());
        assert!(staged.is(&staged.clone()) && !staged.is(&Staged::new(7u32)));
    }
}
