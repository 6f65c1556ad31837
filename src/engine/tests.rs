//! Scheduling against a fake model that reads its whole context through the KV blocks: a wrong or
//! stale block, or another sequence's, changes its answer.

mod device;
mod device_sampling;
mod drafting;
mod fairness;
pub(crate) mod fake;
mod load;
mod merged;
mod nonfinite;
mod preemption;
mod prefix;
mod random;
mod shaping;
