//! The registry of generations on loom's locks, for `tests/interleavings.rs`.
//!
//! Modelled: every order of what threads do under the registry's lock and of loads and stores of the pointer, the
//! latter as one step each, which is what arc-swap promises. Not modelled: the inside of arc-swap and of `Arc`.

extern crate self as realign_core;

#[path = "../../../src/core/leases.rs"]
mod leases;
pub use leases::LeaseCounts;

pub mod adapter {
    //! The modules beside the registry, as far as it uses them.

    pub mod generation;
    #[path = "../../../../src/engine/adapter/registry.rs"]
    pub mod registry;
    mod sync;

    /// Why a generation does not load.
    #[derive(Debug, thiserror::Error)]
    pub enum AdapterError {
        /// There is none of that id.
        #[error("there is no generation {id}")]
        Unknown {
            /// The id.
            id: generation::GenerationId,
        },
    }
}
