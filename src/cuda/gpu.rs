//! What the executor asks of a device: memory, copies, launches, large products.

use std::any::Any;

use candle_core::{DType, Result, bail};

use crate::integer::Layout;

/// Element types of weights, cache and activations that enter a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// The type of a tensor's elements.
    ///
    /// # Errors
    /// If the kernels have no instance for it.
    pub(crate) fn of(dtype: DType) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            other => bail!("CUDA kernels take f32, f16 and bf16 weights, not {other:?}"),
        })
    }

    /// As candle names it.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
            Element::Bf16 => DType::BF16,
        }
    }
}

/// One argument of a kernel; its bits in the low bytes, as the driver reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arg(pub u64);

impl Arg {
    /// An address on the device; 0 is null.
    pub(crate) fn address(at: u64) -> Self {
        Arg(at)
    }

    /// A 32-bit integer. Sizes beyond it are refused when a model is loaded.
    pub(crate) fn int(v: usize) -> Self {
        Arg(u64::from(v as u32))
    }

    /// A 32-bit float.
    pub(crate) fn float(v: f32) -> Self {
        Arg(u64::from(v.to_bits()))
    }

    /// A 64-bit count.
    pub(crate) fn count(v: usize) -> Self {
        Arg(v as u64)
    }
}

/// A kernel, its grid and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name in the sources.
    pub(crate) kernel: &'static str,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// In the kernel's order.
    pub(crate) args: Vec<Arg>,
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// Address of its elements, of the type of what they are multiplied with.
    Floats(u64),
    /// As [`crate::integer`] stores it.
    Integers(Integers),
}

/// A matrix of integers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integers {
    /// Address of its first row.
    pub(crate) at: u64,
    /// How rows are stored.
    pub(crate) layout: Layout,
    /// Bytes from one row to the next.
    pub(crate) row_bytes: usize,
}

impl Integers {
    /// The same matrix without its first rows.
    pub(crate) fn skip_rows(self, row: usize) -> Self {
        Self {
            at: self.at + (row * self.row_bytes) as u64,
            ..self
        }
    }
}

/// y (rows, out), f32, ← x (rows, inner) · Wᵀ for W (out, inner); x and W of one element type, or W
/// of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Type of x, and of W where it is floats.
    pub(crate) element: Element,
    /// W.
    pub(crate) weight: Matrix,
    /// Address of x.
    pub(crate) x: u64,
    /// Address of y's first element.
    pub(crate) y: u64,
    /// Rows of x and y.
    pub(crate) rows: usize,
    /// Columns of x and W.
    pub(crate) inner: usize,
    /// Columns of y, rows of W.
    pub(crate) out: usize,
    /// Elements from one row of y to the next.
    pub(crate) stride: usize,
}

impl Product {
    /// The address of W, for products that only take floats.
    ///
    /// # Errors
    /// If W is of integers.
    pub(crate) fn floats(&self) -> Result<u64> {
        match self.weight {
            Matrix::Floats(at) => Ok(at),
            Matrix::Integers(_) => {
                bail!("a large product takes floats: integers are unpacked first")
            }
        }
    }
}

/// Launches that were recorded, to be run again and again.
pub struct Graph(Box<dyn Any + Send>);

impl Graph {
    /// A recording in a device's own form.
    pub fn new(recording: Box<dyn Any + Send>) -> Self {
        Self(recording)
    }

    /// The recording, if it is this device's.
    ///
    /// # Errors
    /// If it is another's.
    pub(crate) fn recording<T: 'static>(&self) -> Result<&T> {
        match self.0.downcast_ref() {
            Some(recording) => Ok(recording),
            None => bail!("the recording is another device's"),
        }
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

/// Memory on the device; freed when dropped. Nothing that still runs may use it then.
pub struct Buffer {
    /// Where it is.
    pub address: u64,
    /// How large it is.
    pub bytes: usize,
    _owner: Box<dyn Any + Send>,
}

impl Buffer {
    /// Memory that `owner` frees when it is dropped.
    pub fn new(address: u64, bytes: usize, owner: Box<dyn Any + Send>) -> Self {
        Self {
            address,
            bytes,
            _owner: owner,
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// A device. Copies, launches and products run in the order in which they were asked for.
pub trait Gpu: Send {
    /// Memory with unspecified contents, at an address that is a multiple of 256.
    ///
    /// # Errors
    /// If there is none left.
    fn allocate(&self, bytes: usize) -> Result<Buffer>;

    /// Host to device.
    ///
    /// # Errors
    /// If the device refuses.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Device to host; waits for all that was asked before.
    ///
    /// # Errors
    /// If the device refuses, or anything before failed.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// If the device refuses.
    fn clear(&self, at: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// If there is no such kernel, or the device refuses.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// A product of more rows than our own kernels are for.
    ///
    /// # Errors
    /// If the device refuses.
    fn product(&self, product: &Product) -> Result<()>;

    /// Launches from here to [`Gpu::end_capture`] are recorded and do not run. Nothing else may be
    /// asked for in between: no memory, no copy, no large product, no waiting.
    ///
    /// # Errors
    /// If the device cannot record.
    fn begin_capture(&self) -> Result<()>;

    /// What was recorded. Called after an error, too: the device records no longer then.
    ///
    /// # Errors
    /// If something was asked for that cannot be recorded.
    fn end_capture(&self) -> Result<Graph>;

    /// Runs what was recorded, with the arguments that it was recorded with.
    ///
    /// # Errors
    /// If the device refuses.
    fn replay(&self, graph: &Graph) -> Result<()>;

    /// Waits for all that was asked.
    ///
    /// # Errors
    /// If any of it failed.
    fn finish(&self) -> Result<()>;

    /// How many blocks it takes to fill the device twice over.
    fn blocks_to_fill(&self) -> usize;
}

impl<G: Gpu + Sync + ?Sized> Gpu for &G {
    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        (**self).allocate(bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        (**self).write(at, bytes)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        (**self).read(at, into)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        (**self).clear(at, bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        (**self).launch(launch)
    }

    fn product(&self, product: &Product) -> Result<()> {
        (**self).product(product)
    }

    fn begin_capture(&self) -> Result<()> {
        (**self).begin_capture()
    }

    fn end_capture(&self) -> Result<Graph> {
        (**self).end_capture()
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        (**self).replay(graph)
    }

    fn finish(&self) -> Result<()> {
        (**self).finish()
    }

    fn blocks_to_fill(&self) -> usize {
        (**self).blocks_to_fill()
    }
}
