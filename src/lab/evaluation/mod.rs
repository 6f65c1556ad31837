//! The computations of `realign eval`. [`oracle`] measures rules, probes and judges against human
//! labels. The other modules are for `realign eval trace`: variants, label noise, multiple choice,
//! statistics, tables and plots, pure except for [`Scorer`], which runs the model, and [`memory`].

pub mod capability;
pub mod cell;
pub mod memory;
pub mod noise;
pub mod oracle;
pub mod plots;
pub mod refusal;
pub mod report;
pub mod statistics;
pub mod table;
pub mod variants;

pub use cell::{Answer, Cell, Measured, Seconds, Share, TrainingFigures};
pub use realign_align::exam::Scorer;
pub use report::{Report, VariantRow};
pub use variants::{Labels, Variant};

/// Everyday questions, one a line, whose answers a policy on a special subject should not change.
pub const GENERAL_QUESTIONS: &str = include_str!("questions.txt");
