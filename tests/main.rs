//! A single integration binary: each further one would have to link the whole engine again.

#![allow(clippy::disallowed_methods, reason = "tests may sleep")]

mod bench_policies;
mod demo_data;
mod e2e;
mod families;
mod fingerprint;
mod golden_parity;
mod golden_training;
mod greedy;
mod hub;
mod learning_passes;
mod merging;
mod mutations;
mod oracle;
mod recomputing;
mod sharing;
mod tidy;
