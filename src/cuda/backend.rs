//! A CUDA device as a backend.

use std::sync::Arc;

use realign_model::{ComputeDevice, Executor, Outputs, Step};

use super::executor::CudaExecutor;
use super::gpu::Gpu;

/// What looking for CUDA devices found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The binary has no CUDA.
    NotCompiled,
    /// The driver is not there or knows no device; its words.
    Nothing(String),
    /// So many devices, at least one.
    Devices(usize),
}

/// Looks for CUDA devices.
#[cfg(feature = "cuda")]
pub fn find() -> Found {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    match CudaContext::device_count() {
        Ok(count) if count > 0 => Found::Devices(count.unsigned_abs() as usize),
        Ok(_) => Found::Nothing("the driver knows none".into()),
        Err(error) => Found::Nothing(error.to_string()),
    }
}

/// Looks for CUDA devices.
#[cfg(not(feature = "cuda"))]
pub fn find() -> Found {
    Found::NotCompiled
}

/// Opens the CUDA device of this number.
///
/// # Errors
/// If it cannot be used: another process may own it.
#[cfg(feature = "cuda")]
pub fn open(number: usize) -> candle_core::Result<Arc<dyn ComputeDevice>> {
    let device = candle_core::Device::new_cuda_with_stream(number)?;
    Ok(Arc::new(real::Cuda(device)))
}

/// Opens the CUDA device of this number.
///
/// # Errors
/// Always: this build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub fn open(_number: usize) -> candle_core::Result<Arc<dyn ComputeDevice>> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

impl<G: Gpu> Executor for CudaExecutor<G> {
    fn vocab_size(&self) -> usize {
        CudaExecutor::vocab_size(self)
    }

    fn draws(&self) -> bool {
        true
    }

    fn forward(&mut self, step: &Step, outputs: &mut Outputs) -> candle_core::Result<()> {
        CudaExecutor::forward(self, step, outputs)
    }

    fn residuals(
        &mut self,
        step: &Step,
        layers: &[usize],
        show: &mut dyn FnMut(usize, &[f32]),
    ) -> candle_core::Result<()> {
        CudaExecutor::residuals(self, step, layers, show)
    }
}

#[cfg(feature = "cuda")]
pub use real::CudaBackend;

/// What needs the driver.
#[cfg(feature = "cuda")]
mod real {
    use std::sync::Arc;
    use std::time::Instant;

    use candle_core::quantized::GgmlDType;
    use candle_core::{DType, Device, Result, Tensor, bail};
    use realign_model::backend::Ceilings;
    use realign_model::error::Result as ModelResult;
    use realign_model::host_memory::Headroom;
    use realign_model::memory::{Budget, LearningBytes, Plan, Stored, Training};
    use realign_model::random::{RandomMatrix, random_model};
    use realign_model::{
        Backend, ComputeDevice, Executor, ExecutorOptions, KvType, LearningPasses, LoraWeights,
        ModelFiles, ModelSpec, PassOptions, Recompute, Staged, TimeSlices,
    };
    use realign_reference::memory::{activations, layer_bytes, logits};
    use realign_reference::{TensorModel, TensorPasses};

    use crate::adapters::DeviceAdapter;
    use crate::driver::CudaGpu;
    use crate::executor::{CudaExecutor, Options, bytes_per_block, supported};
    use crate::gpu::Element;
    use crate::integer::IntegerWeight;
    use crate::ops::Kernels;
    use crate::{Model, Weight, plan, stacked, stored};

    const FLOAT: usize = size_of::<f32>();

    /// A CUDA device.
    #[derive(Clone, Debug)]
    pub(crate) struct Cuda(pub Device);

    impl ComputeDevice for Cuda {
        fn load(
            &self,
            files: &ModelFiles,
            slices: Arc<TimeSlices>,
        ) -> ModelResult<Arc<dyn Backend>> {
            supported(&files.spec()?)?;
            let model = files.load(&self.0, |matrix| Weight::new(&matrix, &self.0))?;
            let mut backend = CudaBackend::new(stacked(model)?)?;
            backend.slices = slices;
            Ok(Arc::new(backend))
        }

        fn random(
            &self,
            spec: &ModelSpec,
            integers: Option<GgmlDType>,
        ) -> Result<Arc<dyn Backend>> {
            supported(spec)?;
            let matrix = |m: RandomMatrix| match integers {
                None => m.floats(DType::BF16, &self.0).map(Weight::Floats),
                Some(kind) => {
                    let few = m.few_rows(kind)?;
                    match IntegerWeight::new(&few, &self.0, DType::BF16)? {
                        Some(rows) => rows.repeated(m.out).map(Weight::Integers),
                        None => bail!("a matrix cannot be kept as integers of {kind:?}"),
                    }
                }
            };
            let model = random_model(spec.clone(), &self.0, matrix)?;
            Ok(Arc::new(CudaBackend::new(stacked(model)?)?))
        }

