//! Routes against a scripted engine.
