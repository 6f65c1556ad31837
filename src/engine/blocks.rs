//! The pool of KV blocks, and the prefix cache built on it.
//!
//! Blocks are reference-counted: sequences of one generation with the same prefix hold the same
//! full blocks. Only full blocks are shared and a full block is never written again, so nothing is
//! ever copied. A block without holders is free but keeps its content until it is reused, least
//! recently used first.

use std::collections::HashMap;
use std::sync::Arc;

use super::free_list::FreeList;
use super::prefix::{BlockKey, KeyChain};
use crate::adapter::generation::GenerationId;

/// The blocks of one sequence, in order.
#[derive(Debug)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
    /// How many of them, from the first, are full and offered to others.
    sealed: usize,
    keys: KeyChain,
    /// The same blocks as a batch refers to them; rebuilt only after the table changed.
    view: Option<Arc<[u32]>>,
}

impl BlockTable {
    /// An empty table for a sequence on a generation.
    pub(crate) fn new(generation: &GenerationId) -> Self {
        Self {
            blocks: Vec::new(),
            sealed: 0,
            keys: KeyChain::new(generation),
            view: None,
        }
    }

    /// The blocks, shared with the batch they run in.
    pub(crate) fn view(&mut self) -> Arc<[u32]> {
        self.view
            .get_or_insert_with(|| self.blocks.as_slice().into())
            .clone()
    }

    /// The key of block `index`, if it has been computed.
    pub(crate) fn key(&self, index: usize) -> Option<&BlockKey> {
        self.keys.get(index)
    }
}

/// How many sequences hold a block, and what it holds.
#[derive(Clone, Debug, Default)]
struct Block {
    holders: u32,
    /// Set while the index refers to this block.
    key: Option<BlockKey>,
}

