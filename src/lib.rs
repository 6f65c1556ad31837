//! realign: an embedded, OpenAI-compatible LLM inference server whose alignment is live.
//!
//! The modules stand in the order in which a policy file flows through them:
//!
//! ```text
//! policy ─▶ oracle ─▶ triage ─▶ impact ─▶ train ─▶ gate ─▶ adapter (publish, swap) ─▶ engine ─▶ api
//!             ▲          ▲                                                             ▲
//!        preferences ────┘                                         model (shared by train and engine)
//! ```
//!
//! `control` is the only module that joins them; ARCHITECTURE.md states who may import whom.

pub mod clock;
pub mod config;
pub mod ranges;
pub mod vocabulary;

pub mod adapter;
pub mod gate;
pub mod impact;
pub mod learn;
pub mod oracle;
pub mod policy;
pub mod preferences;
pub mod train;
pub mod triage;

pub mod api;
pub mod engine;
pub use realign_model as model;
pub mod telemetry;

pub mod bench;
pub mod cli;
pub mod control;
pub mod evaluation;
pub mod plot;
pub mod server;
pub mod state;
