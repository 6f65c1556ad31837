//! Training a LoRA adapter on triaged pairs: TRACE's hybrid objective (arXiv 2511.02623,
//! Algorithm 1), an optimiser with a schedule, checkpoints, and the loss curve.

pub mod adamw;
pub mod checkpoint;
pub mod choices;
pub mod curve;
pub mod divergence;
mod ending;
pub mod examples;
pub mod fresh;
pub mod lion;
pub mod memory;
pub mod objective;
pub mod optimizer;
pub mod passes;
pub mod plan;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod tinker;
pub mod trainable;

pub use choices::{ModelSize, WeightScale};
pub use curve::{Curve, StepRecord};
pub use examples::{Prepared, Skipped, TrainExample, prepare};
pub use fresh::fresh;
pub use objective::{LossParts, Objective, PreferenceLoss};
pub use recipe::Recipe;
pub use run::{Begin, Ending, Observer, StepReport, TrainError, Trained, train};
pub use trainable::{Gradients, TrainableLora};
