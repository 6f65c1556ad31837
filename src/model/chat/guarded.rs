//! Operations of templates whose results can be much larger than what they are given, within the
//! [`budget`](super::budget).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object, Rest, StringInput, ValueKind};
use minijinja::{Environment, Error, ErrorKind, FormatStyle, State, Value, filters};

use super::budget::{charge, charge_list, charge_text, check, exceeded, weigh};

/// Weighs a value whose text is new. These names are none that a template can write.
pub(super) const CHECK_NEW: &str = "realign check new";
/// Weighs a value that may share its text.
pub(super) const CHECK_SHARED: &str = "realign check shared";
/// `*`.
pub(super) const MULTIPLY: &str = "realign multiply";
/// Assigns to an attribute.
pub(super) const ASSIGN: &str = "realign assign";

/// Registers the guards, and puts bounds on what minijinja has none for.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function(CHECK_NEW, |value: Value| {
        check(&value, true).map(|()| value)
    });
    environment.add_function(CHECK_SHARED, |value: Value| {
        check(&value, false).map(|()| value)
    });
    environment.add_function(MULTIPLY, multiply);
    environment.add_function(ASSIGN, assign);
    environment.add_function("namespace", namespace);
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("format", format);
    environment.add_test("in", is_in);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        check(value, true)?;
        minijinja::escape_formatter(out, state, value)
    });
}

fn wrong(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Python's `*`: numbers, and repeated texts and lists.
fn multiply(left: Value, right: Value) -> Result<Value, Error> {
    let repeats = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable
        )
    };
    match (repeats(&left), repeats(&right)) {
        (true, false) => repeat(&left, right),
        (false, true) => repeat(&right, left),
        _ if left.is_integer() && right.is_integer() => {
            let (a, b) = (i128::try_from(left)?, i128::try_from(right)?);
            let product = a
                .checked_mul(b)
                .ok_or_else(|| wrong("a product is too large"))?;
            Ok(i64::try_from(product).map_or_else(|_| Value::from(product), Value::from))
        }
        _ => Ok(Value::from(f64::try_from(left)? * f64::try_from(right)?)),
    }
}

