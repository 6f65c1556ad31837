//! Passes of an engine: how they are asked for, as protocol buffers or as JSON.

use serde_json::{Value, json};

use super::error::TinkerError;
use super::proto::Message;
use super::session::Session;
use super::wire::Datum;
use crate::train::run::TrainError;

/// The route of both passes, except that a forward one has its own with engines that read JSON.
const ROUTE: &str = "forward_backward";

/// A pass over sequences.
pub(super) struct Pass {
    /// Whether nothing is added to the gradient.
    pub(super) forward_only: bool,
    pub(super) loss: &'static str,
    pub(super) data: Vec<Datum>,
}

/// What an engine reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// SkyRL from 0.4 on, and Tinker's SDK from 0.25 on.
    Proto,
    /// SkyRL before that.
    Json,
}

impl Session<'_> {
    /// The result of a pass. The first one finds out what the engine reads.
    pub(super) fn pass(&self, pass: &Pass) -> Result<Value, TrainError> {
        let number = self.number();
        if let Some(form) = self.form.get() {
            return self.pass_as(form, pass, number);
        }
        let refused = match self.pass_as(Form::Proto, pass, number) {
            Err(error) if is_unread(&error) => error,
            result => {
                self.form.set(result.is_ok().then_some(Form::Proto));
                return result;
            }
        };
        match self.pass_as(Form::Json, pass, number) {
            // It reads neither; what it says about the newer form is of more use.
            Err(TrainError::Remote(TinkerError::Refused { .. })) => Err(refused),
            result => {
                self.form.set(result.is_ok().then_some(Form::Json));
                result
            }
        }
    }

    fn pass_as(&self, form: Form, pass: &Pass, number: u32) -> Result<Value, TrainError> {
        match form {
            Form::Proto => self.client.run_proto(ROUTE, self.message(pass, number)),
            Form::Json => {
                let data: Vec<Value> = pass.data.iter().map(Datum::json).collect();
                let (route, input) = match pass.forward_only {
                    true => ("forward", "forward_input"),
                    false => (ROUTE, "forward_backward_input"),
                };
                let body = json!({
                    "model_id": self.model, "seq_id": number,
                    input: { "data": data, "loss_fn": pass.loss },
                });
                self.client.run(route, body)
            }
        }
    }

    /// A `ForwardBackwardRequest`.
    fn message(&self, pass: &Pass, number: u32) -> Vec<u8> {
        let head = Message::default()
            .bytes(1, self.model.as_bytes())
            .number(2, u64::from(number));
        let data = pass.data.iter();
        data.fold(head, |message, datum| message.message(3, &datum.proto()))
            .bytes(4, pass.loss.as_bytes())
            .number(6, u64::from(pass.forward_only))
            .into_bytes()
    }
}

/// Whether an engine could not read what it was sent. It has done nothing, then.
fn is_unread(error: &TrainError) -> bool {
    matches!(
        error,
        TrainError::Remote(TinkerError::Refused { path, status: 400 | 415 | 422, .. }) if path == ROUTE
    )
}
