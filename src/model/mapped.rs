//! Matrices of a GGUF or safetensors file where it is mapped, without a copy.
//!
//! Floats are given so, and integers whose rows are whole blocks: what a backend reads many of.
//! The file's length was compared with its header before, and every range is looked up in the map. A
//! file that another process cuts while it is read ends this one by SIGBUS (docs/unsafe.md).

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use memmap2::{Mmap, MmapOptions};

use super::StoredMatrix;
use super::blocks::{Format, UNIT};

/// A mapped file of weights.
#[derive(Clone, Debug)]
pub(crate) struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Maps a file read-only.
    ///
    /// # Errors
    /// If the system refuses it.
    pub(crate) fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: nothing here changes the file while it is mapped. If another process does, matrices
        // may be torn, or SIGBUS ends this one (docs/unsafe.md).
        let map = unsafe { MmapOptions::new().map(file) };
        map.map(|map| Self(Arc::new(map)))
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A tensor's rows; `None` where [`MappedFile::matrix`] has none.
    pub(crate) fn blocks(&self, content: &Content, name: &str) -> Option<Blocks> {
        let info = content.tensor_infos.get(name)?;
        let start = content.tensor_data_offset.checked_add(info.offset)?;
        self.matrix(
            info.ggml_dtype,
            info.shape.dims(),
            usize::try_from(start).ok()?,
        )
    }

    /// The rows of a tensor that begins at a byte of the file, all its dimensions but the last taken
    /// together; `None` if it has none, or is not of floats or whole blocks that lie in the file.
    pub(crate) fn matrix(&self, dtype: GgmlDType, dims: &[usize], start: usize) -> Option<Blocks> {
        let (columns, leading) = dims.split_last()?;
        let columns = *columns;
        let unit = match float(dtype) {
            Some(_) => 1,
            None => Format::of(dtype).map(|_| UNIT)?,
        };
        let whole = columns > 0
            && columns.is_multiple_of(unit)
            && columns.is_multiple_of(dtype.block_size());
        if !whole || leading.is_empty() {
            return None;
        }
        let rows = leading.iter().try_fold(1usize, |a, b| a.checked_mul(*b))?;
        let row_bytes = (columns / dtype.block_size()).checked_mul(dtype.type_size())?;
        let end = start.checked_add(rows.checked_mul(row_bytes)?)?;
        (end <= self.0.len()).then(|| Blocks {
            file: self.clone(),
            dims: dims.into(),
            place: start..end,
            dtype,
            columns,
            row_bytes,
            order: None,
        })
    }

    /// Says that a part was read: its pages need not stay in this process.
    pub(crate) fn release(&self, place: Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file, shared and never written to, so its pages are filled from
            // the file again whenever they are looked at. The call is advice and may fail.
            let _ = unsafe {
                self.0
                    .unchecked_advise_range(advice, place.start, place.len())
            };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = place;
    }
}

/// The floats that these blocks are, if they are no integers.
fn float(dtype: GgmlDType) -> Option<DType> {
    match dtype {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// A matrix in a mapped file, of whole blocks; a float is a block. Clones share the map.
#[derive(Clone, Debug)]
pub struct Blocks {
    file: MappedFile,
    /// Dimensions of the tensor.
    dims: Arc<[usize]>,
    /// Bytes of the file: whole rows.
    place: Range<usize>,
    dtype: GgmlDType,
    columns: usize,
    row_bytes: usize,
    /// For each row, which of the file's it is; as they lie if `None`.
    order: Option<Arc<[u32]>>,
}

impl Blocks {
    /// The blocks' type.
    pub fn dtype(&self) -> GgmlDType {
        self.dtype
    }

    /// (out, in).
    pub fn shape(&self) -> (usize, usize) {
        (self.place.len() / self.row_bytes, self.columns)
    }

    /// The tensor's own dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// All blocks, in the file's order.
    pub fn bytes(&self) -> &[u8] {
        &self.file.0[self.place.clone()]
    }

    /// The blocks of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[u8] {
        let index = match &self.order {
            Some(order) => order[index] as usize,
            None => index,
        };
        &self.bytes()[index * self.row_bytes..][..self.row_bytes]
    }

    /// Some of the rows.
    ///
    /// # Errors
    /// If there are not so many, or they were put into another order.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.shape().0 || self.order.is_some() {
            bail!("rows {rows:?} of {}", self.shape().0);
        }
        let from = self.place.start;
        Ok(Self {
            place: from + rows.start * self.row_bytes..from + rows.end * self.row_bytes,
            ..self.clone()
        })
    }

    /// The same rows in another order.
    ///
    /// # Errors
    /// If `order` has another length, or names a row that is not there.
    pub(crate) fn in_order(self, order: Vec<u32>) -> Result<Self> {
        let rows = self.shape().0;
        if order.len() != rows || order.iter().any(|row| *row as usize >= rows) {
            bail!("an order of {} rows for {rows}", order.len());
        }
        Ok(Self {
            order: Some(order.into()),
            ..self
        })
    }

    /// The bytes of all rows.
    fn copied(&self) -> Vec<u8> {
        let rows = 0..self.shape().0;
        let mut data = Vec::with_capacity(self.place.len());
        rows.for_each(|row| data.extend_from_slice(self.row(row)));
        data
    }

    /// A copy in memory of its own: floats, or the file's integers. The pages of what was copied are given back.
    ///
    /// # Errors
    /// If candle refuses it.
    pub(crate) fn in_memory(&self) -> Result<StoredMatrix> {
        let (rows, columns) = self.shape();
        let copy = match float(self.dtype) {
            Some(dtype) => {
                let bytes = self.copied();
                Tensor::from_raw_buffer(&bytes, dtype, &[rows, columns], &Device::Cpu)
                    .map(StoredMatrix::Floats)
            }
            None => self
                .to_quantized()
                .map(|integers| StoredMatrix::Quantized(Arc::new(integers))),
        };
        self.release();
        copy
    }

    /// A copy as candle keeps tensors of a GGUF file.
    ///
    /// # Errors
    /// If candle refuses it.
    pub fn to_quantized(&self) -> Result<QTensor> {
        let storage = QStorage::from_data(self.copied().into(), &Device::Cpu, self.dtype)?;
        QTensor::new(storage, self.shape())
    }

    /// Says that the blocks were read: their pages need not stay in this process.
    pub fn release(&self) {
        self.file.release(self.place.clone());
    }
}

/// Blocks of a matrix in a file of their own, for tests of what reads them.
///
/// # Panics
/// If the file cannot be written, or the matrix is not one of whole blocks.
#[cfg(any(test, feature = "test-support"))]
pub fn blocks_of(matrix: &QTensor, file: &mut File) -> Blocks {
    use std::io::Write;
    let data = matrix.data().expect("a tensor on the CPU");
    file.write_all(&data).expect("room for a test's file");
    file.flush().expect("room for a test's file");
    let (rows, columns) = matrix.shape().dims2().expect("a matrix");
    let dims = [rows, columns];
    Blocks {
        file: MappedFile::new(file).expect("a map"),
        dims: dims.as_slice().into(),
        place: 0..data.len(),
        dtype: matrix.dtype(),
        columns,
        row_bytes: data.len() / rows,
        order: None,
    }
}
