//! What is brought into the second cache while something else is computed.
//!
//! The first cache has room for few lines that are on their way, which is why reading at the last moment reaches a third of
//! the memory's speed. A segment ahead, into the second cache, reading and computing overlap.

use super::lanes::Lanes;
use super::segment::SEGMENT;
use crate::kv::KvCache;
use realign_model::BLOCK_TOKENS;

/// A segment that will be read next.
#[derive(Clone, Copy)]
pub(crate) struct Upcoming<'a> {
    /// Its sequence's blocks.
    pub(crate) blocks: &'a [u32],
    /// Which segment.
    pub(crate) segment: usize,
    /// Tokens that are there.
    pub(crate) end: usize,
    /// Layer and head.
    pub(crate) at: (usize, usize),
}

/// Blocks of a segment.
const BLOCKS: usize = SEGMENT / BLOCK_TOKENS;

/// The lines of a segment that were not asked for yet.
pub(super) struct Ahead {
    /// Where its blocks begin.
    blocks: [*const u8; BLOCKS],
    /// Blocks that are left, and the next one.
    count: usize,
    next: usize,
    line: *const u8,
    /// Lines that are left of a block, and those of every block.
    left: isize,
    lines: isize,
}

impl Ahead {
    /// Nothing, or the lines of what comes.
    pub(super) fn new(kv: &KvCache, upcoming: Option<Upcoming>) -> Self {
        let mut ahead = Self {
            blocks: [std::ptr::null(); BLOCKS],
            count: 0,
            next: 0,
            line: std::ptr::null(),
            left: 0,
            lines: 0,
        };
        let Some(Upcoming {
            blocks,
            segment,
            end,
            at,
        }) = upcoming
        else {
            return ahead;
        };
        let (from, to) = (segment * SEGMENT, end.min((segment + 1) * SEGMENT));
        let blocks = blocks.get(from / BLOCK_TOKENS..to.div_ceil(BLOCK_TOKENS));
        for (place, block) in ahead.blocks.iter_mut().zip(blocks.unwrap_or_default()) {
            let part = kv.bytes(at.0, *block, at.1);
            (*place, ahead.lines) = (part.as_ptr(), part.len().div_ceil(LINE) as isize);
            ahead.count += 1;
        }
        ahead
    }

    /// Asks for the next `count` lines, and a few beyond a block's end. No function is called for it, because that would cost
    /// the caller its registers.
    #[inline(always)]
    pub(super) fn bring<V: Lanes>(&mut self, count: usize) {
        if self.left <= 0 {
            if self.next == self.count {
                return;
            }
            self.line = self.blocks[self.next % BLOCKS];
            self.left = self.lines;
            self.next += 1;
        }
        for i in 0..count {
            V::prefetch(self.line.wrapping_add(i * LINE));
        }
        self.line = self.line.wrapping_add(count * LINE);
        self.left -= count as isize;
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;
