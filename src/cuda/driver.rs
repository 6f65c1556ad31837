//! [`Gpu`] on the CUDA driver. Thin on purpose: it is what the emulator cannot stand in for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::{
    CompileError, CompileOptions, Ptx, compile_ptx_with_opts,
};
use candle_core::{CudaDevice, CudaStorage, Device, Error, Layout, Result, Shape, bail};
use half::{bf16, f16};

use super::gpu::{Buffer, Element, Gpu, Graph, Integers, Launch, Product};
use super::launches;
use super::sources::{INTEGER, UNITS, Unit};
use crate::integer::Unpack;

/// A CUDA device as the executor sees it: its own stream of the highest priority, so that training,
/// which runs on candle's stream of the lowest, gives way between kernels.
pub struct CudaGpu {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    modules: Vec<Arc<CudaModule>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    multiprocessors: usize,
}

/// An error of the driver, with what was asked of it.
pub(super) fn driver(what: &str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Msg(format!("CUDA, {what}: {error}"))
}

impl CudaGpu {
    /// Compiles the kernels for candle's device and loads them. Waits for what candle has begun
    /// there, such as loading weights.
    ///
    /// # Errors
    /// If the device is no CUDA device, NVRTC is not installed, or the driver refuses the kernels.
    pub fn new(device: &Device) -> Result<Self> {
        let Device::Cuda(cuda) = device else {
            bail!(
                "the CUDA executor needs a CUDA device, got {:?}",
                device.location()
            );
        };
        let context = cuda.cuda_stream().context().clone();
        context.bind_to_thread().map_err(driver("the context"))?;
        context.synchronize().map_err(driver("loading"))?;
        let (_least, greatest) =
            result::stream::get_priority_range().map_err(driver("priorities"))?;
        let stream = context
            .new_stream_with_priority(greatest)
            .map_err(driver("a stream"))?;
        let blas = CudaBlas::new(stream.clone())
            .map_err(|e| Error::Msg(format!("cuBLAS cannot be set up: {e:?}")))?;
        let modules = UNITS
            .iter()
            .map(|unit| compile(&context, unit))
            .collect::<Result<_>>()?;
        let count = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(driver("attributes"))?;
        Ok(Self {
            stream,
            blas,
            modules,
            functions: Mutex::default(),
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
        })
    }

    fn function(&self, name: &'static str) -> Result<CudaFunction> {
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let found = self.modules.iter().find_map(|m| m.load_function(name).ok());
        let Some(function) = found else {
            bail!("there is no kernel {name}");
        };
        functions.insert(name, function.clone());
        Ok(function)
    }
}

/// A unit for the device's own architecture, loaded.
fn compile(context: &Arc<CudaContext>, unit: &Unit) -> Result<Arc<CudaModule>> {
    let ptx = ptx_of(context, unit)?;
    context.load_module(ptx).map_err(driver(unit.name))
}

/// PTX for the device's own architecture.
pub(super) fn ptx_of(context: &Arc<CudaContext>, unit: &Unit) -> Result<Ptx> {
    text(context, unit).map(Ptx::from_src)
}

/// PTX of a unit, compiled once for each architecture: probes and training load it, too. Kept for
/// the process: it is a pure function of its key, so owners of different devices may share it.
fn text(context: &CudaContext, unit: &Unit) -> Result<&'static str> {
    type Key = ((i32, i32), &'static str);
    static TEXTS: Mutex<Vec<(Key, &'static str)>> = Mutex::new(Vec::new());
    let architecture = context
        .compute_capability()
        .map_err(driver("the architecture"))?;
    let key = (architecture, unit.name);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, text)) = texts.iter().find(|(known, _)| *known == key) {
        return Ok(text);
    }
    // Some hundred kilobytes, for the life of the process.
    let text: &'static str = ptx(architecture, unit)?.to_src().leak();
    texts.push((key, text));
    Ok(text)
}

fn ptx((major, minor): (i32, i32), unit: &Unit) -> Result<Ptx> {
    let options = CompileOptions {
        options: vec![
            format!("--gpu-architecture=compute_{major}{minor}"),
            "--std=c++17".into(),
        ],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(unit.source(), options).map_err(|error| {
        let reason = match error {
            CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
            other => format!(
                "{other:?}; NVRTC (libnvrtc.so.13 or .12, with its builtins) has to be where the \
                 loader looks, LD_LIBRARY_PATH or CUDA_LIB_DIRS"
            ),
        };
        Error::Msg(format!("{} cannot be compiled: {reason}", unit.name))
    })
}

/// Runs a kernel of ours on a stream.
fn launch_on(stream: &CudaStream, function: &CudaFunction, launch: &Launch) -> Result<()> {
    let [x, y, z] = launch.grid;
    let mut builder = stream.launch_builder(function);
    for arg in &launch.args {
        // The driver reads as many of the low bytes as the parameter has.
        builder.arg(&arg.0);
    }
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (launch.threads, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are the kernel's (the emulator's tests run the same lists), and
    // addresses among them are of live buffers with room for the sizes beside them.
    unsafe { builder.launch(config) }
        .map(drop)
        .map_err(driver(launch.kernel))
}

/// Floats of integers on candle's own stream, for training: the model's other operations run there.
pub(crate) fn unpack(
    op: &Unpack,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (out, row_bytes) = layout.shape().dims2()?;
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("integers are unpacked from contiguous bytes, got {layout:?}");
    };
    let matrix = Integers {
        at: byte_address(storage)? + start as u64,
        layout: op.layout,
        row_bytes,
    };
    let (device, count) = (&storage.device, out * op.columns);
    let run = |y: u64| -> Result<()> {
        let element = Element::of(op.dtype)?;
        let launch = launches::unpack(element, &matrix, [out, op.columns], y);
        let text = text(device.cuda_stream().context(), &INTEGER)?;
        let function = device.get_or_load_custom_func(launch.kernel, INTEGER.name, text)?;
        launch_on(&device.cuda_stream(), &function, &launch)
    };
    // SAFETY: the kernel writes every element.
    let floats = unsafe {
        match Element::of(op.dtype)? {
            Element::F32 => wrapped(device.alloc::<f32>(count)?, device, run)?,
            Element::F16 => wrapped(device.alloc::<f16>(count)?, device, run)?,
            Element::Bf16 => wrapped(device.alloc::<bf16>(count)?, device, run)?,
        }
    };
    Ok((floats, Shape::from((out, op.columns))))
}

