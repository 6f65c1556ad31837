//! What one rendering may take.
//!
//! A template is code that came with a model. minijinja counts its steps, but one step can repeat a
//! string a billion times or double a list that is shared, so every value that a step makes is
//! weighed, too. The budget belongs to the thread: a rendering never leaves it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Steps of the interpreter, those that weigh values included. A message takes about a hundred.
pub(super) const MAX_STEPS: u64 = 1_000_000;
/// Text that is made altogether, bytes.
const MAX_TEXT: u64 = 128 << 20;
/// Elements that are weighed altogether.
const MAX_WEIGHED: u64 = 20_000_000;
/// Text in one value, bytes; shared strings count each time.
const MAX_VALUE_TEXT: u64 = 32 << 20;
/// Elements of one value with everything inside it.
const MAX_VALUE_NODES: u64 = 200_000;
const MAX_DEPTH: usize = 64;
/// For what is cheap to count and slow to do.
const MAX_TIME: Duration = Duration::from_secs(10);

/// A template takes more than it may.
#[derive(Debug, thiserror::Error)]
#[error("it {0}")]
pub(super) struct Exceeded(String);

pub(super) fn exceeded(what: impl Into<String>) -> Error {
    let why = Exceeded(what.into());
    Error::new(ErrorKind::InvalidOperation, why.to_string()).with_source(why)
}

/// What a rendering failed on, if that was its budget.
pub(super) fn reason(error: &Error) -> Option<String> {
    if error.kind() == ErrorKind::OutOfFuel {
        return Some(format!("it takes more than {MAX_STEPS} steps"));
    }
    if error.detail() == Some("recursion limit exceeded") {
        return Some("its macros or loops call themselves too often".into());
    }
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(why) = source.downcast_ref::<Exceeded>() {
            return Some(why.to_string());
        }
        next = source.source();
    }
    None
}

#[derive(Clone, Copy)]
struct Budget {
    text: u64,
    nodes: u64,
    until: Instant,
}

thread_local! {
    static BUDGET: Cell<Option<Budget>> = const { Cell::new(None) };
}

/// Runs a rendering with a budget of its own.
pub(super) fn with_budget<T>(render: impl FnOnce() -> T) -> T {
    struct Restore(Option<Budget>);
    impl Drop for Restore {
        fn drop(&mut self) {
            BUDGET.set(self.0);
        }
    }
    let _restore = Restore(BUDGET.replace(Some(Budget {
        text: MAX_TEXT,
        nodes: MAX_WEIGHED,
        until: Instant::now() + MAX_TIME,
    })));
    render()
}

/// Takes from the budget what a step is about to make, or has made.
pub(super) fn charge(nodes: u64, text: u64) -> Result<(), Error> {
    let Some(mut budget) = BUDGET.get() else {
        return Ok(());
    };
    let left = |have: u64, takes: u64| have.checked_sub(takes);
    budget.text = left(budget.text, text)
        .ok_or_else(|| exceeded(format!("makes more than {MAX_TEXT} bytes of text")))?;
    budget.nodes = left(budget.nodes, nodes)
        .ok_or_else(|| exceeded(format!("handles more than {MAX_WEIGHED} values")))?;
    BUDGET.set(Some(budget));
    match Instant::now() > budget.until {
        true => Err(exceeded(format!(
            "takes longer than {} s",
            MAX_TIME.as_secs()
        ))),
        false => Ok(()),
    }
}

/// As [`charge`], for one text that is about to be made.
pub(super) fn charge_text(bytes: usize) -> Result<(), Error> {
    check_text(bytes)?;
    charge(1, bytes as u64)
}

/// Refuses a text of more bytes than one may have.
pub(super) fn check_text(bytes: usize) -> Result<(), Error> {
    match bytes as u64 > MAX_VALUE_TEXT {
        true => Err(too_long()),
        false => Ok(()),
    }
}

/// As [`charge`], for a list that is about to be made.
pub(super) fn charge_list(length: usize) -> Result<(), Error> {
    let length = length as u64;
    if length > MAX_VALUE_NODES {
        return Err(too_many());
    }
    charge(length, 0)
}

fn too_long() -> Error {
    exceeded(format!(
        "makes a value with more than {MAX_VALUE_TEXT} bytes of text"
    ))
}

fn too_many() -> Error {
    exceeded(format!(
        "makes a value of more than {MAX_VALUE_NODES} elements"
    ))
}

/// The size of a value with everything inside it.
#[derive(Clone, Copy, Default)]
pub(super) struct Weight {
    pub(super) nodes: u64,
    pub(super) text: u64,
}

/// Weighs a value, and refuses one that is too large or nested too deeply.
pub(super) fn weigh(value: &Value) -> Result<Weight, Error> {
    let mut weight = Weight::default();
    add(value, 0, &mut weight)?;
    Ok(weight)
}

fn add(value: &Value, depth: usize, weight: &mut Weight) -> Result<(), Error> {
    weight.nodes += 1;
    let text = value.as_str().map(str::len);
    let bytes = text.or_else(|| value.as_bytes().map(<[u8]>::len));
    weight.text = weight.text.saturating_add(bytes.unwrap_or(0) as u64);
    if weight.text > MAX_VALUE_TEXT {
        return Err(too_long());
    }
    if weight.nodes > MAX_VALUE_NODES {
        return Err(too_many());
    }
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return Ok(()),
    };
    if depth >= MAX_DEPTH {
        return Err(exceeded(format!("nests values more than {MAX_DEPTH} deep")));
    }
    // Objects that do not list what they hold, such as macros, count as one.
    let Ok(items) = value.try_iter() else {
        return Ok(());
    };
    for item in items {
        // An iterator finds an item by walking to it, so only maps are asked.
        if is_map && let Ok(inner) = value.get_item(&item) {
            add(&inner, depth + 1, weight)?;
        }
        add(&item, depth + 1, weight)?;
    }
    Ok(())
}

/// Weighs a value that a step has made. The text inside a list may be shared with others, so only
/// what `text_is_new` is charged.
pub(super) fn check(value: &Value, text_is_new: bool) -> Result<(), Error> {
    let weight = weigh(value)?;
    charge(weight.nodes, if text_is_new { weight.text } else { 0 })
}
