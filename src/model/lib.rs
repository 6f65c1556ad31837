//! What a model is: its shapes, weights as files store them, tokenizer, chat template and adapters,
//! and the traits and words by which backends serve and train it. Knows no device.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may sleep"))]

pub mod activation;
pub mod assemble;
pub mod attention;
pub mod backend;
pub mod blocks;
pub mod cache;
pub mod chat;
pub mod compute;
pub mod decoder;
pub mod draw;
pub mod error;
pub mod experts;
mod gguf;
pub mod host_memory;
pub mod hub;
pub mod learning;
pub mod linear;
pub mod loaded;
pub mod lora;
pub mod mapped;
pub mod memory;
pub mod packing;
pub mod quantise;
pub mod random;
pub mod rope_table;
pub mod segment;
pub mod shapes;
mod shards;
pub mod source;
pub mod spec;
pub mod step;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod time_slices;
pub mod tokenizer;
pub mod vector;
mod weights;

pub use activation::Activation;
pub use attention::AttentionShape;
pub use backend::{Backend, ComputeDevice, Executor, ExecutorOptions, KvType, Staged};
pub use chat::{CallStyle, ChatError, ChatMessage, ChatRole, ChatTemplate};
pub use decoder::{Decoder, Layer, Mlp, StoredMatrix};
pub use draw::DrawRequest;
pub use error::ModelError;
pub use experts::Experts;
pub use learning::{
    Dropout, LearningPasses, Measured, PassOptions, Precision, Recompute, SiteGradients, Slopes,
    TokenLoss,
};
pub use linear::Linear;
pub use loaded::{Described, LoadedModel, ModelChoice};
pub use lora::{LoraPair, LoraSite, LoraWeights, Projection};
pub use quantise::Quantisation;
pub use rope_table::RopeTable;
pub use segment::{Run, Segment};
pub use source::{ModelFiles, ModelSource};
pub use spec::ModelSpec;
pub use step::{AdapterSpan, BLOCK_TOKENS, Outputs, PagedSequence, Step};
pub use time_slices::TimeSlices;
pub use tokenizer::{StreamDecoder, Tokenizer};
