//! One request inside the engine.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::blocks::BlockTable;
use super::drafts::Drafts;
use super::grammar::GrammarError;
use super::request::{FinishReason, GenerateEvent, GenerateRequest, StoppedBy, TokenLogprob};
use super::sampler::{Sampler, Scratch, logprobs};
use super::shaper::Shaper;
use super::stop::{RepeatMatcher, StopMatcher, StopOutcome};
use super::thoughts::Thoughts;
use crate::adapter::generation::Generation;
use realign_model::draw::NOT_FINITE;
use realign_model::vector::all_finite;
use realign_model::{DrawRequest, StreamDecoder, Tokenizer};

/// A sequence: its tokens, how far they are in the cache, and where its events go.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The lease, held to the last token.
    pub generation: Arc<Generation>,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// How many of them have keys and values in the cache.
    pub(crate) computed: usize,
    /// Blocks that hold them.
    pub(crate) table: BlockTable,
    /// Round-robin order of prefills: the sequence with the lowest gets the next chunk.
    pub(crate) prefill_order: u64,
    /// Prompt tokens that the prefix cache held when it was first admitted.
    pub(crate) cached_prompt: Option<usize>,
    /// Tokens that may come next, computed in the next step beside its own.
    pub(crate) draft: Vec<u32>,
    drafts: Drafts,
    prompt: usize,
    max_tokens: usize,
    min_tokens: usize,
    ignore_eos: bool,
    stop_token_ids: Vec<u32>,
    include_stop: bool,
    show_control: bool,
    top_logprobs: Option<usize>,
    shaper: Shaper,
    sampler: Sampler,
    decoder: StreamDecoder,
    stops: StopMatcher,
    repeats: Option<RepeatMatcher>,
    thoughts: Option<Thoughts>,
    events: UnboundedSender<GenerateEvent>,
}

/// What became of a sequence with its next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    /// There is more to compute.
    Continues,
    /// It ended.
    Ended,
    /// It failed: its logits are not finite numbers.
    NotFinite,
}

/// Most tokens that are appended at once because a grammar forces them.
const MAX_JUMP: usize = 32;

/// Whether these tokens are the beginning of a text, byte for byte: some tokenizers add a space.
fn spells(ids: &[u32], text: &str, tokenizer: &Tokenizer) -> bool {
    let bytes = ids.iter().flat_map(|id| tokenizer.token_bytes(*id));
    let plain = ids.iter().all(|id| !tokenizer.is_control(*id));
    plain && bytes.zip(text.bytes()).all(|(token, byte)| *token == byte)
}

/// A token that has been drawn.
struct Drawn {
    id: u32,
    /// Whether it completes the request's grammar.
    complete: bool,
}

impl Sequence {
    /// A sequence that has computed nothing yet.
    pub(crate) fn new(
        request: GenerateRequest,
        tokenizer: &Arc<Tokenizer>,
        events: UnboundedSender<GenerateEvent>,
    ) -> Self {
        let GenerateRequest {
            prompt,
            sampling,
            generation,
        } = request;
        Self {
            table: BlockTable::new(&generation.id),
            generation,
            shaper: Shaper::new(&sampling, &prompt, tokenizer.end_of_generation_ids()),
            draft: Vec::new(),
            drafts: Drafts::default(),
            prompt: prompt.len(),
            tokens: prompt,
            computed: 0,
            prefill_order: 0,
            cached_prompt: None,
            max_tokens: sampling.max_tokens,
            min_tokens: sampling.min_tokens,
            ignore_eos: sampling.ignore_eos,
            include_stop: sampling.include_stop,
            show_control: sampling.show_control,
            top_logprobs: sampling.top_logprobs,
            sampler: Sampler::new(&sampling),
            decoder: StreamDecoder::new(tokenizer.clone()),
            stops: StopMatcher::new(&sampling.stop, sampling.include_stop),
            repeats: sampling.end_on_repeat_of.map(RepeatMatcher::new),
            stop_token_ids: sampling.stop_token_ids,
            thoughts: sampling.thinking.map(Thoughts::new),
            events,
        }
    }

    /// Tokens whose keys and values are still to be computed: 1 while decoding.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether what runs next are tokens of the answer: one, or those that a grammar forced.
    pub(crate) fn is_decoding(&self) -> bool {
        self.pending() == 1 || (self.computed >= self.prompt && self.pending() <= MAX_JUMP + 1)
    }

