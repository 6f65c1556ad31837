//! The prefix cache's key of a full KV block: a hash over the generation that computed it and every
//! token up to the block's end.

use sha2::{Digest, Sha256};

use crate::adapter::generation::GenerationId;

/// SHA-256 over (parent's key, the block's tokens); the first block's parent is the generation.
///
/// Keys and values of a token depend on all tokens before it and on the weights, so equal keys
/// mean equal content. The hash is cryptographic because clients choose the tokens: a collision
/// would let one request read another's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey([u8; 32]);

impl BlockKey {
    fn of_generation(id: &GenerationId) -> Self {
        Self(Sha256::digest(id.0.as_bytes()).into())
    }

    fn child(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// The keys of a sequence's full blocks, computed on demand.
#[derive(Debug)]
pub(crate) struct KeyChain {
    root: BlockKey,
    keys: Vec<BlockKey>,
}

impl KeyChain {
    /// The chain of a sequence on a generation.
    pub(crate) fn new(generation: &GenerationId) -> Self {
        Self {
            root: BlockKey::of_generation(generation),
            keys: Vec::new(),
        }
    }

    /// The keys of all full blocks of `tokens`, which may only have grown since the last call.
    pub(crate) fn upto(&mut self, tokens: &[u32], block_size: usize) -> &[BlockKey] {
        for block in tokens.chunks_exact(block_size).skip(self.keys.len()) {
            let parent = self.keys.last().unwrap_or(&self.root);
            self.keys.push(parent.child(block));
        }
        &self.keys
    }

    /// The key of block `index`, if an earlier [`KeyChain::upto`] computed it.
    pub(crate) fn get(&self, index: usize) -> Option<&BlockKey> {
        self.keys.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_generation_and_all_tokens_before() {
        let chain = |generation: &str, tokens: &[u32]| {
            let mut chain = KeyChain::new(&GenerationId(generation.into()));
            chain.upto(tokens, 2).to_vec()
        };
        let a = chain("a", &[1, 2, 3, 4, 5]);
        assert_eq!(a.len(), 2, "the last block is not full");
        assert_eq!(a, chain("a", &[1, 2, 3, 4]));
        assert_eq!(a[0], chain("a", &[1, 2, 4, 3])[0]);
        assert_ne!(a[1], chain("a", &[1, 2, 4, 3])[1]);
        assert_ne!(a[1], chain("a", &[2, 1, 3, 4])[1]);
        assert!(chain("b", &[1, 2, 3, 4]).iter().all(|key| !a.contains(key)));
        let mut grown = KeyChain::new(&GenerationId("a".into()));
        grown.upto(&[1, 2, 3], 2);
        assert_eq!(grown.upto(&[1, 2, 3, 4, 5], 2), a);
    }
}
