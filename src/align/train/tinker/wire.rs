//! What is sent to an engine and what comes back, as JSON.

use realign_model::packing::Example;
use serde_json::{Value, json};

use super::error::TinkerError;
use super::proto::{self, Message};

/// A prompt with one response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sequence {
    /// What the model reads.
    inputs: Vec<u32>,
    /// What it is to write after each of them.
    targets: Vec<u32>,
    /// How many of the targets, the last ones, are the response.
    response: usize,
}

/// What a response token is given besides itself, for `forward_backward`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    /// Its log-probability now.
    pub(super) logprobs: &'a [f32],
    /// The loss's derivative in that.
    pub(super) coefficients: &'a [f32],
    /// Sequences between two optimiser steps.
    pub(super) sequences: usize,
}

/// The sequences of examples: example by example, response by response, which is the order of
/// [`Packed`](realign_model::packing::Packed).
pub(super) fn sequences<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Vec<Sequence> {
    let of = |example: &'a Example| {
        let responses = example.responses.iter();
        responses.map(|response| Sequence::new(&example.prompt, response))
    };
    examples.into_iter().flat_map(of).collect()
}

impl Sequence {
    fn new(prompt: &[u32], response: &[u32]) -> Self {
        let whole = [prompt, response].concat();
        let (first, last) = (whole.len().min(1), whole.len().saturating_sub(1));
        Self {
            inputs: whole[..last].to_vec(),
            targets: whole[first..].to_vec(),
            response: response.len(),
        }
    }

    /// Tokens of the response.
    pub(super) fn response(&self) -> usize {
        self.response
    }

    /// For `forward`.
    pub(super) fn datum(&self) -> Datum {
        self.with(vec![("weights", self.floats(|_| 1.0))])
    }

    /// For `forward_backward` with the loss `importance_sampling`: −Σ weight · advantage · p / p_now.
    ///
    /// Some engines sum this up; others divide it by the sum of the weights and by the number of
    /// sequences. With weights of 1 / (tokens · sequences) both come to the same, so the advantages
    /// are multiplied by that divisor, and the gradient is Σ coefficient · ∇ log p on both.
    pub(super) fn weighted_datum(&self, given: Given<'_>) -> Datum {
        let divisor = (self.response * given.sequences) as f32;
        self.with(vec![
            ("weights", self.floats(|_| 1.0 / divisor)),
            ("logprobs", self.floats(|i| given.logprobs[i])),
            (
                "advantages",
                self.floats(|i| -given.coefficients[i] * divisor),
            ),
        ])
    }

    /// One number for each target: 0 for the prompt's.
    fn floats(&self, of: impl Fn(usize) -> f32) -> Vec<f32> {
        let prompt = self.targets.len() - self.response;
        let mut data = vec![0.0; prompt];
        data.extend((0..self.response).map(of));
        data
    }

    fn with(&self, floats: Vec<(&'static str, Vec<f32>)>) -> Datum {
        Datum {
            inputs: self.inputs.clone(),
            targets: self.targets.clone(),
            floats,
        }
    }
}

/// A sequence as it is sent, with a number for each of its targets under each name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Datum {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    floats: Vec<(&'static str, Vec<f32>)>,
}

impl Datum {
    pub(super) fn json(&self) -> Value {
        let shape = [self.targets.len()];
        let mut inputs = json!({
            "target_tokens": { "data": self.targets, "dtype": "int64", "shape": shape },
        });
        for (name, data) in &self.floats {
            inputs[*name] = json!({ "data": data, "dtype": "float32", "shape": shape });
        }
        json!({
            "model_input": { "chunks": [{ "type": "encoded_text", "tokens": self.inputs }] },
            "loss_fn_inputs": inputs,
        })
    }

    pub(super) fn proto(&self) -> Message {
        let named = self.floats.iter();
        named.fold(
            Message::default()
                .message(1, &proto::text_chunk(&self.inputs))
                .message(2, &proto::ids("target_tokens", &self.targets)),
            |datum, (name, data)| datum.message(2, &proto::floats(name, data)),
        )
    }
}

/// The log-probabilities of all response tokens, in the order of the sequences.
///
/// # Errors
/// [`TinkerError::Answer`] if they do not fit the sequences.
pub(super) fn logprobs(answer: &Value, sequences: &[Sequence]) -> Result<Vec<f32>, TinkerError> {
    let outputs = answer["loss_fn_outputs"].as_array();
    let outputs = outputs.ok_or_else(|| TinkerError::Answer("no loss_fn_outputs".into()))?;
    if outputs.len() != sequences.len() {
        let (got, sent) = (outputs.len(), sequences.len());
        let what = format!("{got} outputs for {sent} sequences");
        return Err(TinkerError::Answer(what));
    }
    let mut values = Vec::new();
    for (output, sequence) in outputs.iter().zip(sequences) {
        let data = output["logprobs"]["data"].as_array();
        let data = data.ok_or_else(|| TinkerError::Answer("no logprobs".into()))?;
        let targets = sequence.targets.len();
        if data.len() != targets {
            let what = format!("{} log-probabilities for {targets} tokens", data.len());
            return Err(TinkerError::Answer(what));
        }
        // What is not finite is written as null.
        let value = |value: &Value| value.as_f64().unwrap_or(f64::NAN) as f32;
        values.extend(data[targets - sequence.response..].iter().map(value));
    }
    Ok(values)
}

/// A text of an answer.
///
/// # Errors
/// [`TinkerError::Answer`] if it has none.
pub(super) fn text(answer: &Value, key: &str) -> Result<String, TinkerError> {
    let found = match &answer[key] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    found.ok_or_else(|| TinkerError::Answer(format!("no {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Vec<Sequence> {
        sequences([&Example::new(vec![1, 2, 3], vec![vec![7, 8], vec![9]])])
    }

    #[test]
    fn every_token_is_predicted_by_the_one_before_it() {
        let [first, second] = &pair()[..] else {
            panic!("two responses");
        };
        assert_eq!(first.inputs, [1, 2, 3, 7]);
        assert_eq!(first.targets, [2, 3, 7, 8]);
        assert_eq!((second.inputs.len(), second.response()), (3, 1));
        let given = Given {
            logprobs: &[-1.5, -0.5],
            coefficients: &[0.25, -2.0],
            sequences: 3,
        };
        let inputs = &first.weighted_datum(given).json()["loss_fn_inputs"];
        let data = |key: &str| inputs[key]["data"].clone();
        assert_eq!(data("advantages"), json!([0.0, 0.0, -1.5, 12.0]));
        assert_eq!(data("logprobs"), json!([0.0, 0.0, -1.5, -0.5]));
        let weights = data("weights");
        assert_eq!(weights[1], 0.0);
        assert_eq!(weights[2], f64::from(1f32 / 6.0));
    }

    #[test]
    fn answers_that_do_not_fit_are_refused() {
        let of = |lengths: &[usize]| {
            let output = |n: &usize| json!({ "logprobs": { "data": vec![-1.0; *n] } });
            let outputs: Vec<Value> = lengths.iter().map(output).collect();
            logprobs(&json!({ "loss_fn_outputs": outputs }), &pair())
        };
        assert_eq!(of(&[4, 3]).unwrap(), [-1.0; 3]);
        let short = of(&[4, 2]).unwrap_err().to_string();
        assert!(
            short.contains("2 log-probabilities for 3 tokens"),
            "{short}"
        );
        assert!(
            of(&[4])
                .unwrap_err()
                .to_string()
                .contains("1 outputs for 2")
        );
        assert!(logprobs(&json!({ "error": "x" }), &pair()).is_err());
    }
}
