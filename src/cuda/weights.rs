//! Addresses of what candle's tensors hold, looked up once.

use std::collections::HashMap;

use candle_core::{CpuStorage, Result, Storage, Tensor, TensorId, bail};

use super::gpu::{Element, Integers, Matrix};
use super::launches::attention_pairs;
use crate::integer::IntegerWeight;
use crate::{Layer, Model};
use crate::{Linear, Weight};

/// Where a contiguous tensor of this element type begins. It stays there as long as the tensor lives.
///
/// # Errors
/// If the tensor is of another type, not contiguous, or on a device that the kernels do not run on.
pub(crate) fn address(tensor: &Tensor, element: Element) -> Result<u64> {
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

/// Where the bytes of a matrix of integers begin.
fn byte_address(weight: &IntegerWeight) -> Result<u64> {
    let (storage, layout) = weight.data().storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("the CUDA kernels read contiguous tensors, got {layout:?}");
    };
    let begin = match &*storage {
        Storage::Cpu(CpuStorage::U8(v)) => v.as_ptr() as u64,
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::driver::byte_address(storage)?,
        _ => bail!("the CUDA kernels were given integers that are not bytes"),
    };
    Ok(begin + start as u64)
}

/// Biases of q, k and v side by side, f32; `None` if the layer has none.
fn qkv_biases(layer: &Layer) -> Result<Option<Tensor>> {
    let [q, k, v, _] = &layer.attention;
    let all: Vec<&Tensor> = [q, k, v].iter().filter_map(|map| map.bias()).collect();
    match all.len() {
        0 => Ok(None),
        3 => Tensor::cat(&all, 0).map(Some),
        n => bail!("{n} of q, k and v have a bias; the CUDA executor takes none or all"),
    }
}

/// Sizes of matrices, each the largest of its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Largest {
    /// Of a whole matrix.
    pub(crate) elements: usize,
    /// Of a row.
    pub(crate) columns: usize,
}

/// What a model's tensors hold, and where. The model outlives it.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Type of all matrices of floats, and of what enters a product.
    pub(crate) element: Element,
    /// The largest of the matrices of integers, if there are any.
    pub(crate) integers: Option<Largest>,
    /// Of every tensor of the model. The driver's own look-up orders streams by events each time.
    addresses: HashMap<TensorId, u64>,
    /// Per layer: biases of q, k and v side by side.
    biases: Vec<Option<Tensor>>,
}

impl Weights {
    /// Looks everything up and checks that the kernels can run the model.
    ///
    /// # Errors
    /// If its weights are not a device's, not of one type, or its heads of a width without a kernel.
    pub(crate) fn new(model: &Model) -> Result<Self> {
        let spec = &model.spec;
        if attention_pairs(spec.head_dim).is_none() {
            bail!(
                "no attention kernel for heads of {} columns; there are kernels for 32, 64, 96, \
                 128 and 256",
                spec.head_dim
            );
        }
        let mut weights = Self {
            element: Element::of(model.embedding.product_dtype())?,
            integers: None,
            addresses: HashMap::new(),
            biases: model.layers.iter().map(qkv_biases).collect::<Result<_>>()?,
        };
        for table in [&model.embedding, &model.head] {
            weights.add_matrix(table)?;
        }
        weights.add(&model.final_norm, Element::F32)?;
        for layer in &model.layers {
            weights.add_layer(layer)?;
        }
        for biases in weights.biases.clone().iter().flatten() {
            weights.add(biases, Element::F32)?;
        }
        Ok(weights)
    }

    fn add_layer(&mut self, layer: &Layer) -> Result<()> {
        for map in layer.maps() {
            self.add_matrix(map.weight())?;
            if let Some(bias) = map.bias() {
                self.add(bias, Element::F32)?;
            }
        }
        let pairs = [&layer.qk_norms, &layer.output_norms];
        let norms = pairs.into_iter().flatten().flatten();
        for norm in norms.chain([&layer.attention_norm, &layer.mlp_norm]) {
            self.add(norm, Element::F32)?;
        }
        Ok(())
    }

    fn add_matrix(&mut self, weight: &Weight) -> Result<()> {
        let Weight::Integers(integers) = weight else {
            return self.add(weight.held(), self.element);
        };
        if integers.dtype != self.element.dtype() {
            bail!(
                "a matrix of integers is for {:?}, the model's activations are {:?}",
                integers.dtype,
                self.element
            );
        }
        let (out, columns) = integers.shape()?;
        let known = self.integers.unwrap_or_default();
        self.integers = Some(Largest {
            elements: known.elements.max(out * columns),
            columns: known.columns.max(columns),
        });
        let at = byte_address(integers)?;
        self.addresses.insert(integers.data().id(), at);
        Ok(())
    }

    fn add(&mut self, tensor: &Tensor, element: Element) -> Result<()> {
        self.addresses
            .insert(tensor.id(), address(tensor, element)?);
        Ok(())
    }

    /// Where one of the model's tensors begins.
    ///
    /// # Errors
    /// If it is none of them.
    pub(crate) fn at(&self, tensor: &Tensor) -> Result<u64> {
        match self.addresses.get(&tensor.id()) {
            Some(at) => Ok(*at),
            None => bail!("a tensor of {:?} is not the model's", tensor.shape()),
        }
    }

    /// [`Weights::at`]; 0 for none.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn optional(&self, tensor: Option<&Tensor>) -> Result<u64> {
        tensor.map_or(Ok(0), |tensor| self.at(tensor))
    }

    /// A map or a table as kernels read it.
    ///
    /// # Errors
    /// As [`Weights::at`].
    pub(crate) fn matrix(&self, weight: &Weight) -> Result<Matrix> {
        let at = self.at(weight.held())?;
        Ok(match weight {
            Weight::Integers(integers) => Matrix::Integers(Integers {
                at,
                layout: integers.layout,
                row_bytes: integers.layout.row_bytes(integers.columns),
            }),
            Weight::Floats(_) => Matrix::Floats(at),
        })
    }

    /// Biases of a layer's q, k and v side by side; 0 for none.
    ///
    /// # Errors
    /// As [`Weights::at`].
    pub(crate) fn biases(&self, layer: usize) -> Result<u64> {
        self.optional(self.biases[layer].as_ref())
    }

    /// Maps that read one input and write side by side, as few products as their places allow: where
    /// matrices of one form lie one behind the other they are one. (matrix, columns of the result).
    ///
    /// # Errors
    /// As [`Weights::at`].
    pub(crate) fn products(&self, maps: &[&Linear]) -> Result<Vec<(Matrix, usize)>> {
        let mut all: Vec<(Matrix, usize)> = Vec::with_capacity(maps.len());
        for map in maps {
            let matrix = self.matrix(map.weight())?;
            let (out, inner) = map.weight().shape()?;
            let behind = |first: Matrix, rows: usize| match first {
                Matrix::Floats(at) => {
                    Matrix::Floats(at + (rows * inner * self.element.bytes()) as u64)
                }
                Matrix::Integers(first) => Matrix::Integers(first.skip_rows(rows)),
            };
            match all.last_mut() {
                Some((first, rows)) if behind(*first, *rows) == matrix => *rows += out,
                _ => all.push((matrix, out)),
            }
        }
        Ok(all)
    }
}
