//! The real binary, driven as its users drive it: policy files in, HTTP requests, kills.
//!
//! A random model of two tiny layers stands in for a real one wherever a mechanism is tested; the
//! one test of learning uses the default model.

mod batching;
mod crashes;
mod devices;
mod document;
mod embedding;
mod engine;
mod mistralrs;
mod openai_client;
mod operating;
mod prometheus;
mod real_model;
mod realigning;
mod server;
mod serving;
pub mod tiny_model;
mod tls;
mod training;
mod workspace;
