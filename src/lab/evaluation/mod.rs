//! What `realign eval trace` compares and how it counts: variants, label noise, multiple choice,
//! statistics, tables and plots. Pure but for [`scorer`], which runs the model, and [`memory`].

pub mod capability;
pub mod cell;
pub mod memory;
pub mod noise;
pub mod plots;
pub mod refusal;
pub mod report;
pub mod scorer;
pub mod statistics;
pub mod table;
pub mod variants;

pub use cell::{Answer, Cell, Measured, Seconds, Share, TrainingFigures};
pub use report::{Report, Row};
pub use scorer::Scorer;
pub use variants::{Labels, Variant};

/// Everyday questions that no policy for anything special should change the answer to; one a line.
pub const GENERAL_QUESTIONS: &str = include_str!("questions.txt");
