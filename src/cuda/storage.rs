//! Storages of candle's tensors that the training kernels can be launched on.

use candle_core::{CpuStorage, Layout, Result, bail};

use super::gpu::Launch;

/// An argument of a kernel: a contiguous stretch of a storage.
pub(crate) enum Input<'a, S> {
    /// Floats.
    F32(&'a S, &'a Layout),
    /// Token ids.
    U32(&'a S, &'a Layout),
}

/// A storage that kernels read and write.
pub(crate) trait Storage: Sized {
    /// The storage of a tensor that an operation holds besides its arguments.
    ///
    /// # Errors
    /// If it is on another kind of device.
    fn of(storage: &candle_core::Storage) -> Result<&Self>;

    /// Runs a kernel on the inputs' device and gives the `count` floats that it writes, all of
    /// them. `launch` makes the call from the inputs' addresses and the output's.
    ///
    /// # Errors
    /// If an input is not contiguous or of another type, or the device refuses.
    fn run<const N: usize>(
        op: &'static str,
        inputs: [Input<Self>; N],
        count: usize,
        launch: impl FnOnce([u64; N], u64) -> Launch,
    ) -> Result<Self>;
}

impl Storage for CpuStorage {
    fn of(storage: &candle_core::Storage) -> Result<&Self> {
        match storage {
            candle_core::Storage::Cpu(storage) => Ok(storage),
            _ => bail!("one argument is on the CPU, another is not"),
        }
    }

    /// By the emulator, in builds that have it.
    fn run<const N: usize>(
        op: &'static str,
        inputs: [Input<Self>; N],
        count: usize,
        launch: impl FnOnce([u64; N], u64) -> Launch,
    ) -> Result<Self> {
        let mut addresses = [0; N];
        for (address, input) in addresses.iter_mut().zip(&inputs) {
            *address = on_host(op, input)?;
        }
        let mut output = vec![f32::NAN; count];
        if count > 0 {
            emulate(op, &launch(addresses, output.as_mut_ptr() as u64))?;
        }
        Ok(CpuStorage::F32(output))
    }
}

/// Where an input begins in the host's memory.
fn on_host(op: &str, input: &Input<CpuStorage>) -> Result<u64> {
    let (Input::F32(storage, layout) | Input::U32(storage, layout)) = input;
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("{op}: the argument must be contiguous, got {layout:?}");
    };
    match (input, storage) {
        (Input::F32(..), CpuStorage::F32(data)) => Ok(data[start..].as_ptr() as u64),
        (Input::U32(..), CpuStorage::U32(data)) => Ok(data[start..].as_ptr() as u64),
        _ => bail!("{op}: an argument is of the wrong type"),
    }
}

#[cfg(any(test, feature = "test-support"))]
fn emulate(op: &str, launch: &Launch) -> Result<()> {
    use super::gpu::Gpu;
    match super::tests::emulator::Emulator::new(0) {
        Some(emulator) => emulator.launch(launch),
        None => bail!("{op}: there is no compiler for the emulator"),
    }
}

#[cfg(not(any(test, feature = "test-support")))]
fn emulate(op: &str, _: &Launch) -> Result<()> {
    bail!("{op} runs on a CUDA device only")
}
