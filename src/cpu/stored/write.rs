//! Writing packed weights while they are made.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use candle_core::{Result as CandleResult, bail};
use realign_model::Decoder;
use realign_model::assemble::vectors;

use realign_model::mapped::Blocks;

use super::format::{ALIGNMENT, Contents, Matrix, Section, Stored, Sum, ending};
use crate::PackedWeight;
use crate::packed::{SLACK, Unpacked};

/// Blocks in which the file is written, and at whose multiples: a file system that can keeps each in
/// one huge page.
const BLOCK: usize = 2 << 20;

/// Panels of about so many bytes are packed into one of three buffers, which stay in the caches until they
/// are written.
const BATCH: usize = 4 << 20;

/// What is to be written next.
enum Part {
    /// A matrix in memory.
    Whole(PackedWeight),
    /// A matrix whose bytes follow.
    Begin(Head),
    /// Some of them. The buffer is given back.
    Bytes(Vec<u8>),
}

/// A matrix without its bytes.
struct Head {
    shape: (usize, usize),
    encoding: Stored,
    gain: f32,
    bytes: usize,
}

/// Takes matrices, and writes them on a thread of its own: the next one is read and packed meanwhile.
pub(super) struct Writer {
    to: Option<SyncSender<Part>>,
    /// Buffers that were written.
    free: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<Pen, String>>>,
    count: usize,
    failed: bool,
    /// Bytes that are packed at a time: see [`BATCH`].
    batch: usize,
}

/// All matrices were written; the key is not known yet.
pub(super) struct Complete {
    pen: Pen,
    tied: bool,
    matrices: Vec<Matrix>,
    vectors: Vec<f32>,
    widths: Vec<usize>,
}

/// The file as far as it was written.
struct Pen {
    file: File,
    at: u64,
    max: u64,
    /// What is not yet a block.
    pending: Vec<u8>,
    matrices: Vec<Matrix>,
    /// The matrix whose bytes come, where it begins, and its sum.
    open: Option<(Head, u64, Sum)>,
}

impl Writer {
    /// Begins a file in place of whatever is there.
    pub(super) fn create(path: &Path, max: u64) -> Result<Self, String> {
        let mut pen = Pen::create(path, max).map_err(|e| format!("{}: {e}", path.display()))?;
        // One waits while one is written: three matrices at most are in memory.
        let (to, from) = sync_channel::<Part>(1);
        let (back, free) = channel();
        let write = move || {
            for part in from {
                pen.part(part, &back).map_err(|e| e.to_string())?;
            }
            Ok(pen)
        };
        let thread = std::thread::Builder::new().name("weights-writer".into());
        Ok(Self {
            to: Some(to),
            free,
            thread: Some(thread.spawn(write).map_err(|e| e.to_string())?),
            count: 0,
            failed: false,
            batch: BATCH,
        })
    }

    /// Takes a matrix, and gives its number.
    ///
    /// # Errors
    /// If it cannot be written; [`Writer::fail`] says why.
    pub(super) fn add(&mut self, weight: PackedWeight) -> CandleResult<usize> {
        self.send(Part::Whole(weight))?;
        self.count += 1;
        Ok(self.count - 1)
    }

