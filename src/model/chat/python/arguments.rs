//! Arguments of functions, by position and by name.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, Value};

use super::{str_of, wrong};

/// The arguments of a call, in the order of its parameters.
pub(super) struct Arguments<const N: usize>([Option<Value>; N]);

/// Sorts arguments into parameters.
///
/// # Errors
/// For too many arguments, or a name that is no parameter.
pub(super) fn bind<const N: usize>(
    function: &str,
    arguments: &[Value],
    names: [&str; N],
) -> Result<Arguments<N>, Error> {
    let (positional, keywords): (&[Value], Kwargs) = from_args(arguments)?;
    if positional.len() > N {
        return Err(wrong(format!(
            "{function}() takes at most {N} arguments ({} given)",
            positional.len()
        )));
    }
    let mut bound = [const { None }; N];
    for (place, value) in bound.iter_mut().zip(positional) {
        *place = Some(value.clone());
    }
    for key in keywords.args() {
        let Some(place) = names.iter().position(|name| *name == key) else {
            return Err(wrong(format!(
                "{function}() got an unexpected keyword argument '{key}'"
            )));
        };
        bound[place] = Some(keywords.peek(key)?);
    }
    Ok(Arguments(bound))
}

impl<const N: usize> Arguments<N> {
    /// An argument; `None` if it is missing or Python's `None`.
    pub(super) fn given(&self, place: usize) -> Option<&Value> {
        let value = self.0.get(place)?.as_ref();
        value.filter(|value| !value.is_none())
    }

    /// An argument, whatever it is.
    pub(super) fn any(&self, place: usize) -> Option<&Value> {
        self.0.get(place)?.as_ref()
    }

    /// Whether an argument is true; `otherwise` if it is missing.
    pub(super) fn flag(&self, place: usize, otherwise: bool) -> bool {
        self.any(place).map_or(otherwise, Value::is_true)
    }

    /// An argument as a whole number.
    pub(super) fn whole(&self, place: usize) -> Result<Option<i64>, Error> {
        let Some(value) = self.given(place) else {
            return Ok(None);
        };
        whole(value).map(Some)
    }

    /// An argument as text, which every value can be.
    pub(super) fn text(&self, place: usize) -> Result<Option<String>, Error> {
        self.given(place).map(str_of).transpose()
    }
}

/// A whole number; values beyond 64 bits are the largest.
pub(super) fn whole(value: &Value) -> Result<i64, Error> {
    if value.is_integer() || value.kind() == minijinja::value::ValueKind::Bool {
        let number = i128::try_from(value.clone())?;
        return Ok(number.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
    }
    Err(wrong(format!(
        "'{}' object cannot be interpreted as an integer",
        super::type_name(value)
    )))
}
