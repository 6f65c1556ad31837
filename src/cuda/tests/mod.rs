//! The kernels and the executor on every device that is at hand: the emulator always, with threads in
//! step and with warps that run ahead of each other, and a GPU with the feature `cuda` and
//! REALIGN_GPU_TESTS=1 (scripts/gpu-check.sh).

#[cfg(test)]
mod attention;
pub mod emulator;
#[cfg(test)]
mod executor;
#[cfg(test)]
mod file;
#[cfg(test)]
mod graphs;
#[cfg(test)]
mod hidden;
#[cfg(test)]
mod integer;
#[cfg(test)]
mod layer;
#[cfg(test)]
mod learning;
#[cfg(test)]
mod stepwise;
#[cfg(test)]
mod training;

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use realign_model::ModelSpec;
use realign_model::random::random_model;
use realign_reference::Reference;

use super::gpu::{Buffer, Element, Gpu};
use super::{Model, Weight, stacked};
use emulator::Emulator;

pub(crate) const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// A device under test, and where candle's tensors have to be for it.
pub struct UnderTest {
    pub name: &'static str,
    pub gpu: Box<dyn Gpu + Sync>,
    pub device: Device,
}

/// Every device at hand.
pub fn devices() -> Vec<UnderTest> {
    let emulators = [("threads in step", 0), ("skewed warps", 7)];
    let emulated = emulators.into_iter().filter_map(|(name, seed)| {
        let gpu = Emulator::new(seed)?;
        Some(UnderTest {
            name,
            gpu: Box::new(gpu),
            device: Device::Cpu,
        })
    });
    emulated.chain(real()).collect()
}

/// Where candle's tensors can be: the CPU, and the GPU where one is asked for.
pub(crate) fn places() -> Vec<Device> {
    let real = real().map(|test| test.device);
    std::iter::once(Device::Cpu).chain(real).collect()
}

/// The GPU, where one is asked for: it must answer then.
#[cfg(feature = "cuda")]
fn real() -> Option<UnderTest> {
    if std::env::var_os("REALIGN_GPU_TESTS").is_none_or(|v| v != "1") {
        println!("NEEDS A GPU: set REALIGN_GPU_TESTS=1 to compare on one");
        return None;
    }
    let device = Device::new_cuda(0).expect("REALIGN_GPU_TESTS=1 asks for a GPU that answers");
    let gpu = crate::CudaGpu::new(&device).expect("the kernels compile and load");
    Some(UnderTest {
        name: "GPU",
        gpu: Box::new(gpu),
        device,
    })
}

#[cfg(not(feature = "cuda"))]
fn real() -> Option<UnderTest> {
    println!(
        "NEEDS A GPU: build with --features cuda and set REALIGN_GPU_TESTS=1 to compare on one"
    );
    None
}

/// Rounded to an element type and back.
pub(crate) fn rounded(t: &Tensor, element: Element) -> Result<Tensor> {
    t.to_dtype(element.dtype())?.to_dtype(DType::F32)
}

pub(crate) fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

impl UnderTest {
    /// A tensor's values on the device.
    pub(crate) fn put(&self, t: &Tensor, element: Element) -> Result<Buffer> {
        let values = t
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?;
        let bytes: Vec<u8> = values
            .to_vec1::<f32>()?
            .into_iter()
            .flat_map(|v| match element {
                Element::F32 => v.to_le_bytes().to_vec(),
                Element::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
                Element::Bf16 => bf16::from_f32(v).to_le_bytes().to_vec(),
            })
            .collect();
        self.bytes(&bytes)
    }

    pub fn bytes(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.gpu.allocate(bytes.len())?;
        self.gpu.write(buffer.address, bytes)?;
        Ok(buffer)
    }

    pub fn numbers(&self, numbers: &[u32]) -> Result<Buffer> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    pub(crate) fn room(&self, count: usize, element: Element) -> Result<Buffer> {
        self.gpu.allocate(count * element.bytes())
    }

    /// What a buffer holds, as a tensor on the CPU.
    pub(crate) fn get(
        &self,
        buffer: &Buffer,
        shape: impl Into<candle_core::Shape>,
        element: Element,
    ) -> Result<Tensor> {
        let mut bytes = vec![0u8; buffer.bytes];
        self.gpu.read(buffer.address, &mut bytes)?;
        let values: Vec<f32> = match element {
            Element::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Element::F16 => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            Element::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// Fails unless both are the same to within `tolerance` of the larger values.
    pub(crate) fn same(
        &self,
        what: &str,
        got: &Tensor,
        expected: &Tensor,
        tolerance: f32,
    ) -> Result<()> {
        assert_eq!(got.dims(), expected.dims(), "{what} on {}", self.name);
        let got = got.flatten_all()?.to_vec1::<f32>()?;
        let expected = expected.flatten_all()?.to_vec1::<f32>()?;
        let scale = expected.iter().fold(1f32, |m, v| m.max(v.abs()));
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            // Written so that a NaN fails.
            let near = (g - e).abs() <= tolerance * scale;
            assert!(near, "{what} on {}: element {i} is {g}, not {e}", self.name);
        }
        Ok(())
    }
}

/// A model of these shapes with random floats on a device.
pub fn random_floats(spec: ModelSpec, dtype: DType, device: &Device) -> Result<Model> {
    let matrix =
        |m: realign_model::random::RandomMatrix| m.floats(dtype, device).map(Weight::Floats);
    stacked(random_model(spec, device, matrix)?)
}

/// The same model in f32 on the CPU, by candle's primitives.
pub(crate) fn reference(model: &Model) -> Result<Reference> {
    let cpu = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.copy();
    let mut copy = model.clone().map(|weight| cpu(&weight.dense()?))?;
    let pair = |p: &mut Option<[Tensor; 2]>| -> Result<()> {
        for norm in p.iter_mut().flatten() {
            *norm = cpu(norm)?;
        }
        Ok(())
    };
    for layer in &mut copy.layers {
        for map in layer.attention.iter_mut().chain(layer.mlp.maps_mut()) {
            map.bias = map.bias.as_ref().map(cpu).transpose()?;
        }
        layer.attention_norm = cpu(&layer.attention_norm)?;
        layer.mlp_norm = cpu(&layer.mlp_norm)?;
        pair(&mut layer.qk_norms)?;
        pair(&mut layer.output_norms)?;
    }
    copy.final_norm = cpu(&copy.final_norm)?;
    Ok(Reference::of(copy))
}

/// What rounding a result to an element type may cost.
pub(crate) fn tolerance(element: Element) -> f32 {
    match element {
        Element::F32 => 2e-5,
        Element::F16 => 1e-3,
        Element::Bf16 => 8e-3,
    }
}