/// Hands out block numbers; the storage itself is the executor's.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: FreeList,
    /// Full blocks by content, free ones included.
    index: HashMap<BlockKey, u32>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `total` free blocks of `block_size` tokens.
    pub(crate) fn new(total: usize, block_size: usize) -> Self {
        Self {
            blocks: vec![Block::default(); total],
            free: FreeList::full(total),
            index: HashMap::new(),
            block_size,
        }
    }

    /// Gives an empty table the longest cached prefix of `tokens`. Returns the number of tokens
    /// found: at most all but the last one, which has to run for its logits.
    pub(crate) fn lease_prefix(&mut self, table: &mut BlockTable, tokens: &[u32]) -> usize {
        debug_assert!(table.blocks.is_empty());
        let most = tokens.len().saturating_sub(1) / self.block_size;
        for key in table.keys.upto(tokens, self.block_size).iter().take(most) {
            let Some(&number) = self.index.get(key) else {
                break;
            };
            let block = &mut self.blocks[number as usize];
            if block.holders == 0 {
                self.free.remove(number);
            }
            block.holders += 1;
            table.blocks.push(number);
        }
        table.sealed = table.blocks.len();
        table.view = None;
        table.sealed * self.block_size
    }

    /// Extends a table until it holds `tokens` tokens. `false` if too few blocks are free; nothing
    /// was taken then.
    pub(crate) fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = tokens
            .div_ceil(self.block_size)
            .saturating_sub(table.blocks.len());
        if missing > self.free.len() {
            return false;
        }
        for number in std::iter::from_fn(|| self.free.pop_first()).take(missing) {
            let block = &mut self.blocks[number as usize];
            block.holders = 1;
            if let Some(key) = block.key.take() {
                self.index.remove(&key);
            }
            table.blocks.push(number);
            table.view = None;
        }
        true
    }

    /// Adds the full blocks among the first `computed` tokens to the prefix cache.
    pub(crate) fn seal(&mut self, table: &mut BlockTable, tokens: &[u32], computed: usize) {
        let full = computed / self.block_size;
        if full <= table.sealed {
            return;
        }
        let keys = table.keys.upto(&tokens[..computed], self.block_size);
        for (&number, key) in table.blocks.iter().zip(keys).take(full).skip(table.sealed) {
            // Another sequence may have computed the same block: the first one is kept.
            self.index.entry(*key).or_insert_with(|| {
                self.blocks[number as usize].key = Some(*key);
                number
            });
        }
        table.sealed = full;
    }

    /// Takes a sequence's blocks out of the prefix cache: what they hold is not to be used again.
    pub(crate) fn forget(&mut self, table: &BlockTable) {
        for &number in &table.blocks {
            if let Some(key) = self.blocks[number as usize].key.take() {
                self.index.remove(&key);
            }
        }
    }

    /// Releases all blocks of a sequence. They stay in the prefix cache until they are reused.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        table.view = None;
        table.sealed = 0;
        // From the end, so that the beginning of a prefix, without which the rest cannot be found,
        // is reused last.
        for number in table.blocks.drain(..).rev() {
            let block = &mut self.blocks[number as usize];
            block.holders -= 1;
            match (block.holders, block.key) {
                (0, Some(_)) => self.free.push_last(number),
                (0, None) => self.free.push_first(number),
                _ => {}
            }
        }
    }

    /// Tokens per block.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Tokens that the whole pool can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.blocks.len() * self.block_size
    }

    /// Share of blocks that sequences hold, 0 to 1; blocks that are only cached do not count.
    pub(crate) fn usage(&self) -> f64 {
        let held = self.blocks.len() - self.free.len();
        held as f64 / self.blocks.len().max(1) as f64
    }

    /// Checks the pool against the tables of all sequences that hold blocks.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut holders = vec![0; self.blocks.len()];
        let mut writers = vec![0; self.blocks.len()];
        for table in tables {
            for (i, &number) in table.blocks.iter().enumerate() {
                holders[number as usize] += 1;
                writers[number as usize] += u32::from(i >= table.sealed);
            }
        }
        for (number, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.holders, holders[number], "holders of block {number}");
            assert!(
                writers[number] == 0 || block.holders == 1,
                "block {number} is written by one sequence and held by others"
            );
            if let Some(key) = &block.key {
                assert_eq!(self.index[key], number as u32);
            }
        }
        let keyed = self.blocks.iter().filter(|b| b.key.is_some()).count();
        assert_eq!(keyed, self.index.len(), "the index leads to keyed blocks");
        let held = holders.iter().filter(|h| **h > 0).count();
        assert_eq!(held + self.free.len(), self.blocks.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(generation: &str) -> BlockTable {
        BlockTable::new(&GenerationId(generation.into()))
    }

    /// A sequence that has computed all its tokens.
    fn computed(pool: &mut BlockPool, generation: &str, tokens: &[u32]) -> (BlockTable, usize) {
        let mut table = table(generation);
        let cached = pool.lease_prefix(&mut table, tokens);
        assert!(pool.grow(&mut table, tokens.len()));
        pool.seal(&mut table, tokens, tokens.len());
        (table, cached)
    }

    #[test]
    fn blocks_are_taken_whole_or_not_at_all() {
        let mut pool = BlockPool::new(3, 4);
        let (mut a, mut b) = (table("a"), table("a"));
        assert!(pool.grow(&mut a, 5));
        assert_eq!(*a.view(), [0, 1]);
        assert!(pool.grow(&mut a, 8), "already held");
        assert!(!pool.grow(&mut b, 8), "one block is left");
        assert!(b.view().is_empty());
        assert!(pool.grow(&mut b, 1));
        assert_eq!(pool.usage(), 1.0);
        pool.release(&mut a);
        assert!(pool.grow(&mut b, 12));
        assert_eq!(*b.view(), [2, 0, 1]);
        pool.check([&a, &b].into_iter());
    }

    #[test]
    fn sequences_that_begin_alike_share_full_blocks() {
        let mut pool = BlockPool::new(8, 2);
        let (mut a, cached) = computed(&mut pool, "g", &[1, 2, 3, 4, 5]);
        assert_eq!(cached, 0);
        let (mut b, cached) = computed(&mut pool, "g", &[1, 2, 3, 9]);
        assert_eq!(cached, 2);
        assert_eq!(a.view()[0], b.view()[0]);
        let (mut c, cached) = computed(&mut pool, "g", &[1, 2, 3, 4]);
        assert_eq!(cached, 2, "the last token has to run");
        let (d, cached) = computed(&mut pool, "other", &[1, 2, 3, 4, 5]);
        assert_eq!(cached, 0, "another generation's keys and values differ");
        pool.check([&a, &b, &c, &d].into_iter());
        for table in [&mut a, &mut b, &mut c] {
            pool.release(table);
        }
        pool.check([&d].into_iter());
        assert_eq!(pool.usage(), 3.0 / 8.0, "what is cached is not in use");
        let (e, cached) = computed(&mut pool, "g", &[1, 2, 3, 4, 5]);
        assert_eq!(cached, 4, "released blocks stay findable");
        pool.check([&d, &e].into_iter());
    }

    #[test]
    fn what_was_longest_unused_goes_first_and_a_prefix_outlives_its_end() {
        let mut pool = BlockPool::new(6, 2);
        let (mut old, _) = computed(&mut pool, "g", &[1, 1, 2, 2]);
        let (mut young, _) = computed(&mut pool, "g", &[3, 3, 4, 4]);
        pool.release(&mut old);
        pool.release(&mut young);
        // Two blocks were never used, then `old`'s end goes.
        let (mut other, _) = computed(&mut pool, "g", &[7, 7, 8, 8, 9]);
        pool.release(&mut other);
        // The block of the single 9 holds nothing that could be found, so it goes first.
        let (mut a, old_cached) = computed(&mut pool, "g", &[1, 1, 2]);
        assert_eq!(old_cached, 2);
        pool.release(&mut a);
        let (b, young_cached) = computed(&mut pool, "g", &[3, 3, 4, 4, 5]);
        assert_eq!(young_cached, 4);
        pool.check([&b].into_iter());
    }
}
