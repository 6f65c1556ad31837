//! One integration binary for the whole crate: every extra one would link the engine again.

mod demo_data;
mod e2e;
mod families;
mod golden_parity;
mod golden_training;
mod greedy;
mod hub;
mod learning_passes;
mod merging;
mod mutations;
mod oracle;
mod recomputing;
mod tidy;
