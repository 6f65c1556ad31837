//! The decoder: one definition for serving and training, and everything that comes in a model's
//! files (weights, tokenizer, chat template). Imports no sibling module.

pub mod lora;
