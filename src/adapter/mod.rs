//! Adapters on disk and generations in memory: PEFT format, atomic publish, leases, swap.

pub mod generation;