    /// Packs a matrix from where its file is mapped, panel by panel, while earlier panels are written.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub(super) fn add_blocks(&mut self, blocks: &Blocks) -> CandleResult<usize> {
        let Some(matrix) = Unpacked::new(blocks) else {
            return self.add(PackedWeight::from_quantized(&blocks.to_quantized()?)?);
        };
        let (panels, panel_bytes) = (matrix.panels(), matrix.panel_bytes());
        self.send(Part::Begin(Head {
            shape: matrix.shape(),
            encoding: Stored::from(matrix.encoding()),
            gain: matrix.gain(),
            bytes: panels * panel_bytes + SLACK,
        }))?;
        let batch = (self.batch / panel_bytes.max(1)).max(1);
        for first in (0..panels).step_by(batch) {
            let count = batch.min(panels - first);
            let mut buffer = self.free.try_recv().unwrap_or_default();
            buffer.resize(count * panel_bytes, 0);
            matrix.pack(first, &mut buffer);
            self.send(Part::Bytes(buffer))?;
        }
        self.send(Part::Bytes(vec![0; SLACK]))?;
        blocks.release();
        self.count += 1;
        Ok(self.count - 1)
    }

    fn send(&mut self, part: Part) -> CandleResult<()> {
        let sent = self.to.as_ref().map(|to| to.send(part).is_ok());
        if sent != Some(true) {
            self.failed = true;
            bail!("the cache cannot be written");
        }
        Ok(())
    }

    /// Whether a matrix could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Why.
    pub(super) fn fail(mut self) -> String {
        match self.join() {
            Err(why) => why,
            Ok(_) => "the file was not completed".into(),
        }
    }

    fn join(&mut self) -> Result<Pen, String> {
        drop(self.to.take());
        let joined = self.thread.take().map(JoinHandle::join);
        match joined {
            Some(Ok(written)) => written,
            _ => Err("the thread that writes ended".into()),
        }
    }

    /// Waits for the last matrix. `model` has their numbers.
    pub(super) fn complete(mut self, model: Decoder<usize>) -> Result<Complete, String> {
        let mut pen = self.join()?;
        let written = std::mem::take(&mut pen.matrices);
        let (mut widths, mut floats) = (Vec::new(), Vec::new());
        for vector in vectors(&model) {
            let values = vector.to_vec1::<f32>().map_err(|e| e.to_string())?;
            widths.push(values.len());
            floats.extend(values);
        }
        let tied = model.spec.tied_embeddings;
        let mut matrices = Vec::with_capacity(written.len());
        let in_order = model.map(|number| {
            matrices.extend(written.get(number).cloned());
            Ok(())
        });
        match in_order {
            Ok(_) if matrices.len() == written.len() => Ok(Complete {
                pen,
                tied,
                matrices,
                vectors: floats,
                widths,
            }),
            _ => Err("matrices were lost".into()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends with its channel, and the file with the thread.
        let _ = self.join();
    }
}

impl Complete {
    /// Ends the file, and takes the permission to write to it away.
    pub(super) fn finish(mut self, key: &str) -> Result<File, String> {
        let bytes: Vec<u8> = self.vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
        let vectors = self.pen.section(&bytes).map_err(|e| e.to_string())?;
        let contents = Contents {
            key: key.into(),
            tied: self.tied,
            matrices: self.matrices,
            widths: self.widths,
            vectors,
        };
        let ending = ending(&contents, self.pen.at)?;
        self.pen.end(&ending).map_err(|e| e.to_string())
    }
}

impl Pen {
    fn create(path: &Path, max: u64) -> io::Result<Self> {
        // A part that an ended process left behind: the lock says that none is being written.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Self {
            file: options.open(path)?,
            at: 0,
            max,
            pending: Vec::with_capacity(BLOCK),
            matrices: Vec::new(),
            open: None,
        })
    }

    fn part(&mut self, part: Part, back: &Sender<Vec<u8>>) -> io::Result<()> {
        match part {
            Part::Whole(weight) => {
                self.begin(Head {
                    shape: (weight.out, weight.columns),
                    encoding: Stored::from(weight.encoding),
                    gain: weight.gain,
                    bytes: weight.raw().len(),
                })?;
                self.more(weight.raw())
            }
            Part::Begin(head) => self.begin(head),
            Part::Bytes(bytes) => {
                self.more(&bytes)?;
                // After the last matrix it is not wanted.
                if bytes.len() > SLACK {
                    let _ = back.send(bytes);
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, head: Head) -> io::Result<()> {
        let at = self.align(head.bytes)?;
        self.open = Some((head, at, Sum::default()));
        Ok(())
    }

    /// Bytes of the matrix that was begun; after the last, it is one of the file's.
    fn more(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((head, at, mut sum)) = self.open.take() else {
            return Err(io::Error::other("bytes of no matrix"));
        };
        sum.add(bytes);
        self.put(bytes)?;
        if self.at < at + head.bytes as u64 {
            self.open = Some((head, at, sum));
            return Ok(());
        }
        self.matrices.push(Matrix {
            out: head.shape.0,
            columns: head.shape.1,
            encoding: head.encoding,
            gain: head.gain.to_bits(),
            section: Section {
                at,
                bytes: head.bytes as u64,
                sum: sum.finish(),
            },
        });
        Ok(())
    }

    fn section(&mut self, bytes: &[u8]) -> io::Result<Section> {
        let at = self.align(bytes.len())?;
        self.put(bytes)?;
        let mut sum = Sum::default();
        sum.add(bytes);
        Ok(Section {
            at,
            bytes: bytes.len() as u64,
            sum: sum.finish(),
        })
    }

    /// Goes to where a section of so many bytes begins.
    fn align(&mut self, bytes: usize) -> io::Result<u64> {
        let at = self.at.next_multiple_of(ALIGNMENT);
        if at + bytes as u64 > self.max {
            let gib = self.max as f64 / (1u64 << 30) as f64;
            let what = format!("they take more than {gib:.1} GiB (engine.weights_cache_gb)");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
        }
        let padding = [0; ALIGNMENT as usize];
        self.put(&padding[..(at - self.at) as usize])?;
        Ok(at)
    }

    /// Appends bytes: whole blocks at once, what is left with what comes next.
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        if !self.pending.is_empty() {
            let missing = (BLOCK - self.pending.len()).min(bytes.len());
            self.pending.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.pending.len() < BLOCK {
                return Ok(());
            }
            self.file.write_all(&self.pending)?;
            self.pending.clear();
        }
        let whole = bytes.len() / BLOCK * BLOCK;
        self.file.write_all(&bytes[..whole])?;
        self.pending.extend_from_slice(&bytes[whole..]);
        Ok(())
    }

    fn end(mut self, ending: &[u8]) -> Result<File, io::Error> {
        self.put(ending)?;
        self.file.write_all(&self.pending)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let read_only = std::fs::Permissions::from_mode(0o444);
            self.file.set_permissions(read_only)?;
        }
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType::*, QStorage, QTensor};
    use realign_model::mapped::blocks_of;

    use super::*;

    /// Buffers are used again, by matrices of other types too: nothing of what they held may be left.
    #[test]
    fn a_matrix_written_in_batches_has_the_bytes_of_one_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let mut writer = Writer::create(&path, 1 << 30).unwrap();
        writer.batch = 40_000;
        let mut state = 3u64;
        let mut byte = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 57) as u8
        };
        let mut expected = Vec::new();
        for dtype in [Q8_0, Q6K, Q5K, Q4K, Q3K, Q2K, Q5_1, Q5_0, Q4_1, Q4_0, Q6K] {
            let bytes = 330 * 768 / dtype.block_size() * dtype.type_size();
            let data: Vec<u8> = (0..bytes).map(|_| byte()).collect();
            let storage = QStorage::from_data(data.into(), &Device::Cpu, dtype).unwrap();
            let tensor = QTensor::new(storage, (330, 768)).unwrap();
            let blocks = blocks_of(&tensor, &mut tempfile::tempfile().unwrap());
            writer.add_blocks(&blocks).unwrap();
            expected.push((dtype, PackedWeight::from_quantized(&tensor).unwrap()));
        }
        let mut pen = writer.join().unwrap();
        let pending = std::mem::take(&mut pen.pending);
        pen.file.write_all(&pending).unwrap();
        let map = super::super::map::map(&pen.file).unwrap();
        for (matrix, (dtype, weight)) in pen.matrices.iter().zip(&expected) {
            let found = &map[matrix.section.at as usize..][..matrix.section.bytes as usize];
            assert!(found == weight.raw(), "{dtype:?}");
            assert_eq!(matrix.section.sum, super::super::format::sum(found));
        }
        assert_eq!(pen.matrices.len(), expected.len());
    }
}