fn wrapped<T: CudaDType + DeviceRepr>(
    slice: CudaSlice<T>,
    device: &CudaDevice,
    fill: impl FnOnce(u64) -> Result<()>,
) -> Result<CudaStorage> {
    fill(begin(&slice))?;
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}

/// A recorded step.
struct Recording(CudaGraph);

// SAFETY: the driver's graphs belong to a context, not to a thread; they only want not to be used by
// two threads at once, and a recording has one owner, which runs it on its own stream.
unsafe impl Send for Recording {}

fn begin<T: DeviceRepr>(slice: &CudaSlice<T>) -> u64 {
    // The guard orders streams by events; ours are ordered by `finish` and by synchronising once
    // the weights are there.
    slice.device_ptr(slice.stream()).0
}

/// Where a storage of bytes begins.
pub(super) fn byte_address(storage: &CudaStorage) -> Result<u64> {
    Ok(begin(storage.as_cuda_slice::<u8>()?))
}

/// Where a storage begins.
pub(super) fn address(storage: &CudaStorage, element: Element) -> Result<u64> {
    Ok(match element {
        Element::F32 => begin(storage.as_cuda_slice::<f32>()?),
        Element::F16 => begin(storage.as_cuda_slice::<f16>()?),
        Element::Bf16 => begin(storage.as_cuda_slice::<bf16>()?),
    })
}

impl Gpu for CudaGpu {
    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        // SAFETY: u8 has no invalid values; the buffer is written before it is read.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) }
            .map_err(|e| Error::Msg(format!("CUDA cannot give {bytes} bytes: {e}")))?;
        Ok(Buffer::new(begin(&slice), bytes, Box::new(slice)))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.stream
            .context()
            .bind_to_thread()
            .map_err(driver("the context"))?;
        // SAFETY: callers pass an address inside a live buffer with room for the bytes. The driver
        // has copied pageable memory before it returns.
        unsafe { result::memcpy_htod_async(at, bytes, self.stream.cu_stream()) }
            .map_err(driver("a copy to the device"))
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.stream
            .context()
            .bind_to_thread()
            .map_err(driver("the context"))?;
        // SAFETY: callers pass an address inside a live buffer with as many bytes.
        unsafe { result::memcpy_dtoh_async(into, at, self.stream.cu_stream()) }
            .map_err(driver("a copy to the host"))?;
        self.finish()
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.stream
            .context()
            .bind_to_thread()
            .map_err(driver("the context"))?;
        // SAFETY: callers pass an address inside a live buffer with as many bytes.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(driver("clearing"))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let function = self.function(launch.kernel)?;
        launch_on(&self.stream, &function, launch)
    }

    fn begin_capture(&self) -> Result<()> {
        // What other threads do meanwhile, such as training's allocations, does not concern it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream
            .begin_capture(mode)
            .map_err(driver("the begin of a recording"))
    }

    fn end_capture(&self) -> Result<Graph> {
        let graph = self
            .stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(driver("the end of a recording"))?;
        match graph {
            Some(graph) => Ok(Graph::new(Box::new(Recording(graph)))),
            None => bail!("CUDA recorded nothing"),
        }
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        let Recording(graph) = graph.recording()?;
        graph.launch().map_err(driver("a recorded step"))
    }

    fn product(&self, p: &Product) -> Result<()> {
        let kind = match p.element {
            Element::F32 => blas_sys::cudaDataType::CUDA_R_32F,
            Element::F16 => blas_sys::cudaDataType::CUDA_R_16F,
            Element::Bf16 => blas_sys::cudaDataType::CUDA_R_16BF,
        };
        let [out, rows, inner, stride] = [p.out, p.rows, p.inner, p.stride].map(|n| n as i32);
        let (one, zero, weight) = (1f32, 0f32, p.floats()?);
        self.stream
            .context()
            .bind_to_thread()
            .map_err(driver("the context"))?;
        // cuBLAS counts by columns: its (out, rows) result is our (rows, out), Wᵀ is W read so.
        // SAFETY: the addresses are of live buffers of these sizes; the factors are on the host.
        let done = unsafe {
            blas::gemm_ex(
                *self.blas.handle(),
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                out,
                rows,
                inner,
                std::ptr::from_ref(&one).cast(),
                weight as *const _,
                kind,
                inner,
                p.x as *const _,
                kind,
                inner,
                std::ptr::from_ref(&zero).cast(),
                p.y as *mut _,
                blas_sys::cudaDataType::CUDA_R_32F,
                stride,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|e| Error::Msg(format!("cuBLAS refused a product, {p:?}: {e:?}")))
    }

    fn finish(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver("a step"))
    }

    fn blocks_to_fill(&self) -> usize {
        2 * self.multiprocessors
    }
}
