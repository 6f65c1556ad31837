//! Filters that order values.

use std::cmp::Ordering;

use minijinja::value::Rest;
use minijinja::{Environment, Error, Value};

use super::super::budget::{charge, charge_list};
use super::arguments::bind;
use super::lists::at;
use super::operators::holds as ordered;
use super::{elements, is_dict, methods, objects, wrong};

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
    environment.add_filter("groupby", groupby);
    environment.add_filter("min", |v: Value, r: Rest<Value>| {
        extreme(&v, &r, "min", Ordering::Less)
    });
    environment.add_filter("max", |v: Value, r: Rest<Value>| {
        extreme(&v, &r, "max", Ordering::Greater)
    });
}

/// What values are ordered by: text without its case, unless that counts.
fn key(value: &Value, keeps_case: bool) -> Value {
    match value.as_str() {
        Some(text) if !keeps_case => Value::from(text.to_lowercase()),
        _ => value.clone(),
    }
}

/// Sorts by keys; equal ones keep their order.
fn sorted(
    items: Vec<Value>,
    reverse: bool,
    by: impl Fn(&Value) -> Result<Value, Error>,
) -> Result<Vec<Value>, Error> {
    charge_list(items.len())?;
    let mut runs = Vec::with_capacity(items.len());
    for item in items {
        runs.push(vec![(by(&item)?, item)]);
    }
    // The library's sort takes no comparison that fails, and may panic on one that is no order.
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut left = runs.into_iter();
        while let Some(a) = left.next() {
            merged.push(match left.next() {
                Some(b) => merge(a, b, reverse)?,
                None => a,
            });
        }
        runs = merged;
    }
    let sorted = runs.pop().unwrap_or_default();
    Ok(sorted.into_iter().map(|(_, item)| item).collect())
}

/// A value behind its key.
type Keyed = (Value, Value);

/// Two sorted runs as one.
fn merge(a: Vec<Keyed>, b: Vec<Keyed>, reverse: bool) -> Result<Vec<Keyed>, Error> {
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let second_first = match reverse {
            true => ordered("<", &x.0, &y.0)?,
            false => ordered("<", &y.0, &x.0)?,
        };
        merged.extend(if second_first { b.next() } else { a.next() });
    }
    merged.extend(a);
    merged.extend(b);
    Ok(merged)
}

fn dictsort(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("dictsort", &rest, ["case_sensitive", "by", "reverse"])?;
    let place = match given.text(1)?.as_deref() {
        None | Some("key") => 0,
        Some("value") => 1,
        Some(_) => {
            return Err(wrong("You can only sort by either \"key\" or \"value\""));
        }
    };
    if !is_dict(&value) {
        let kind = super::type_name(&value);
        return Err(wrong(format!("'{kind} object' has no attribute 'items'")));
    }
    let keeps_case = given.flag(0, false);
    let by = |pair: &Value| Ok(key(&pair.get_item_by_index(place)?, keeps_case));
    sorted(methods::pairs(&value)?, given.flag(2, false), by).map(Value::from)
}

fn sort(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("sort", &rest, ["reverse", "case_sensitive", "attribute"])?;
    let keeps_case = given.flag(1, false);
    let paths = given.text(2)?;
    let by = |item: &Value| match &paths {
        None => Ok(key(item, keeps_case)),
        Some(paths) => {
            let parts = paths
                .split(',')
                .map(|path| at(item, &Value::from(path)).map(|value| key(&value, keeps_case)));
            parts
                .collect::<Result<Vec<Value>, Error>>()
                .map(Value::from)
        }
    };
    sorted(elements(&value)?, given.flag(0, false), by).map(Value::from)
}

fn unique(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("unique", &rest, ["case_sensitive", "attribute"])?;
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for item in elements(&value)? {
        charge(1, 0)?;
        let of = match given.given(1) {
            Some(path) => at(&item, path)?,
            None => item.clone(),
        };
        if seen.insert(key(&of, given.flag(0, false))) {
            kept.push(item);
        }
    }
    Ok(objects::generator(kept))
}

fn extreme(value: &Value, rest: &[Value], name: &str, wanted: Ordering) -> Result<Value, Error> {
    let given = bind(name, rest, ["case_sensitive", "attribute"])?;
    let operator = if wanted.is_lt() { "<" } else { ">" };
    let mut best: Option<Keyed> = None;
    for item in elements(value)? {
        charge(1, 0)?;
        let of = match given.given(1) {
            Some(path) => at(&item, path)?,
            None => item.clone(),
        };
        let of = key(&of, given.flag(0, false));
        let is_better = match &best {
            Some((least, _)) => ordered(operator, &of, least)?,
            None => true,
        };
        if is_better {
            best = Some((of, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn groupby(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("groupby", &rest, ["attribute", "default", "case_sensitive"])?;
    let path = given.any(0).cloned().unwrap_or_default();
    let keeps_case = given.flag(2, false);
    let by = |item: &Value| {
        let found = at(item, &path)?;
        let found = match (found.is_undefined(), given.any(1)) {
            (true, Some(otherwise)) => otherwise.clone(),
            _ => found,
        };
        Ok(key(&found, keeps_case))
    };
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for item in sorted(elements(&value)?, false, by)? {
        let of = by(&item)?;
        match groups.last_mut() {
            Some((last, _, group)) if *last == of => group.push(item),
            _ => groups.push((of, at(&item, &path)?, vec![item])),
        }
    }
    let pairs = groups
        .into_iter()
        .map(|(_, grouper, group)| objects::tuple(vec![grouper, Value::from(group)]));
    Ok(Value::from(pairs.collect::<Vec<_>>()))
}
