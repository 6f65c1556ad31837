//! Filters of lists and dictionaries.

use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Environment, Error, State, Value};

use super::super::budget::{charge, charge_list, charge_text, check_text};
use super::arguments::bind;
use super::{elements, is_dict, methods, objects, text_of, wrong};

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("list", |value: Value| elements(&value).map(Value::from));
    environment.add_filter("first", first);
    environment.add_filter("last", last);
    environment.add_filter("join", join);
    environment.add_filter("map", map);
    environment.add_filter("select", |s: &State, v: Value, r: Rest<Value>| {
        chosen(s, &v, &r, true)
    });
    environment.add_filter("reject", |s: &State, v: Value, r: Rest<Value>| {
        chosen(s, &v, &r, false)
    });
    environment.add_filter("selectattr", |s: &State, v: Value, r: Rest<Value>| {
        chosen_by_attribute(s, &v, &r, true)
    });
    environment.add_filter("rejectattr", |s: &State, v: Value, r: Rest<Value>| {
        chosen_by_attribute(s, &v, &r, false)
    });
    environment.add_filter("items", items);
    environment.add_filter("sum", sum);
    environment.add_filter("reverse", reverse);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
}

fn first(value: Value) -> Result<Value, Error> {
    if let Some(next) = objects::advance(&value) {
        return Ok(next.unwrap_or_default());
    }
    Ok(elements(&value)?.into_iter().next().unwrap_or_default())
}

fn last(value: Value) -> Result<Value, Error> {
    if objects::is_generator(&value) {
        return Err(wrong("'generator' object is not reversible"));
    }
    Ok(elements(&value)?.pop().unwrap_or_default())
}

fn join(value: Value, rest: Rest<Value>) -> Result<String, Error> {
    let given = bind("join", &rest, ["d", "attribute"])?;
    let between = given.text(0)?.unwrap_or_default();
    let attribute = given.given(1);
    let mut out = String::new();
    for (i, item) in elements(&value)?.into_iter().enumerate() {
        let item = match attribute {
            Some(path) => at(&item, path)?,
            None => item,
        };
        let text = text_of(&item)?;
        let added = between.len().saturating_add(text.len());
        check_text(out.len().saturating_add(added))?;
        charge_text(added)?;
        out.push_str(if i == 0 { "" } else { &between });
        out.push_str(&text);
    }
    Ok(out)
}

/// An attribute by its path: names and numbers between points.
pub(super) fn at(value: &Value, path: &Value) -> Result<Value, Error> {
    let Some(text) = path.as_str() else {
        return Ok(value.get_item(path).unwrap_or_default());
    };
    let mut value = value.clone();
    for part in text.split('.') {
        if value.is_undefined() {
            return Err(wrong(format!("there is no attribute '{text}'")));
        }
        let key = match part.parse::<usize>() {
            Ok(place) => Value::from(place),
            Err(_) => Value::from(part),
        };
        value = value.get_item(&key).unwrap_or_default();
    }
    Ok(value)
}

/// The elements of a value; none of what is false, such as `None`.
fn elements_if_any(value: &Value) -> Result<Vec<Value>, Error> {
    match value.is_true() {
        true => elements(value),
        false => Ok(Vec::new()),
    }
}

fn map(state: &State, value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(&rest)?;
    let items = elements_if_any(&value)?;
    let Some((filter, arguments)) = positional.split_first() else {
        let path: Option<Value> = named.peek("attribute")?;
        let path = path.ok_or_else(|| wrong("map requires a filter argument"))?;
        let otherwise: Option<Value> = named.peek("default")?;
        let attribute = |item: Value| {
            let found = at(&item, &path)?;
            Ok(match (&otherwise, found.is_undefined()) {
                (Some(otherwise), true) => otherwise.clone(),
                _ => found,
            })
        };
        let found: Result<Vec<Value>, Error> = items.into_iter().map(attribute).collect();
        return found.map(objects::generator);
    };
    let name = filter.as_str().unwrap_or_default();
    let keywords = (named.args().next().is_some()).then(|| rest.last().cloned());
    let apply = |item: Value| {
        charge(1, 0)?;
        let mut call = vec![item];
        call.extend_from_slice(arguments);
        call.extend(keywords.clone().flatten());
        state.apply_filter(name, &call)
    };
    let made: Result<Vec<Value>, Error> = items.into_iter().map(apply).collect();
    made.map(objects::generator)
}

