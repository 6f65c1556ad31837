//! The decoder: one definition for serving and training, and everything that comes in a model's
//! files (weights, tokenizer, chat template). A crate of its own, `realign::model` to the others; it
//! imports none of them.

pub mod chat;
pub mod compute;
pub mod cpu;
pub mod cuda;
pub mod decoder;
pub mod device;
pub mod draw;
pub mod error;
pub mod hub;
pub mod integer;
pub mod linear;
pub mod loaded;
pub mod lora;
pub mod ops;
pub mod packing;
pub mod plan;
pub mod random;
pub mod recompute;
pub mod shapes;
mod shards;
pub mod source;
pub mod spec;
mod stacked;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod tokenizer;
pub mod turns;
pub mod weights;
pub mod whole;

pub use chat::{CallStyle, ChatMessage, ChatRole, ChatTemplate};
pub use cpu::learn::{Differentiator, Dropout, Precision, SiteGradients, TokenLoss};
pub use cpu::{BLOCK_TOKENS, CpuExecutor, Step};
pub use decoder::{Batch, Model};
pub use device::{DeviceChoice, DeviceError};
pub use draw::DrawRequest;
pub use error::ModelError;
pub use linear::{AdapterRows, AdapterSpan};
pub use loaded::LoadedModel;
pub use lora::{LoraPair, LoraSite, LoraWeights, Projection};
pub use ops::{Ops, PagedSequence, Segment};
pub use recompute::{Recompute, Stepwise};
pub use source::{ModelFiles, ModelSource};
pub use spec::ModelSpec;
pub use tokenizer::{StreamDecoder, Tokenizer};
pub use whole::WholeGraph;
