//! Requests to the engine, and the events that it answers with.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::bad_words::BadWords;
use super::grammar::Constraint;
use super::thoughts::ThinkingBudget;
use crate::adapter::generation::Generation;

/// How the next token is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep only the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep only tokens at least this share as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Taken off the logit of every token that was generated before.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time that it was generated before.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive logits of tokens that are in the prompt or the answer, and multiplies
    /// negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Texts that the answer never contains.
    pub bad_words: Option<BadWords>,
    /// What the answer must look like, token by token.
    pub grammar: Option<Constraint>,
    /// Seed of this request's own random stream: other requests in the batch cannot change its text.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Neither an end-of-turn token, nor a stop token, nor a stop string ends the answer before it
    /// has this many tokens. A grammar that allows nothing but the end does.
    pub min_tokens: usize,
    /// Generation ends before the first occurrence of any of these in the decoded text.
    pub stop: Vec<String>,
    /// Tokens at which generation ends, like end-of-turn tokens, also with `ignore_eos`.
    pub stop_token_ids: Vec<u32>,
    /// The text includes the stop string, or the stop token's text, that ended it.
    pub include_stop: bool,
    /// Generation ends when a part of the text between these two is the same as an earlier one.
    pub end_on_repeat_of: Option<(&'static str, &'static str)>,
    /// Control tokens add their literals to the text.
    pub show_control: bool,
    /// Continue after an end-of-turn token, for benchmarks.
    pub ignore_eos: bool,
    /// Most tokens of thoughts before the answer; `None` lets the model decide.
    pub thinking: Option<ThinkingBudget>,
    /// Report the log-probability of each token and of this many alternatives.
    pub top_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            bad_words: None,
            grammar: None,
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop: false,
            end_on_repeat_of: None,
            show_control: false,
            ignore_eos: false,
            thinking: None,
            top_logprobs: None,
        }
    }
}

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Prompt token ids, special tokens included; must not be empty.
    pub prompt: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// The lease: this generation produces every token of the response.
    pub generation: Arc<Generation>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-turn token, a stop string, or a grammar that is complete.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The grammar could not be followed further within its bounds: it is too complex.
    Grammar,
}

/// What ended a sequence in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// This stop string.
    Text(String),
    /// This stop token.
    Token(u32),
}

/// A token and its log-probability (natural log; the model's own, before temperature, penalties,
/// biases and grammar).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// The token's own text.
    pub text: String,
    /// log p(token | prefix).
    pub logprob: f32,
}

/// What a sequence reports as it runs.
#[derive(Clone, Debug)]
pub enum GenerateEvent {
    /// A token was drawn. `text` is what became decodable with it (may be empty while a character
    /// or a possible stop string is incomplete).
    Token {
        /// Token id.
        id: u32,
        /// Newly decodable text.
        text: String,
        /// The token's log-probability, if asked for.
        logprob: Option<TokenLogprob>,
        /// The most probable alternatives, best first, if asked for.
        top: Vec<TokenLogprob>,
    },
    /// The sequence ended; nothing follows.
    Finished {
        /// What ended it.
        reason: FinishReason,
        /// The stop string or the stop token that did, if one did.
        stopped_by: Option<StoppedBy>,
        /// Text held back until now because it might have been the start of a stop string.
        text: String,
        /// Prompt tokens processed.
        prompt_tokens: usize,
        /// Prompt tokens whose keys and values were found in the prefix cache.
        cached_tokens: usize,
        /// Tokens generated, the end-of-turn token included.
        completion_tokens: usize,
    },
    /// The engine could not continue this sequence; nothing follows. Holds the reason.
    Failed(String),
}

/// Why a request was not accepted. Nothing was queued.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    /// The waiting queue is at its bound.
    #[error("{waiting} requests are waiting already (limit {limit}); retry in a moment")]
    QueueFull {
        /// Requests waiting now.
        waiting: usize,
        /// The configured bound, `engine.max_waiting`.
        limit: usize,
    },
    /// Prompt plus completion would not fit the model's context.
    #[error(
        "this model's maximum context length is {limit} tokens, but the prompt has {prompt} tokens and {max_tokens} more were requested"
    )]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Requested completion tokens.
        max_tokens: usize,
        /// `max_model_len`.
        limit: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The engine is draining or has stopped.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine's thread is dead.
    #[error("the engine has stopped because of an internal error; the server must be restarted")]
    Stopped,
    /// The generation needs a copy of the weights of its own, and there is no room for one.
    #[error(
        "generation {generation} needs a copy of the weights of its own, and the {limit} that may be \
         loaded at once (engine.copies) are in use; retry later, or ask for the generation that serves"
    )]
    NoCopy {
        /// Id of the requested generation.
        generation: String,
        /// `engine.copies`.
        limit: usize,
    },
}

/// The caller's end of a running sequence. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct GenerateStream {
    pub(crate) events: mpsc::UnboundedReceiver<GenerateEvent>,
}

impl GenerateStream {
    /// A stream over a channel, for engines and for fakes in tests.
    pub fn new(events: mpsc::UnboundedReceiver<GenerateEvent>) -> Self {
        Self { events }
    }

    /// The next event; `None` after `Finished` or `Failed`, or if the engine stopped.
    pub async fn next(&mut self) -> Option<GenerateEvent> {
        self.events.recv().await
    }

    /// As `next`, for callers that are polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<GenerateEvent>> {
        self.events.poll_recv(context)
    }

    /// As `next`, for callers on plain threads.
    pub fn blocking_next(&mut self) -> Option<GenerateEvent> {
        self.events.blocking_recv()
    }
}

/// A snapshot for metrics and health.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences accepted and waiting for KV blocks.
    pub waiting: usize,
    /// Share of KV blocks that running sequences hold, 0 to 1.
    pub kv_cache_usage: f64,
    /// Prompt tokens looked up in the prefix cache since the start.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Times that a running sequence gave its KV blocks to older ones, since the start.
    pub preemptions: u64,
    /// Tokens that were drafted since the start: see `engine.draft_tokens`.
    pub drafted: u64,
    /// Those of them that were drawn.
    pub accepted: u64,
    /// Sequences and embeddings that came to values that are not finite, since the start.
    pub nonfinite: u64,
}
