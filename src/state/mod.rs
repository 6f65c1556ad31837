//! What must survive a restart: one SQLite file, and crash points to prove that it does.

mod crash;

pub use crash::crash_point;
