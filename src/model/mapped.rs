//! Matrices of a GGUF file where it is mapped, without a copy.
//!
//! Only blocks of integers whose rows are whole blocks are given so: what a backend reads many of.
//! The file's length was compared with its header before, and every range is looked up in the map. A
//! file that another process cuts while it is read ends this one by SIGBUS, as with mapped safetensors
//! (docs/unsafe.md).

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, bail};
use memmap2::{Mmap, MmapOptions};

use super::blocks::{Format, UNIT};

/// A mapped file of weights.
#[derive(Clone, Debug)]
pub(crate) struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Maps a file read-only; `None` where the system refuses that, and the file is read instead.
    pub(crate) fn new(file: &File) -> Option<Self> {
        // SAFETY: nothing here changes the file while it is mapped. If another process does, matrices
        // may be torn, or SIGBUS ends this one (docs/unsafe.md).
        let map = unsafe { MmapOptions::new().map(file) };
        match map {
            Ok(map) => Some(Self(Arc::new(map))),
            Err(error) => {
                tracing::debug!(%error, "the model's file is read instead of mapped");
                None
            }
        }
    }

    /// A tensor's rows, all its dimensions but the last taken together; `None` if it has none, or is
    /// not of whole blocks of integers that lie in the file.
    pub(crate) fn blocks(&self, content: &Content, name: &str) -> Option<Blocks> {
        let info = content.tensor_infos.get(name)?;
        let (dtype, dims) = (info.ggml_dtype, info.shape.dims());
        Format::of(dtype)?;
        let (columns, leading) = dims.split_last()?;
        let columns = *columns;
        let whole = columns > 0
            && columns.is_multiple_of(UNIT)
            && columns.is_multiple_of(dtype.block_size());
        if !whole || leading.is_empty() {
            return None;
        }
        let rows = leading.iter().try_fold(1usize, |a, b| a.checked_mul(*b))?;
        let row_bytes = (columns / dtype.block_size()).checked_mul(dtype.type_size())?;
        let start = content.tensor_data_offset.checked_add(info.offset)?;
        let start = usize::try_from(start).ok()?;
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
}

/// A matrix of whole blocks in a mapped file. Clones share the map.
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

    /// A copy in memory of its own.
    ///
    /// # Errors
    /// If candle refuses it.
    pub fn to_quantized(&self) -> Result<QTensor> {
        let (rows, columns) = self.shape();
        let mut data = Vec::with_capacity(self.place.len());
        for row in 0..rows {
            data.extend_from_slice(self.row(row));
        }
        let storage = QStorage::from_data(data.into(), &Device::Cpu, self.dtype)?;
        QTensor::new(storage, (rows, columns))
    }

    /// Says that the blocks were read: their pages need not stay in this process.
    pub fn release(&self) {
        #[cfg(target_os = "linux")]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let (at, length) = (self.place.start, self.place.len());
            // SAFETY: the map is of a file, shared and never written to, so its pages are filled from
            // the file again whenever they are looked at. The call is advice and may fail.
            let _ = unsafe { self.file.0.unchecked_advise_range(advice, at, length) };
        }
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
