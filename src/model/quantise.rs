//! Matrices of safetensors in fewer bits, made while they are loaded.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// Rows that one task quantises.
const ROWS: usize = 64;

/// What matrices are quantised to, by GGUF's names; part of a base model's identity.
///
/// A matrix whose rows do not divide into the type's blocks gets `q8_0`, and so do the table of
/// embeddings and the head, which cost the most where they lose precision. Rows that do not divide into
/// 32 elements either stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation(GgmlDType);

/// The names, and the types that they stand for.
const NAMES: [(&str, GgmlDType); 6] = [
    ("q8_0", GgmlDType::Q8_0),
    ("q6_k", GgmlDType::Q6K),
    ("q5_k", GgmlDType::Q5K),
    ("q4_k", GgmlDType::Q4K),
    ("q4_1", GgmlDType::Q4_1),
    ("q4_0", GgmlDType::Q4_0),
];

impl FromStr for Quantisation {
    type Err = String;

    /// Reads a name, with or without its underscore.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
        let named = NAMES.iter().find(|(name, _)| plain(name) == plain(text));
        named.map(|(_, dtype)| Self(*dtype)).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("there is no {text:?}; allowed are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, dtype)| *dtype == self.0);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl Quantisation {
    /// A matrix of floats (out, in) in fewer bits; `None` if its rows stay as they are. `table`: of
    /// embeddings, or the head.
    pub(crate) fn of(self, floats: &Tensor, table: bool) -> Result<Option<QTensor>> {
        let columns = floats.dims2()?.1;
        let wanted = if table { GgmlDType::Q8_0 } else { self.0 };
        let fits = |dtype: &GgmlDType| columns.is_multiple_of(dtype.block_size());
        let dtype = [wanted, GgmlDType::Q8_0].into_iter().find(fits);
        dtype.map(|dtype| quantised(floats, dtype)).transpose()
    }
}

/// [`QTensor::quantize`] on all cores.
fn quantised(floats: &Tensor, dtype: GgmlDType) -> Result<QTensor> {
    let out = floats.dims2()?.0;
    let part = |first: usize| -> Result<Vec<u8>> {
        // Copied, because candle quantises all of a tensor's storage.
        let rows = floats
            .narrow(0, first, ROWS.min(out - first))?
            .force_contiguous()?;
        let part = QTensor::quantize(&rows.to_dtype(DType::F32)?, dtype)?;
        Ok(part.data()?.into_owned())
    };
    let starts: Vec<usize> = (0..out).step_by(ROWS).collect();
    let parts: Vec<Vec<u8>> = starts.into_par_iter().map(part).collect::<Result<_>>()?;
    let data = Cow::Owned(parts.concat());
    QTensor::new(
        QStorage::from_data(data, &Device::Cpu, dtype)?,
        floats.shape().clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_underscores() {
        for (name, dtype) in NAMES {
            let read: Quantisation = name.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (dtype, name));
        }
        assert_eq!("Q4K".parse(), Ok(Quantisation(GgmlDType::Q4K)));
        let error = "q3".parse::<Quantisation>().unwrap_err();
        assert!(
            error.contains("\"q3\"") && error.contains("q8_0, q6_k"),
            "{error}"
        );
    }

    #[test]
    fn parts_come_to_the_same_as_the_whole() {
        let floats = Tensor::randn(0f32, 1.0, (150, 512), &Device::Cpu).unwrap();
        for (name, dtype) in NAMES {
            let quantisation: Quantisation = name.parse().unwrap();
            let got = quantisation.of(&floats, false).unwrap().unwrap();
            let whole = QTensor::quantize(&floats, dtype).unwrap();
            assert_eq!(got.dtype(), dtype);
            assert_eq!(got.shape(), whole.shape());
            assert_eq!(got.data().unwrap(), whole.data().unwrap(), "{name}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_and_tables_get_eight_bits() {
        let kind = |columns: usize, table: bool| {
            let floats = Tensor::zeros((3, columns), DType::BF16, &Device::Cpu).unwrap();
            let four: Quantisation = "q4_k".parse().unwrap();
            four.of(&floats, table).unwrap().map(|q| q.dtype())
        };
        assert_eq!(kind(512, false), Some(GgmlDType::Q4K));
        assert_eq!(kind(576, false), Some(GgmlDType::Q8_0));
        assert_eq!(kind(512, true), Some(GgmlDType::Q8_0));
        assert_eq!(kind(40, false), None);
    }
}
