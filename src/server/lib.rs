//! The server: configuration, HTTP API, telemetry, persistent state, and the control loop that
//! trains and publishes adapters.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may sleep"))]

pub mod api;
pub mod config;
pub mod control;
mod locks;
pub mod serve;
pub mod state;
pub mod telemetry;
