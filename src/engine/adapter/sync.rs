//! What generations are shared with. `proofs/registry` puts loom's in its place.

pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(crate) use arc_swap::ArcSwap;