/// Whether a test holds, which is given by its name and arguments; without one, whether the value is
/// true.
fn holds(state: &State, value: Value, test: &[Value]) -> Result<bool, Error> {
    charge(1, 0)?;
    let Some((name, arguments)) = test.split_first() else {
        return Ok(value.is_true());
    };
    let mut call = vec![value];
    call.extend_from_slice(arguments);
    state.perform_test(name.as_str().unwrap_or_default(), &call)
}

fn chosen(state: &State, value: &Value, test: &[Value], wanted: bool) -> Result<Value, Error> {
    let mut kept = Vec::new();
    for item in elements_if_any(value)? {
        if holds(state, item.clone(), test)? == wanted {
            kept.push(item);
        }
    }
    Ok(objects::generator(kept))
}

fn chosen_by_attribute(
    state: &State,
    value: &Value,
    given: &[Value],
    wanted: bool,
) -> Result<Value, Error> {
    let Some((path, test)) = given.split_first() else {
        return Err(wrong("Missing parameter for attribute name"));
    };
    let mut kept = Vec::new();
    for item in elements_if_any(value)? {
        if holds(state, at(&item, path)?, test)? == wanted {
            kept.push(item);
        }
    }
    Ok(objects::generator(kept))
}

fn items(value: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(objects::generator(Vec::new()));
    }
    match is_dict(&value) {
        true => methods::pairs(&value).map(objects::generator),
        false => Err(wrong("Can only get item pairs from a mapping.")),
    }
}

fn sum(state: &State, value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("sum", &rest, ["attribute", "start"])?;
    let mut total = given.any(1).cloned().unwrap_or(Value::from(0));
    let add = state
        .lookup(super::ADD)
        .ok_or_else(|| wrong("there is no operator +"))?;
    for item in elements(&value)? {
        let item = match given.given(0) {
            Some(path) => at(&item, path)?,
            None => item,
        };
        total = add.call(state, &[total, item])?;
    }
    Ok(total)
}

fn reverse(value: Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge_text(text.len())?;
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut items = elements(&value)?;
    items.reverse();
    Ok(objects::generator(items))
}

fn batch(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("batch", &rest, ["linecount", "fill_with"])?;
    let size = usize::try_from(given.whole(0)?.unwrap_or(1))
        .unwrap_or(0)
        .max(1);
    let mut lists = Vec::new();
    for chunk in elements(&value)?.chunks(size) {
        let mut chunk = chunk.to_vec();
        if let Some(fill) = given.given(1) {
            charge_list(size)?;
            chunk.resize(size, fill.clone());
        }
        lists.push(Value::from(chunk));
    }
    Ok(objects::generator(lists))
}

fn slice(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("slice", &rest, ["slices", "fill_with"])?;
    let count = usize::try_from(given.whole(0)?.unwrap_or(1)).unwrap_or(0);
    if count == 0 {
        return Err(wrong("integer division or modulo by zero"));
    }
    charge_list(count)?;
    let items = elements(&value)?;
    let (each, more) = (items.len() / count, items.len() % count);
    let mut rest = items.as_slice();
    let mut lists = Vec::new();
    for place in 0..count {
        let (these, left) = rest.split_at(each + usize::from(place < more));
        rest = left;
        let mut these = these.to_vec();
        if let Some(fill) = given.given(1)
            && place >= more
        {
            these.push(fill.clone());
        }
        lists.push(Value::from(these));
    }
    Ok(objects::generator(lists))
}
