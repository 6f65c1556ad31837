//! Filters of texts and of single values.

use minijinja::value::Rest;
use minijinja::{Environment, Error, Value};

use super::super::budget::charge_text;
use super::arguments::bind;
use super::{
    Method, elements, is_dict, objects, percent, str_of, strings, text, text_of, type_name, wrong,
};

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("trim", trim);
    environment.add_filter("string", |value: Value| str_of(&value));
    environment.add_filter("upper", |value: Value| {
        text_of(&value).map(|t| t.to_uppercase())
    });
    environment.add_filter("lower", |value: Value| {
        text_of(&value).map(|t| t.to_lowercase())
    });
    environment.add_filter("capitalize", |value: Value| {
        text_of(&value).map(|t| strings::capitalized(&t))
    });
    environment.add_filter("title", |value: Value| text_of(&value).map(|t| title(&t)));
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("attr", attr);
    environment.add_filter("pprint", |value: Value| text::repr(&value));
    environment.add_filter("center", |value: Value, width: Option<i64>| {
        let width = [Value::from(width.unwrap_or(80))];
        let centred = strings::call(&text_of(&value)?, "center", &width)?;
        Ok::<_, Error>(centred.unwrap_or_default())
    });
    environment.add_filter("wordcount", |value: Value| -> Result<usize, Error> {
        Ok(text_of(&value)?
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|w| !w.is_empty())
            .count())
    });
}

fn trim(value: Value, rest: Rest<Value>) -> Result<String, Error> {
    let chars = bind("trim", &rest, ["chars"])?.text(0)?;
    let text = text_of(&value)?;
    charge_text(text.len())?;
    Ok(strings::stripped(&text, chars.as_deref(), true, true).to_owned())
}

/// Words begin at the start, and behind white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut begins = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match begins {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        begins = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

fn replace(value: Value, rest: Rest<Value>) -> Result<String, Error> {
    let given = bind("replace", &rest, ["old", "new", "count"])?;
    let (Some(from), Some(to)) = (given.any(0), given.any(1)) else {
        return Err(wrong(
            "do_replace() missing required arguments: 'old' and 'new'",
        ));
    };
    strings::replaced(
        &text_of(&value)?,
        &text_of(from)?,
        &text_of(to)?,
        given.whole(2)?,
    )
}

fn indent(value: Value, rest: Rest<Value>) -> Result<String, Error> {
    let given = bind("indent", &rest, ["width", "first", "blank"])?;
    let margin = match given.given(0) {
        Some(text) if text.as_str().is_some() => str_of(text)?,
        _ => {
            let width = usize::try_from(given.whole(0)?.unwrap_or(4)).unwrap_or(0);
            charge_text(width)?;
            " ".repeat(width)
        }
    };
    let text = text_of(&value)?;
    let count = strings::lines(&text, false).count() + 1;
    charge_text(
        count
            .saturating_mul(margin.len())
            .saturating_add(text.len()),
    )?;
    // Behind a line break at the end there is an empty line.
    let text = format!("{text}\n");
    let blank = given.flag(2, false);
    let mut out = String::new();
    for (i, line) in strings::lines(&text, false).enumerate() {
        out.push_str(if i == 0 { "" } else { "\n" });
        let wanted = match i {
            0 => given.flag(1, false),
            _ => blank || !line.is_empty(),
        };
        out.push_str(if wanted { &margin } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

fn format(value: Value, rest: Rest<Value>) -> Result<String, Error> {
    let values = match rest.last() {
        Some(last) if last.is_kwargs() => last.clone(),
        _ => objects::tuple(rest.0),
    };
    percent::format(&text_of(&value)?, &values)
}

fn default(value: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let given = bind("default", &rest, ["default_value", "boolean"])?;
    let replaced = value.is_undefined() || (given.flag(1, false) && !value.is_true());
    Ok(match replaced {
        true => given.any(0).cloned().unwrap_or(Value::from("")),
        false => value,
    })
}

fn length(value: Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().count());
    }
    if value.is_undefined() {
        return Ok(0);
    }
    if is_dict(&value) || super::is_list(&value) {
        return match value.len() {
            Some(length) => Ok(length),
            None => Ok(elements(&value)?.len()),
        };
    }
    let kind = type_name(&value);
    Err(wrong(format!("object of type '{kind}' has no len()")))
}

/// An attribute, and never an item.
fn attr(value: Value, name: Value) -> Value {
    let name = name.as_str().unwrap_or_default().to_owned();
    match is_dict(&value) {
        true => Method::of(&value, &name).unwrap_or_default(),
        false => value.get_attr(&name).unwrap_or_default(),
    }
}
