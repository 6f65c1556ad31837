//! The in-process benchmark's cases: options, names, and the baseline of each.

use super::Samples;

/// Sizes and repetitions of the in-process benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Prompt tokens of the prefill case.
    pub prompt_tokens: usize,
    /// Tokens that each decoding stream generates.
    pub generate_tokens: usize,
    /// Streams of the batch cases; 0 leaves them out.
    pub streams: usize,
    /// How many times every case runs.
    pub repetitions: usize,
    /// Rank of the adapter on q and v; 0 leaves the adapter cases out.
    pub rank: usize,
    /// Seconds of the swap case and of its baseline; 0 leaves it out.
    pub swap_seconds: u64,
    /// Temperature that tokens are drawn at; 0 takes the likeliest.
    pub temperature: f32,
}

/// Which generations a batch's streams run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    Base,
    One,
    /// The base and an adapter, alternating.
    Two,
    /// The registry's current generation, without (`Steady`) or with a swap every second.
    Steady,
    Swapping,
}

/// One case of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Prefill,
    Decode(Mix),
    Batch(Mix),
}

impl Case {
    /// The case that this one's cost is relative to.
    pub(super) fn baseline(self) -> Option<Case> {
        match self {
            Case::Decode(Mix::One) => Some(Case::Decode(Mix::Base)),
            Case::Batch(Mix::One | Mix::Two) => Some(Case::Batch(Mix::Base)),
            Case::Batch(Mix::Swapping) => Some(Case::Batch(Mix::Steady)),
            _ => None,
        }
    }

    pub(super) fn name(self, options: &Options) -> String {
        let Options {
            prompt_tokens,
            generate_tokens,
            streams,
            rank,
            ..
        } = options;
        let mix = |mix| match mix {
            Mix::Base => String::new(),
            Mix::One => format!(", rank-{rank} adapter on q and v"),
            Mix::Two => ", base and adapter mixed".to_string(),
            Mix::Steady => ", an adapter, new requests all the time".to_string(),
            Mix::Swapping => ", the same with a swap every second".to_string(),
        };
        match self {
            Case::Prefill => format!("prefill of {prompt_tokens} tokens"),
            Case::Decode(m) => format!("decode of {generate_tokens} tokens{}", mix(m)),
            Case::Batch(m) => format!("{streams} streams{}", mix(m)),
        }
    }
}

/// The measurements of one case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// Name of the case, with its sizes.
    pub name: String,
    /// Tokens per second, one per repetition.
    pub tokens_per_second: Samples,
    /// Name of the case that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Rate over that case's, repetition by repetition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Samples>,
    /// For each repetition, the longest time any stream waited for a token over the 99th
    /// percentile of all such waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_gap_over_p99: Option<Samples>,
}