        fn free_bytes(&self) -> Option<usize> {
            free_bytes(&self.0)
        }

        fn stored(&self, files: &ModelFiles) -> ModelResult<Option<Stored>> {
            Ok(files.gguf_content()?.map(|content| stored(&content)))
        }

        fn plan(&self, spec: &ModelSpec, budget: &Budget) -> Plan {
            plan(spec, budget)
        }

        fn ceilings(&self) -> Result<Option<Ceilings>> {
            ceilings(&self.0).map(Some)
        }
    }

    /// Bytes that are free on a device.
    fn free_bytes(device: &Device) -> Option<usize> {
        let Device::Cuda(cuda) = device else {
            return None;
        };
        let free = cuda.cuda_stream().context().mem_get_info();
        free.ok().map(|(free, _all)| free)
    }

    /// A model that is served and trained on a CUDA device.
    #[derive(Clone, Debug)]
    pub struct CudaBackend {
        model: Arc<Model>,
        /// The same for what candle differentiates.
        tensors: Arc<TensorModel<Weight>>,
        device: Device,
        element: Element,
        slices: Arc<TimeSlices>,
    }

    impl CudaBackend {
        /// Serves and trains this model.
        ///
        /// # Errors
        /// If the kernels have no instance for its element type.
        pub fn new(model: Model) -> Result<Self> {
            Ok(Self {
                device: model.final_norm.device().clone(),
                element: Element::of(model.embedding.product_dtype())?,
                tensors: Arc::new(TensorModel {
                    decoder: model.clone(),
                    ops: &Kernels,
                }),
                model: Arc::new(model),
                slices: Arc::default(),
            })
        }
    }

    impl Backend for CudaBackend {
        fn spec(&self) -> &ModelSpec {
            &self.model.spec
        }

        fn device(&self) -> &Device {
            &self.device
        }

        fn stage(&self, adapter: &LoraWeights) -> Result<Staged> {
            let adapter = DeviceAdapter::new(&adapter.sites, &self.device, self.element)?;
            Ok(Staged::new(adapter))
        }

        fn executor(&self, sizes: ExecutorOptions) -> Result<Box<dyn Executor>> {
            let mut options = Options::default();
            if !sizes.record {
                options.graphs = 0;
            }
            let gpu = CudaGpu::new(&self.device)?;
            let executor = CudaExecutor::new(gpu, self.model.clone(), sizes.blocks, options)?;
            Ok(Box::new(executor))
        }

        fn passes(&self, options: PassOptions) -> Result<Box<dyn LearningPasses>> {
            // Without a plan, what fits in any case.
            let recompute = options.recompute != Recompute::Off;
            Ok(Box::new(TensorPasses::new(self.tensors.clone(), recompute)))
        }

        fn bytes_per_block(&self, _: KvType) -> usize {
            // The cache has the weights' sixteen bits.
            bytes_per_block(&self.model.spec, self.element)
        }

        fn bytes_per_token(&self) -> usize {
            let maps = self.model.weights().map(Weight::bytes);
            maps.sum::<usize>() + self.model.head.bytes()
        }

        fn learning_bytes(&self, t: &Training) -> LearningBytes {
            let spec = &self.model.spec;
            let heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
            let working = FLOAT * t.rows * 4 * (spec.intermediate_size + spec.hidden_size + heads);
            let layer = layer_bytes(spec, t.rows, t.longest);
            LearningBytes {
                // The weights that serve are those that training reads.
                weights: 0,
                activations: activations(spec, layer, t) + working,
                logits: logits(spec, t),
            }
        }

        fn headroom(&self) -> Option<Headroom> {
            free_bytes(&self.device).map(|bytes| Headroom::of_device(bytes as u64))
        }

        fn time_slices(&self) -> &Arc<TimeSlices> {
            &self.slices
        }

        fn yields_to_steps(&self) -> bool {
            false
        }
    }

    /// Seconds of the fastest of a few runs of `work`, each until the device is idle again.
    fn fastest(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        work()?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            device.synchronize()?;
            let started = Instant::now();
            work()?;
            device.synchronize()?;
            best = best.min(started.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    fn ceilings(device: &Device) -> Result<Ceilings> {
        const VALUES: usize = 1 << 30;
        const SIDE: usize = 8192;
        let copied = {
            let from = Tensor::zeros(VALUES, DType::BF16, device)?;
            let to = Tensor::zeros(VALUES, DType::BF16, device)?;
            fastest(device, || to.slice_set(&from, 0, 0))?
        };
        let square = || Tensor::randn(0f32, 1.0, (SIDE, SIDE), device)?.to_dtype(DType::BF16);
        let (a, b) = (square()?, square()?);
        let multiplied = fastest(device, || a.matmul(&b).map(drop))?;
        Ok(Ceilings {
            copied: (2 * VALUES * 2) as f64 / copied,
            multiplied: 2.0 * (SIDE as f64).powi(3) / multiplied,
        })
    }
}
