//! Continuous batching over a paged KV cache. Knows no HTTP.

pub mod request;
