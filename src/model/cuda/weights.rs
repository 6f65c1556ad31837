//! Addresses of what candle's tensors hold.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

use super::gpu::Element;
use crate::model::decoder::{Layer, Model};
use crate::model::linear::{Linear, Weight};

/// Where a contiguous tensor of this element type begins. It stays there as long as the tensor lives.
///
/// # Errors
/// If the tensor is of another type, not contiguous, or on a device that the kernels do not run on.
pub fn address(tensor: &Tensor, element: Element) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("the CUDA kernels read contiguous tensors, got {layout:?}");
    };
    let begin = match (&*storage, element) {
        (Storage::Cpu(CpuStorage::F32(v)), Element::F32) => v.as_ptr() as u64,
        (Storage::Cpu(CpuStorage::F16(v)), Element::F16) => v.as_ptr() as u64,
        (Storage::Cpu(CpuStorage::BF16(v)), Element::Bf16) => v.as_ptr() as u64,
        #[cfg(feature = "cuda")]
        (Storage::Cuda(storage), _) => super::driver::address(storage, element)?,
        _ => bail!(
            "the CUDA kernels were given a {:?} tensor on {:?} where {element:?} is read",
            tensor.dtype(),
            tensor.device().location()
        ),
    };
    Ok(begin + (start * element.bytes()) as u64)
}

/// The address of an optional f32 tensor; 0 for none.
pub fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), |t| address(t, Element::F32))
}

/// The dense matrix of a map.
pub fn matrix(weight: &Weight) -> Result<&Tensor> {
    match weight {
        Weight::Dense(tensor) => Ok(tensor),
        Weight::Quantized(_) | Weight::Packed(_) => {
            bail!("the CUDA executor multiplies dense weights only")
        }
    }
}

/// Maps that read one input and write side by side, as few products as their places allow: where
/// matrices lie one behind the other they are one. (address, columns of the result) each.
pub fn products(maps: &[&Linear], element: Element) -> Result<Vec<(u64, usize)>> {
    let mut all: Vec<(u64, usize)> = Vec::with_capacity(maps.len());
    for map in maps {
        let tensor = matrix(map.weight())?;
        let (out, inner) = tensor.dims2()?;
        let at = address(tensor, element)?;
        match all.last_mut() {
            Some((begin, columns))
                if *begin + (*columns * inner * element.bytes()) as u64 == at =>
            {
                *columns += out;
            }
            _ => all.push((at, out)),
        }
    }
    Ok(all)
}

/// Biases of q, k and v side by side, f32; `None` if the layer has none.
pub fn qkv_biases(layer: &Layer) -> Result<Option<Tensor>> {
    let [q, k, v, _] = &layer.attention;
    let all: Vec<&Tensor> = [q, k, v].iter().filter_map(|map| map.bias()).collect();
    match all.len() {
        0 => Ok(None),
        3 => Tensor::cat(&all, 0).map(Some),
        n => bail!("{n} of q, k and v have a bias; the CUDA executor takes none or all"),
    }
}

/// Checks that the kernels can run a model, and says in which element type.
///
/// # Errors
/// If its weights are not dense, not of one type, or its heads of a width without a kernel.
pub fn check(model: &Model) -> Result<Element> {
    let element = Element::of(matrix(&model.embedding)?.dtype())?;
    let spec = &model.spec;
    if super::launches::attention_pairs(spec.head_dim).is_none() {
        bail!(
            "no attention kernel for heads of {} columns; there are kernels for 32, 64, 96, 128 and 256",
            spec.head_dim
        );
    }
    address(matrix(&model.head)?, element)?;
    for layer in &model.layers {
        products(&layer.attention.iter().collect::<Vec<_>>(), element)?;
        products(&layer.mlp.iter().collect::<Vec<_>>(), element)?;
    }
    Ok(element)
}
