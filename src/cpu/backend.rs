//! The CPU as a backend.

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};
use realign_model::error::Result as ModelResult;
use realign_model::host_memory::{Headroom, headroom};
use realign_model::memory::{LearningBytes, Training};
use realign_model::packing::{Packed, States};
use realign_model::random::{RandomMatrix, random_model};
use realign_model::{
    Backend, ComputeDevice, Decoder, Dropout, Executor, ExecutorOptions, KvType, LearningPasses,
    LoraWeights, Measured, Mlp, ModelFiles, ModelSpec, Outputs, PassOptions, SiteGradients, Slopes,
    Staged, Step, StoredMatrix, TimeSlices, TokenLoss,
};

use super::adapters::PackedAdapter;
use super::executor::{CpuExecutor, kv_shape};
use super::learn::Differentiator;
use super::packed::{Encoding, PackedWeight, Unpacked};
use super::rows::with_floats;
use super::stored::load_cached;
use super::{Layer, Model};

const FLOAT: usize = size_of::<f32>();

/// The CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl ComputeDevice for Cpu {
    fn load(&self, files: &ModelFiles, slices: Arc<TimeSlices>) -> ModelResult<Arc<dyn Backend>> {
        let mut backend = CpuBackend::new(load_cached(files)?.0);
        backend.slices = slices;
        Ok(Arc::new(backend))
    }

    fn random(&self, spec: &ModelSpec, integers: Option<GgmlDType>) -> Result<Arc<dyn Backend>> {
        let matrix = |m: RandomMatrix| match integers {
            Some(kind) => PackedWeight::from_quantized(&m.quantized(kind)?),
            None => PackedWeight::from_dense(&m.floats(DType::F32, &Device::Cpu)?),
        };
        let model = random_model(spec.clone(), &Device::Cpu, matrix)?;
        Ok(Arc::new(CpuBackend::new(model)))
    }
}

/// A model's weights, packed as they are read.
///
/// # Errors
/// If a file cannot be read, lacks a tensor or has one of another shape.
pub fn load(files: &ModelFiles) -> ModelResult<Model> {
    files.load(&Device::Cpu, |stored| packed(&stored))
}

/// The same model packed.
///
/// # Errors
/// If a weight cannot be read.
pub fn pack(model: Decoder<StoredMatrix>) -> Result<Model> {
    model.map(|stored| packed(&stored))
}

pub(crate) fn packed(stored: &StoredMatrix) -> Result<PackedWeight> {
    match stored {
        StoredMatrix::Quantized(q) => PackedWeight::from_quantized(q),
        StoredMatrix::Mapped(blocks) => match Unpacked::new(blocks) {
            Some(unpacked) => {
                let weight = unpacked.into_memory();
                blocks.release();
                Ok(weight)
            }
            None => PackedWeight::from_quantized(&blocks.to_quantized()?),
        },
        StoredMatrix::Floats(floats) => PackedWeight::from_dense(floats),
    }
}

/// A model that is served and trained on the CPU.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    model: Arc<Model>,
    /// Element type of served adapters.
    adapters: DType,
    /// How the engine and learning passes divide the time.
    slices: Arc<TimeSlices>,
    /// For passes that answer requests.
    undivided: Arc<TimeSlices>,
}

impl CpuBackend {
    /// Serves and trains this model, neither of which waits for the other.
    pub fn new(model: Model) -> Self {
        Self {
            adapters: adapter_dtype(&model),
            model: Arc::new(model),
            slices: Arc::default(),
            undivided: Arc::default(),
        }
    }

    /// The packed weights.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

/// Element type of served adapters: f32 along with weights in floats, whose activations are not
/// rounded; f16 along with integers.
fn adapter_dtype(model: &Model) -> DType {
    let mut attention = model.layers.iter().flat_map(|l| l.attention.iter());
    let integers = attention.all(|map| matches!(map.weight().encoding, Encoding::Integer(_)));
    match integers {
        true => DType::F16,
        false => DType::F32,
    }
}

/// Bytes of a layer's weights that one token reads: of experts those of the ones it goes through.
fn bytes_per_token(layer: &Layer) -> usize {
    let maps = layer.maps().map(|map| map.weight().bytes());
    let maps = maps.sum::<usize>();
    match &layer.mlp {
        Mlp::Dense(_) => maps,
        Mlp::Experts(experts) => {
            let all = experts.experts.iter().flatten().map(PackedWeight::bytes);
            let used = all.sum::<usize>() / experts.experts.len().max(1) * experts.used;
            maps + experts.router.bytes() + used
        }
    }
}

impl Backend for CpuBackend {
    fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn stage(&self, adapter: &LoraWeights) -> Result<Staged> {
        Ok(Staged::new(PackedAdapter::new(
            &adapter.sites,
            self.adapters,
        )?))
    }

    fn executor(&self, options: ExecutorOptions) -> Result<Box<dyn Executor>> {
        let (blocks, threads) = (options.blocks, options.threads);
        let executor = CpuExecutor::new(self.model.clone(), blocks, threads, options.kv)?;
        Ok(Box::new(executor.in_precision(options.precision)))
    }

