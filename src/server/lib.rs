//! The server: configuration, routes, telemetry, state, and the control loop that joins training to
//! publishing.

pub mod api;
pub mod config;
pub mod control;
pub mod serve;
pub mod state;
pub mod telemetry;
