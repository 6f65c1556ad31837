//! Free blocks in the order in which they are reused.

/// Marks the end of the list and blocks that are not in it.
const NONE: u32 = u32::MAX;

/// A doubly linked list over block numbers: O(1) at both ends and for removal from the middle,
/// which a cache hit on a free block needs.
#[derive(Debug)]
pub(crate) struct FreeList {
    /// Per block: the one before and the one after it.
    links: Vec<[u32; 2]>,
    member: Vec<bool>,
    first: u32,
    last: u32,
    length: usize,
}

impl FreeList {
    /// All of `0..total`, the lowest first, so that a small load stays in few pages.
    pub(crate) fn full(total: usize) -> Self {
        let mut list = Self {
            links: vec![[NONE; 2]; total],
            member: vec![false; total],
            first: NONE,
            last: NONE,
            length: 0,
        };
        (0..total as u32).for_each(|block| list.push_last(block));
        list
    }

    /// Number of free blocks.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Removes and returns the block to reuse next.
    pub(crate) fn pop_first(&mut self) -> Option<u32> {
        let block = self.first;
        (block != NONE).then(|| {
            self.remove(block);
            block
        })
    }

    /// Adds a block that is to be reused before all others.
    pub(crate) fn push_first(&mut self, block: u32) {
        self.insert(block, [NONE, self.first]);
    }

    /// Adds a block that is to be reused after all others.
    pub(crate) fn push_last(&mut self, block: u32) {
        self.insert(block, [self.last, NONE]);
    }

    /// Removes a block from anywhere in the list, in O(1).
    pub(crate) fn remove(&mut self, block: u32) {
        debug_assert!(self.member[block as usize], "block {block} is not free");
        let [before, after] = self.links[block as usize];
        self.join(before, after);
        self.member[block as usize] = false;
        self.length -= 1;
    }

    fn insert(&mut self, block: u32, [before, after]: [u32; 2]) {
        debug_assert!(!self.member[block as usize], "block {block} is free twice");
        self.join(before, block);
        self.join(block, after);
        self.member[block as usize] = true;
        self.length += 1;
    }

    fn join(&mut self, before: u32, after: u32) {
        match before {
            NONE => self.first = after,
            b => self.links[b as usize][1] = after,
        }
        match after {
            NONE => self.last = before,
            a => self.links[a as usize][0] = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_and_the_middle() {
        let mut list = FreeList::full(4);
        list.remove(2);
        list.remove(0);
        list.push_first(2);
        list.push_last(0);
        assert_eq!(list.len(), 4);
        let order: Vec<u32> = std::iter::from_fn(|| list.pop_first()).collect();
        assert_eq!(order, [2, 1, 3, 0]);
        assert_eq!(list.len(), 0);
        list.push_last(3);
        assert_eq!((list.pop_first(), list.pop_first()), (Some(3), None));
    }
}
