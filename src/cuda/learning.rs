//! The training kernels on candle's own storages and stream: what the operations in
//! [`super::ops`] call on a CUDA device. Their argument lists are [`super::training`]'s, which
//! the emulator's tests run; what is here is as thin as the driver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
    SyncOnDrop,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

use super::driver::{driver, ptx_of};
use super::gpu::Launch;
use super::sources::TRAINING;
use super::storage::{Input, Storage};

impl Input<'_, CudaStorage> {
    fn storage(&self) -> &CudaStorage {
        match self {
            Self::F32(storage, _) | Self::U32(storage, _) => storage,
        }
    }
}

/// Where an input begins. The guard, dropped after the launch, says on the stream that it was read.
fn begin_input<'a>(
    op: &str,
    input: &Input<'a, CudaStorage>,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    match input {
        Input::F32(storage, layout) => begin::<f32>(op, storage, layout, stream),
        Input::U32(storage, layout) => begin::<u32>(op, storage, layout, stream),
    }
}

fn begin<'a, T: CudaDType + DeviceRepr + 'a>(
    op: &str,
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    let Some((first, _)) = layout.contiguous_offsets() else {
        bail!("{op}: the argument must be contiguous, got {layout:?}");
    };
    let (at, guard) = storage.as_cuda_slice::<T>()?.device_ptr(stream);
    Ok((at + (first * size_of::<T>()) as u64, guard))
}

impl Storage for CudaStorage {
    fn of(storage: &candle_core::Storage) -> Result<&Self> {
        match storage {
            candle_core::Storage::Cuda(storage) => Ok(storage),
            _ => bail!("one argument is on a CUDA device, another is not"),
        }
    }

    /// On candle's stream of the inputs' device. Fails, too, where NVRTC is not installed.
    fn run<const N: usize>(
        op: &'static str,
        inputs: [Input<Self>; N],
        count: usize,
        launch: impl FnOnce([u64; N], u64) -> Launch,
    ) -> Result<Self> {
        let Some(device) = inputs.first().map(|i| i.storage().device().clone()) else {
            bail!("{op}: a kernel without an input");
        };
        // SAFETY: a float has no invalid values, and the kernel writes every one before it is read.
        let mut output = unsafe { device.alloc::<f32>(count) }?;
        if count > 0 {
            let stream = device.cuda_stream();
            let mut addresses = [0; N];
            let mut guards = Vec::with_capacity(N);
            for (address, input) in addresses.iter_mut().zip(&inputs) {
                let (at, guard) = begin_input(op, input, &stream)?;
                *address = at;
                guards.push(guard);
            }
            let (to, written) = output.device_ptr_mut(&stream);
            start(&device, &launch(addresses, to))?;
            drop((guards, written));
        }
        Ok(CudaStorage::wrap_cuda_slice(output, device))
    }
}

fn start(device: &CudaDevice, launch: &Launch) -> Result<()> {
    let ptx = ptx(device.cuda_stream().context())?;
    // Candle keeps the module with the device, and the text is read once.
    let function = device.get_or_load_custom_func(launch.kernel, "realign-training", &ptx)?;
    let mut builder = function.builder();
    for arg in &launch.args {
        // The driver reads as many of the low bytes as the parameter has.
        builder.arg(&arg.0);
    }
    let [x, y, z] = launch.grid;
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (launch.threads, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are the kernel's (the emulator's tests run the same lists); the addresses
    // are of storages that the caller's guards keep, with as many elements as the sizes say.
    unsafe { builder.launch(config) }
        .map(drop)
        .map_err(driver(launch.kernel))
}

/// PTX by architecture, major and minor.
type Compiled = HashMap<(i32, i32), Arc<str>>;

/// The kernels as PTX for the context's architecture, compiled once. Kept for the process: it is a
/// pure function of the architecture, so owners of different devices may share it.
fn ptx(context: &Arc<CudaContext>) -> Result<Arc<str>> {
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    let architecture = context
        .compute_capability()
        .map_err(driver("the architecture"))?;
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_default();
    if let Some(ptx) = compiled.get(&architecture) {
        return Ok(ptx.clone());
    }
    let ptx: Arc<str> = ptx_of(context, &TRAINING)?.to_src().into();
    compiled.insert(architecture, ptx.clone());
    Ok(ptx)
}
