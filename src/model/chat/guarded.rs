//! Checks of what templates write and of what their steps make, within the
//! [`budget`](super::budget).

use minijinja::{Environment, Error, Value};

use super::budget::check;
use super::python::text_of;

/// Weighs a value whose text is new. These names are none that a template can write.
pub(super) const CHECK_NEW: &str = "realign check new";
/// Weighs a value that may share its text.
pub(super) const CHECK_SHARED: &str = "realign check shared";
/// Assigns to an attribute.
pub(super) const ASSIGN: &str = "realign assign";

/// Registers the guards.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function(CHECK_NEW, |value: Value| {
        check(&value, true).map(|()| value)
    });
    environment.add_function(CHECK_SHARED, |value: Value| {
        check(&value, false).map(|()| value)
    });
    environment.set_formatter(|out, _state, value| {
        check(value, true)?;
        out.write_str(&text_of(value)?).map_err(Error::from)
    });
}