    /// Drafts at most `most` tokens for the next step.
    pub(crate) fn make_draft(&mut self, most: usize) {
        // The step's own row gives one token, so a draft of all that may come would compute one too many.
        let room = (self.prompt + self.max_tokens).saturating_sub(self.tokens.len() + 1);
        if self.pending() == 1 {
            self.draft = self.drafts.of(&self.tokens, most.min(room));
        }
    }

    /// Takes a draft back, with how much of it was drawn.
    pub(crate) fn learn_from_draft(&mut self, draft: &[u32], accepted: usize, most: usize) {
        if !draft.is_empty() {
            self.drafts.learn(draft.len(), accepted, most);
        }
    }

    /// Tells sequences apart in tests.
    #[cfg(test)]
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// Whether the client has disconnected.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Draws the next token from its logits and reports it.
    pub(crate) fn advance(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        scratch: &mut Scratch,
    ) -> Advance {
        if !all_finite(logits) {
            return self.fail_not_finite();
        }
        let Ok(drawn) = self.draw(logits, scratch) else {
            self.finish(FinishReason::Grammar, None);
            return Advance::Ended;
        };
        self.proceed(drawn, logits, tokenizer)
    }

    /// How to draw the next token on the device that computes its logits; `None` if the host needs
    /// the logits. Call once per token: it advances the sequence's random stream.
    pub(crate) fn draw_request(&mut self) -> Option<DrawRequest> {
        let plain =
            self.top_logprobs.is_none() && self.shaper.changes_nothing() && self.forced().is_none();
        plain.then(|| self.sampler.request())
    }

    /// As [`Sequence::advance`], with a token that the device drew by [`Sequence::draw_request`].
    pub(crate) fn advance_with(&mut self, id: u32, tokenizer: &Tokenizer) -> Advance {
        if id == NOT_FINITE {
            return self.fail_not_finite();
        }
        let complete = false;
        self.proceed(Drawn { id, complete }, &[], tokenizer)
    }

    /// What a request changes in its logits comes after this: a grammar's masks are infinite.
    fn fail_not_finite(&self) -> Advance {
        self.fail(&format!(
            "generation {} computed logits that are not finite numbers (NaN or infinity); the \
             server's operator has to replace it",
            self.generation.id
        ));
        Advance::NotFinite
    }

    /// Appends the tokens that the grammar forces next, without computing anything for them. The last
    /// one is left to the model: with what follows, it may be a longer token.
    pub(crate) fn jump(&mut self, tokenizer: &Tokenizer) -> Advance {
        // Log-probabilities need logits, and thoughts are counted as they are drawn.
        if self.top_logprobs.is_some() || self.thoughts.is_some() {
            return Advance::Continues;
        }
        let text = self.shaper.forced();
        let mut ids = tokenizer.encode(&text, false).unwrap_or_default();
        ids.pop();
        ids.truncate(MAX_JUMP);
        if !spells(&ids, &text, tokenizer) {
            return Advance::Continues;
        }
        for id in ids {
            let Ok(complete) = self.shaper.accept(id) else {
                self.finish(FinishReason::Grammar, None);
                return Advance::Ended;
            };
            let advance = self.proceed(Drawn { id, complete }, &[], tokenizer);
            if advance != Advance::Continues {
                return advance;
            }
        }
        Advance::Continues
    }

    /// Appends a token and reports it. `logits` are read only if log-probabilities were asked for.
    fn proceed(&mut self, drawn: Drawn, logits: &[f32], tokenizer: &Tokenizer) -> Advance {
        let Drawn { id, complete } = drawn;
        self.tokens.push(id);
        let generated = self.tokens.len() - self.prompt;
        let at_end = self.ends_at(id, tokenizer);
        let decoded = self.decoded(id, at_end, tokenizer);
        if let Some(thoughts) = &mut self.thoughts {
            thoughts.push(&decoded);
        }
        let repeats = self.repeats.as_mut().is_some_and(|r| r.push(&decoded));
        let (text, stopped) = if generated < self.min_tokens {
            (decoded, false)
        } else {
            match self.stops.push(&decoded) {
                StopOutcome::Text(text) => (text, false),
                StopOutcome::Stopped(text) => (text, true),
            }
        };
        self.report(id, text, logits, tokenizer);
        let stopped_by = self.stopped_by(id, stopped, tokenizer);
        if at_end || stopped || complete || repeats {
            self.finish(FinishReason::Stop, stopped_by);
        } else if generated >= self.max_tokens {
            self.finish(FinishReason::Length, None);
        } else {
            return Advance::Continues;
        }
        Advance::Ended
    }