    fn passes(&self, options: PassOptions) -> Result<Box<dyn LearningPasses>> {
        let slices = if options.answering {
            &self.undivided
        } else {
            &self.slices
        };
        let passes = Differentiator::new(self.model.clone(), slices.clone(), options.precision);
        Ok(Box::new(passes))
    }

    fn bytes_per_block(&self, kv: KvType) -> usize {
        kv_shape(&self.model.spec).bytes_per_block(kv)
    }

    fn bytes_per_token(&self) -> usize {
        let layers = self.model.layers.iter().map(bytes_per_token);
        layers.sum::<usize>() + self.model.head.bytes()
    }

    fn learning_bytes(&self, t: &Training) -> LearningBytes {
        let spec = &self.model.spec;
        let (hidden, inner) = (spec.hidden_size, spec.inner_width());
        let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        // Two streams, q k v, attention's output, gate and up; twice the heads where they are
        // normalised, and two outputs where those are.
        let per_row = 2 * hidden
            + heads * (1 + usize::from(spec.variant.qk_norm))
            + spec.heads * spec.head_dim
            + 2 * inner
            + 2 * hidden * usize::from(spec.variant.output_norms);
        // The rows of experts once more, side by side.
        let experts = spec.variant.mixture.as_ref();
        let gathered = experts.map_or(0, |mixture| mixture.used * hidden);
        let working = FLOAT * t.rows * (4 * (inner + hidden + heads) + gathered);
        let chunk = (8 << 20).clamp(
            8 * spec.vocab_size,
            (8 * spec.vocab_size).max(t.rows * spec.vocab_size),
        );
        LearningBytes {
            weights: 0,
            activations: FLOAT * t.rows * t.layers * per_row + working,
            logits: FLOAT * 2 * chunk,
        }
    }

    fn headroom(&self) -> Option<Headroom> {
        headroom()
    }

    fn time_slices(&self) -> &Arc<TimeSlices> {
        &self.slices
    }

    fn yields_to_steps(&self) -> bool {
        true
    }
}

impl Executor for CpuExecutor {
    fn vocab_size(&self) -> usize {
        CpuExecutor::vocab_size(self)
    }

    fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> Result<()> {
        outputs.tokens.clear();
        CpuExecutor::forward(self, step, outputs.logits)
    }

    fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        show: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        CpuExecutor::residuals(self, step, layers, show)
    }
}

impl LearningPasses for Differentiator {
    fn states(&mut self, batch: &Packed, layer: usize) -> Result<Vec<States>> {
        Differentiator::states(self, batch, layer)
    }

    fn hidden(&mut self, batch: &Packed, adapter: Option<&LoraWeights>) -> Result<Tensor> {
        let hidden = Differentiator::hidden(self, batch, adapter)?;
        let shape = (batch.targets().len(), self.model().spec.hidden_size);
        Tensor::from_vec(hidden, shape, &Device::Cpu)
    }

    fn measure(&mut self, measured: Measured, hidden: &Tensor) -> Result<Vec<f32>> {
        let reference = self.reference_rows(measured)?;
        let hidden = hidden.contiguous()?;
        with_floats(&hidden, |hidden| {
            Differentiator::measure(self, measured.losses, hidden, &reference)
        })?
    }

    fn gradients(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        measured: Measured,
        coefficients: &mut (dyn FnMut(&[f32]) -> Vec<f32> + Send),
    ) -> Result<SiteGradients> {
        let reference = self.reference_rows(measured)?;
        let wanted = (measured.losses, reference.as_slice());
        Differentiator::gradients(self, batch, adapter, wanted, coefficients)
    }

    fn slopes(
        &mut self,
        batch: &Packed,
        adapter: &LoraWeights,
        along: &LoraWeights,
    ) -> Result<Slopes> {
        let (values, slopes) = Differentiator::slopes(self, batch, adapter, along)?;
        Ok(Slopes { values, slopes })
    }

    fn drop_out(&mut self, dropout: Dropout) -> Result<()> {
        self.dropout = dropout;
        Ok(())
    }
}

impl Differentiator {
    /// The reference's hidden states with a row for every token, of which those with a KL are filled;
    /// empty if there is none.
    fn reference_rows(&self, measured: Measured) -> Result<Vec<f32>> {
        let Some(reference) = measured.reference else {
            return Ok(Vec::new());
        };
        let (rows, width) = reference.dims2()?;
        let kl = |loss: &&TokenLoss| **loss == TokenLoss::Kl;
        let wanted = measured.losses.iter().filter(kl).count();
        if wanted != rows || width != self.model().spec.hidden_size {
            candle_core::bail!(
                "{wanted} tokens want the reference's hidden states, there are ({rows}, {width})"
            );
        }
        let values = reference.flatten_all()?.to_vec1::<f32>()?;
        let mut from = values.chunks_exact(width);
        let mut all = vec![0f32; measured.losses.len() * width];
        for (loss, into) in measured.losses.iter().zip(all.chunks_exact_mut(width)) {
            if *loss == TokenLoss::Kl
                && let Some(row) = from.next()
            {
                into.copy_from_slice(row);
            }
        }
        Ok(all)
    }
}
