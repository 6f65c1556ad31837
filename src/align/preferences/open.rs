//! Opens files of preference data as byte streams: plain, gzip or zstd, detected by their first
//! bytes rather than their names.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use realign_core::files;
use ruzstd::decoding::StreamingDecoder;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BUFFER: usize = 1 << 18;

/// Opens a file and decompresses it while it is read; uses no more memory than a compression
/// window.
///
/// # Errors
/// If it cannot be opened, is not a regular file, or its first frame is broken.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    decompressed(BufReader::with_capacity(BUFFER, files::open(path)?))
}

/// Like [`open`], for any reader.
///
/// # Errors
/// If it cannot be read or its first frame is broken.
pub(crate) fn decompressed(mut input: impl BufRead + 'static) -> io::Result<Box<dyn BufRead>> {
    let start = input.fill_buf()?;
    if start.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::with_capacity(
            BUFFER,
            MultiGzDecoder::new(input),
        )));
    }
    if start.starts_with(&ZSTD) {
        let frames = ZstdFrames {
            decoder: Some(frame(input)?),
        };
        return Ok(Box::new(BufReader::with_capacity(BUFFER, frames)));
    }
    Ok(Box::new(input))
}

type Frame<R> = StreamingDecoder<R, ruzstd::decoding::FrameDecoder>;

fn frame<R: Read>(input: R) -> io::Result<Frame<R>> {
    StreamingDecoder::new(input).map_err(|error| io::Error::other(format!("zstd: {error}")))
}

/// Reads consecutive zstd frames, as parallel compressors write them.
struct ZstdFrames<R: BufRead> {
    decoder: Option<Frame<R>>,
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.decoder else {
                return Ok(0);
            };
            let count = decoder.read(into)?;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            let Some(done) = self.decoder.take() else {
                return Ok(0);
            };
            let mut input = done.into_inner();
            if input.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.decoder = Some(frame(input)?);
        }
    }
}