    fn ends_at(&self, id: u32, tokenizer: &Tokenizer) -> bool {
        self.ends_turn(id, tokenizer) || self.stop_token_ids.contains(&id)
    }

    fn ends_turn(&self, id: u32, tokenizer: &Tokenizer) -> bool {
        !self.ignore_eos && tokenizer.end_of_generation_ids().contains(&id)
    }

    /// The stop string, if one was found, or the stop token `id`, if it is one and not the end of the
    /// turn.
    fn stopped_by(&self, id: u32, stopped: bool, tokenizer: &Tokenizer) -> Option<StoppedBy> {
        if stopped {
            return self.stops.found().map(|stop| StoppedBy::Text(stop.into()));
        }
        let token = self.stop_token_ids.contains(&id) && !self.ends_turn(id, tokenizer);
        token.then_some(StoppedBy::Token(id))
    }

    /// The token that comes next, whatever the model makes likely.
    fn forced(&self) -> Option<u32> {
        self.thoughts.as_ref().and_then(Thoughts::forced)
    }

    /// The text that became complete with a token.
    fn decoded(&mut self, id: u32, at_end: bool, tokenizer: &Tokenizer) -> String {
        if at_end && !self.include_stop {
            return String::new();
        }
        let text = if self.show_control && tokenizer.is_control(id) {
            let rest = self.decoder.flush().unwrap_or_default();
            Some(rest + &tokenizer.token_text(id))
        } else {
            self.decoder.push(id)
        };
        text.unwrap_or_default()
    }

    fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Drawn, GrammarError> {
        if let Some(id) = self.forced() {
            let complete = self.shaper.accept(id)?;
            return Ok(Drawn { id, complete });
        }
        // Taken out, because the sampler borrows the rest of the scratch at the same time.
        let mut buffer = std::mem::take(&mut scratch.shaped);
        let shaped = self.shaper.shape(logits, &mut buffer);
        let drawn = shaped.map(|shaped| self.sampler.draw(shaped, scratch));
        scratch.shaped = buffer;
        let id = drawn.inspect_err(|error| tracing::debug!(%error, "a grammar was abandoned"))?;
        let complete = self.shaper.accept(id)?;
        Ok(Drawn { id, complete })
    }

    fn report(&self, id: u32, text: String, logits: &[f32], tokenizer: &Tokenizer) {
        let entry = |id: u32, logprob: f32| TokenLogprob {
            id,
            text: tokenizer.token_text(id),
            logprob,
        };
        let (logprob, top) = match self.top_logprobs {
            Some(n) => {
                let (own, top) = logprobs(logits, id, n);
                (
                    Some(entry(id, own)),
                    top.into_iter().map(|(id, l)| entry(id, l)).collect(),
                )
            }
            None => (None, Vec::new()),
        };
        self.send(GenerateEvent::Token {
            id,
            text,
            logprob,
            top,
        });
    }

    fn finish(&mut self, reason: FinishReason, mut stopped_by: Option<StoppedBy>) {
        let mut text = String::new();
        if !matches!(stopped_by, Some(StoppedBy::Text(_))) {
            // An incomplete character at the end, then text that may be the start of a stop string.
            let rest = self.decoder.flush().unwrap_or_default();
            match self.stops.push(&rest) {
                StopOutcome::Text(t) => text = t + &self.stops.flush(),
                StopOutcome::Stopped(t) => {
                    text = t;
                    stopped_by = self.stops.found().map(|stop| StoppedBy::Text(stop.into()));
                }
            }
        }
        let completion_tokens = self.tokens.len() - self.prompt;
        self.send(GenerateEvent::Finished {
            reason,
            stopped_by,
            text,
            prompt_tokens: self.prompt,
            cached_tokens: self.cached_prompt.unwrap_or(0),
            completion_tokens,
        });
    }

    /// Reports to the client that the engine cannot continue the sequence.
    pub(crate) fn fail(&self, reason: &str) {
        self.send(GenerateEvent::Failed(reason.to_string()));
    }

    fn send(&self, event: GenerateEvent) {
        // A closed channel is a client that disconnected; the scheduler drops its sequence next.
        let _gone = self.events.send(event);
    }
}
