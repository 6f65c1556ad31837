//! realign: an embedded, OpenAI-compatible LLM inference server whose alignment is live.
//!
//! ARCHITECTURE.md has the map of the crates behind this one.

pub use realign_server as server;
