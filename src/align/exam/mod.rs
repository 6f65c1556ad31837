//! The exam: what a generation answers to prompts that rules govern and to prompts that they do not.
//!
//! [`Exam::assemble`] chooses the prompts. [`Examiner`] has a generation answer them and marks the
//! answers; a [`Report`] says what came of it, and [`Compared`] compares a candidate
//! with what serves.

pub(crate) mod about;
mod assemble;
pub mod bank;
mod controls;
mod defects;
pub mod diversion;
mod examiner;
mod failures;
mod outcome;
mod question;
mod report;
pub(crate) mod respond;
pub(crate) mod scorer;
mod statistics;
#[cfg(test)]
mod tests;
mod verdict;
pub(crate) mod words;
mod work;

pub use assemble::{Exam, Settings, Sources};
pub use defects::{Defect, defects};
pub use examiner::{Examiner, Mark, Sitting, Subject};
pub use failures::{ASKED_BETWEEN_ROUNDS, ReviewQuestions};
pub use outcome::{PolicyOutcome, left_open, outcomes};
pub use question::{ExamRule, Group, Put, Question, Situation};
pub(crate) use question::{message, user};
pub use report::{
    Basis, ControlResult, DefectResult, Occasion, Report, RuleResult, Shown, SituationResult,
    Standing,
};
pub use respond::{Answer, Asked, ExamCache, ExamError, MemoryExamCache, Respond, Who};
pub use scorer::{Question as ScoredQuestion, Scorer};
pub use statistics::{Paired, Share};
pub use verdict::{Bounds, Check, Compared, Refusal};
