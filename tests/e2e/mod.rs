//! Tests of the real binary as users run it: policy files, HTTP requests, signals, kills.
//!
//! Most tests use a random model of two tiny layers; the one test of learning uses the default
//! model.

mod batching;
mod command;
mod control;
mod crashes;
mod data;
mod deploy;
mod devices;
mod directories;
mod document;
mod edge;
mod embedding;
mod endpoint;
mod engine;
mod examples;
mod first_steps;
mod gateway;
mod gathering;
mod instructions;
mod lora;
mod mistralrs;
mod nonfinite;
mod openai_client;
mod operating;
mod peers;
mod pointer;
mod prometheus;
mod real_model;
mod realigning;
mod server;
mod serving;
#[cfg(unix)]
mod sockets;
mod stand_in;
mod supervision;
mod tinker;
mod tinker_proto;
mod tinker_stand_in;
pub(crate) mod tiny_model;
mod tls;
mod training;
mod tutorial;
mod vanishing;
#[cfg(target_os = "linux")]
mod weights;
mod workspace;
