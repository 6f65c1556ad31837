//! Fields that are refused.

use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer};
use serde_json::Value;

use super::fault::unsupported;

/// Why a field is refused.
pub(crate) trait Reason {
    /// Text after the field's name in the error, with a leading space, or empty.
    const DETAIL: &'static str;
    /// Whether values that have no effect pass: empty lists, objects and texts, `false` and `"none"`.
    const EMPTY_PASSES: bool;
}

/// This server does not support it.
#[derive(Clone, Debug)]
pub(crate) struct NotSupported;

impl Reason for NotSupported {
    const DETAIL: &'static str = "";
    const EMPTY_PASSES: bool = true;
}

/// This server has no conversations or prompts under an id.
#[derive(Clone, Debug)]
pub(crate) struct NotStored;

impl Reason for NotStored {
    const DETAIL: &'static str =
        " (nothing is kept under such an id: send the whole conversation in `input`)";
    const EMPTY_PASSES: bool = true;
}

/// This server answers while the client waits.
#[derive(Clone, Debug)]
pub(crate) struct NotInBackground;

impl Reason for NotInBackground {
    const DETAIL: &'static str = " (wait for the response, or stream it)";
    const EMPTY_PASSES: bool = true;
}

/// This server continues texts and fills no gaps in them.
#[derive(Clone, Debug)]
pub(crate) struct NotFilledIn;

impl Reason for NotFilledIn {
    const DETAIL: &'static str = " (texts are continued, not filled in)";
    const EMPTY_PASSES: bool = true;
}

/// This server searches nothing. An empty object asks for a search with the usual settings.
#[derive(Clone, Debug)]
pub(crate) struct NotSearched;

impl Reason for NotSearched {
    const DETAIL: &'static str = " (nothing is searched)";
    const EMPTY_PASSES: bool = false;
}

/// This server does not store chat completions.
#[derive(Clone, Debug)]
pub(crate) struct NotKept;

impl Reason for NotKept {
    const DETAIL: &'static str = " (answers are not stored)";
    const EMPTY_PASSES: bool = true;
}

/// A field that would affect the output and that this server does not support.
#[derive(Clone, Debug)]
pub(crate) struct Refused<R = NotSupported>(PhantomData<R>);

impl<'de, R: Reason> Deserialize<'de> for Refused<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let asks = match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::String(text) => !text.is_empty() && text != "none",
            Value::Bool(true) | Value::Number(_) => true,
        };
        if asks || !R::EMPTY_PASSES {
            return Err(unsupported(R::DETAIL));
        }
        Ok(Self(PhantomData))
    }
}
