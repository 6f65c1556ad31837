//! What several servers share: generations, which of them is current, and who may publish.
//!
//! ```text
//! PREFIX/CURRENT                  epoch, generation, writer, fencing token; moved by compare-and-swap
//! PREFIX/lease.json               who may publish; moved by compare-and-swap
//! PREFIX/history/<epoch>.json     what CURRENT said in each epoch; never changed
//! PREFIX/generations/<id>/...     an adapter and its manifest; never changed
//! PREFIX/replicas/<name>.json     what a server says of itself, and until when that holds
//! ```
//!
//! The store decides nothing by time. A lease is taken over when the taker has seen it unchanged for
//! longer than its holder may use it, each by its own monotonic clock. The one that takes it over writes its
//! fencing token into `CURRENT` before anything else, so a write by an earlier holder fails there even
//! if that holder knows nothing yet.

mod bucket;
mod controller;
mod error;
mod generations;
mod http;
mod objects;
mod records;
mod store;
#[cfg(test)]
mod tests;
mod url;

pub use controller::{Controller, Standing};
pub use error::StoreError;
pub use generations::{FILES, Files};
pub use records::{Current, Lease, Replica};
pub use store::{Store, Unreadable};
pub use url::{StoreUrl, UrlError};