fn repeat(value: &Value, times: Value) -> Result<Value, Error> {
    let times = usize::try_from(times)
        .map_err(|_| wrong("texts and lists can only be multiplied with whole numbers"))?;
    if let Some(text) = value.as_str() {
        charge_text(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    let length = value
        .len()
        .ok_or_else(|| wrong("a list without a length cannot be repeated"))?;
    charge_list(length.saturating_mul(times))?;
    let items: Vec<Value> = value.try_iter()?.collect();
    let repeated = (0..times).flat_map(|_| items.iter().cloned());
    Ok(Value::from(repeated.collect::<Vec<Value>>()))
}

/// What `namespace()` makes: names that a template may assign to.
#[derive(Debug, Default)]
struct Names(Mutex<BTreeMap<String, Value>>);

impl Names {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.lock().get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = self.lock().keys().map(Value::from).collect();
        Enumerator::Values(names)
    }
}

fn namespace(defaults: Option<Value>) -> Result<Value, Error> {
    let names = Names::default();
    if let Some(defaults) = defaults {
        if defaults.kind() != ValueKind::Map {
            return Err(wrong("namespace() takes keyword arguments or a dict"));
        }
        for key in defaults.try_iter()? {
            let value = defaults.get_item(&key)?;
            names.lock().insert(key.to_string(), value);
        }
    }
    Ok(Value::from_object(names))
}

/// `{% set target.name = value %}`. A namespace inside itself would have no end when it is written
/// or compared.
fn assign(value: Value, target: Value, name: &str) -> Result<(), Error> {
    let Some(names) = target.downcast_object_ref::<Names>() else {
        let kind = target.kind();
        return Err(wrong(format!("can only assign to namespaces, not {kind}")));
    };
    if holds_names(&value)? {
        return Err(wrong("a namespace cannot be assigned to a namespace"));
    }
    names.lock().insert(name.to_owned(), value);
    Ok(())
}

fn holds_names(value: &Value) -> Result<bool, Error> {
    if value.downcast_object_ref::<Names>().is_some() {
        return Ok(true);
    }
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return Ok(false),
    };
    let Ok(items) = value.try_iter() else {
        return Ok(false);
    };
    for item in items {
        charge(1, 0)?;
        let inner = match is_map {
            true => value.get_item(&item)?,
            false => item,
        };
        if holds_names(&inner)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn join(state: &State, value: &Value, joiner: Option<StringInput<'_>>) -> Result<Value, Error> {
    let between = joiner.as_ref().map_or(0, |joiner| joiner.as_str().len());
    charge_join(value, between)?;
    filters::join(state, value, joiner)
}

fn charge_join(items: &Value, between: usize) -> Result<(), Error> {
    let weight = weigh(items)?;
    let joiners = between.saturating_mul(weight.nodes as usize);
    charge_text(joiners.saturating_add(weight.text as usize))
}

fn replace(text: Cow<'_, str>, from: Cow<'_, str>, to: Cow<'_, str>) -> Result<String, Error> {
    charge_replace(&text, &from, &to)?;
    Ok(text.replace(&*from, &to))
}

fn charge_replace(text: &str, from: &str, to: &str) -> Result<(), Error> {
    let inserted = text.matches(from).count().saturating_mul(to.len());
    charge_text(inserted.saturating_add(text.len()))
}

fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let spaces = match width {
        Some(width) => width,
        None => options.get::<Option<usize>>("width")?.unwrap_or(4),
    };
    let lines = text.as_str().matches('\n').count() + 1;
    charge_text(lines.saturating_mul(spaces))?;
    filters::indent(text, width, first, blank, options)
}

fn batch(state: &State, items: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    charge_list(count)?;
    filters::batch(state, items, count, fill)
}

fn slice(state: &State, items: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    charge_list(count)?;
    filters::slice(state, items, count, fill)
}

fn format(text: &str, values: Rest<Value>) -> Result<String, Error> {
    charge_format(text, &values)?;
    minijinja::format_filter(FormatStyle::Printf, text, &values)
}

/// Widths and precisions are numbers in the text, and every placeholder may write every value.
fn charge_format(text: &str, values: &[Value]) -> Result<(), Error> {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    let widths = runs
        .filter(|run| !run.is_empty())
        .map(|run| run.parse().unwrap_or(usize::MAX));
    let widths = widths.fold(0, usize::saturating_add);
    let mut longest = 64;
    for value in values {
        let weight = weigh(value)?;
        longest = longest.max(weight.text.saturating_add(16 * weight.nodes) as usize);
    }
    let placeholders = text.matches(['%', '{']).count();
    charge_text(placeholders.saturating_mul(longest).saturating_add(widths))
}

fn is_in(state: &State, value: &Value, container: &Value) -> Result<bool, Error> {
    charge(container.len().unwrap_or(0) as u64, 0)?;
    minijinja::tests::is_in(state, value, container)
}

/// Python's methods.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let arg = |i: usize| args.get(i).and_then(Value::as_str);
        match (name, arg(0)) {
            // The library looks for an empty text for ever.
            ("count", Some("")) => return Ok(Value::from(text.chars().count() + 1)),
            ("replace", Some(from)) => charge_replace(text, from, arg(1).unwrap_or_default())?,
            ("join", None) if args.len() == 1 => charge_join(&args[0], text.len())?,
            ("join", Some(items)) => {
                let joiners = text.len().saturating_mul(items.chars().count());
                charge_text(joiners.saturating_add(items.len()))?;
            }
            ("format", _) => charge_format(text, args)?,
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Most bytes of a template's source. The longest that models come with have 30 KB.
const MAX_SOURCE: usize = 1 << 20;
/// Most lines: the library counts them in 16 bits.
const MAX_LINES: usize = 50_000;

/// Refuses sources that are too long to be a template.
pub(super) fn check_source(source: &str) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(exceeded(format!("has more than {MAX_SOURCE} bytes")));
    }
    if source.matches('\n').count() > MAX_LINES {
        return Err(exceeded(format!("has more than {MAX_LINES} lines")));
    }
    Ok(())
}
