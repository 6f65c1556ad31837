//! The pointer of a server that shares a store: the store's `CURRENT` first, then the file here.

use std::sync::Arc;

use super::super::pointer::CurrentFile;
use super::Member;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_engine::adapter::{AdapterError, AdapterStore};

/// The file `CURRENT` of this server, written after the store's.
pub(in crate::control) struct SharedFile {
    pub(in crate::control) member: Arc<Member>,
    pub(in crate::control) local: Arc<AdapterStore>,
}

impl CurrentFile for SharedFile {
    fn current(&self) -> Result<Option<GenerationId>, AdapterError> {
        // The store's is compared with what serves in `sync`, which goes forward where they differ.
        self.local.current()
    }

    fn point_to(&self, generation: &Arc<Generation>, pinned: bool) -> Result<(), AdapterError> {
        self.member.publish(generation, pinned)?;
        CurrentFile::point_to(&*self.local, generation, pinned)
    }

    fn keep(&self) -> Result<(), AdapterError> {
        CurrentFile::keep(&*self.local)
    }

    fn unpin(&self, serving: &Arc<Generation>) -> Result<(), AdapterError> {
        self.member.publish(serving, false)
    }
}
