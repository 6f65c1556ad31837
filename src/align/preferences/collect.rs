//! Collects pairs while files are read, within bounds on memory.

use std::collections::HashMap;
use std::io::BufRead;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::dataset::{Contradiction, Dataset, DatasetError, SkippedLine, parse};
use super::lines::Bounds;
use super::{Pair, PairId, rows};

/// Memory that preference data may take where no configuration says otherwise, bytes.
pub(super) const DEFAULT_MAX_BYTES: u64 = 2048 << 20;
/// Files may unpack to this many times the memory that their pairs may take: most formats have
/// columns that are not kept, and copies of a pair are kept once.
pub(super) const UNPACKED_PER_KEPT: u64 = 8;
/// Approximate memory of a pair, or of the report on a skipped line, besides its text, bytes.
const PAIR_BYTES: u64 = 640;
const SKIPPED_BYTES: u64 = 160;

/// What was collected so far.
pub(super) struct Collector {
    /// Approximate memory of what was collected, bytes.
    bytes: u64,
    /// Nothing more is collected once `bytes` exceeds this.
    max_bytes: u64,
    /// Unpacked bytes that may still be read.
    unread: u64,
    pairs: Vec<Pair>,
    /// Index of each pair in `pairs`.
    seen: HashMap<PairId, usize>,
    /// By [`Pair::unordered_hash`]: index of the first pair with these responses, and its order.
    compared: HashMap<[u8; 32], (usize, bool)>,
    skipped: Vec<SkippedLine>,
    duplicates: usize,
    contradictions: Vec<Contradiction>,
}

impl Default for Collector {
    fn default() -> Self {
        Collector::within(DEFAULT_MAX_BYTES)
    }
}

impl Collector {
    /// An empty one that keeps at most `max_bytes`.
    pub(super) fn within(max_bytes: u64) -> Self {
        Collector {
            bytes: 0,
            max_bytes,
            unread: max_bytes.saturating_mul(UNPACKED_PER_KEPT),
            pairs: Vec::new(),
            seen: HashMap::new(),
            compared: HashMap::new(),
            skipped: Vec::new(),
            duplicates: 0,
            contradictions: Vec::new(),
        }
    }

    /// Reads lines of at most `max_line` bytes.
    pub(super) fn read(
        &mut self,
        file: &Path,
        input: impl BufRead,
        max_line: usize,
    ) -> Result<(), DatasetError> {
        let bounds = Bounds {
            line: max_line,
            total: self.unread,
            whole: self.max_bytes,
        };
        let mut last = 0;
        let read = rows::for_each(file, input, bounds, &mut |row| {
            last = row.line;
            match parse(file, row, max_line) {
                Some(Ok(parsed)) => self.add(parsed.pair),
                Some(Err(skipped)) => self.skip(skipped),
                None => {}
            }
            match self.bytes > self.max_bytes {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        self.unread = self.unread.saturating_sub(read);
        if self.bytes > self.max_bytes {
            return Err(DatasetError::TooLarge {
                path: file.to_owned(),
                line: last,
                limit: self.max_bytes,
            });
        }
        Ok(())
    }

    fn skip(&mut self, line: SkippedLine) {
        let text = line.reason.len() + line.source.file.as_os_str().len();
        self.bytes += text as u64 + SKIPPED_BYTES;
        self.skipped.push(line);
    }

    fn add(&mut self, pair: Pair) {
        let known = self.seen.get(&pair.id).copied();
        let Some(first) = known.and_then(|index| self.pairs.get_mut(index)) else {
            self.seen.insert(pair.id.clone(), self.pairs.len());
            let (hash, order) = pair.unordered_hash();
            let (index, first) = *self
                .compared
                .entry(hash)
                .or_insert((self.pairs.len(), order));
            if first != order
                && let Some(earlier) = self.pairs.get(index)
            {
                self.bytes += PAIR_BYTES;
                self.contradictions.push(Contradiction {
                    first: earlier.source.clone(),
                    second: pair.source.clone(),
                });
            }
            self.bytes += pair.memory_bytes() + PAIR_BYTES;
            self.pairs.push(pair);
            return;
        };
        self.duplicates += 1;
        // A pair marked as held out must not be trained on, whichever copy is read first.
        // `None < Some(false) < Some(true)`.
        first.holdout = first.holdout.max(pair.holdout);
    }

    pub(super) fn finish(self) -> Dataset {
        let Collector {
            mut pairs,
            skipped,
            duplicates,
            contradictions,
            ..
        } = self;
        pairs.sort_by(|a, b| a.id.cmp(&b.id));
        let mut hasher = Sha256::new();
        for pair in &pairs {
            // Ids have a fixed length and marks one byte, so no separator is needed.
            hasher.update(&pair.id.0);
            hasher.update(match pair.holdout {
                None => b"?",
                Some(true) => b"h",
                Some(false) => b"t",
            });
        }
        Dataset {
            pairs,
            skipped,
            duplicates,
            unread: Vec::new(),
            contradictions,
            digest: hex::encode(hasher.finalize()),
        }
    }
}
