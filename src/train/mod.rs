//! Training a LoRA adapter on triaged pairs: TRACE's hybrid objective (arXiv 2511.02623,
//! Algorithm 1), AdamW with a schedule, checkpoints.

pub mod adamw;
pub mod checkpoint;
pub mod examples;
pub mod objective;
pub mod recipe;
pub mod run;
pub mod trainable;

pub use examples::{Prepared, Skipped, TrainExample, prepare};
pub use objective::{LossParts, Objective, PreferenceLoss};
pub use recipe::{Recipe, WeightScale};
pub use run::{Observer, StepReport, TrainError, Trained, train};
pub use trainable::{Gradients, TrainableLora};
