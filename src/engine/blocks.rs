//! The pool of KV blocks.

/// Hands out block numbers; the storage itself is [`crate::model::PagedKv`].
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    total: usize,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `total` free blocks of `block_size` tokens.
    pub fn new(total: usize, block_size: usize) -> Self {
        // Reversed, so that the first blocks go out first and a small load stays in few pages.
        Self {
            free: (0..total as u32).rev().collect(),
            total,
            block_size,
        }
    }

    /// Extends `blocks` until they hold `tokens` tokens. On `false` nothing was taken.
    pub fn grow(&mut self, blocks: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = tokens
            .div_ceil(self.block_size)
            .saturating_sub(blocks.len());
        if missing > self.free.len() {
            return false;
        }
        blocks.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes all blocks of a sequence back.
    pub fn release(&mut self, blocks: &mut Vec<u32>) {
        self.free.extend(blocks.drain(..).rev());
    }

    /// Tokens the whole pool holds.
    pub fn capacity(&self) -> usize {
        self.total * self.block_size
    }

    /// Used share, 0 to 1.
    pub fn usage(&self) -> f64 {
        (self.total - self.free.len()) as f64 / self.total.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_whole_or_not_at_all() {
        let mut pool = BlockPool::new(3, 4);
        let (mut a, mut b) = (vec![], vec![]);
        assert!(pool.grow(&mut a, 5));
        assert_eq!(a, [0, 1]);
        assert!(pool.grow(&mut a, 8), "already held");
        assert!(!pool.grow(&mut b, 8), "one block is left");
        assert!(b.is_empty());
        assert!(pool.grow(&mut b, 1));
        assert_eq!(pool.usage(), 1.0);
        pool.release(&mut a);
        assert!(pool.grow(&mut b, 12));
        assert_eq!(b, [2, 0, 1]);
    }
}
