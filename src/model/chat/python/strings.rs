//! Methods of texts.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::super::budget::{charge, charge_list, charge_text};
use super::arguments::{Arguments, bind};
use super::{elements, is_list, is_space, objects, type_name, wrong};

/// Calls a method of a text; `None` if texts have none of that name.
///
/// # Errors
/// Python's.
pub(super) fn call(text: &str, name: &str, given: &[Value]) -> Result<Option<Value>, Error> {
    charge(1, text.len() as u64)?;
    if let Some(changed) = changed(text, name) {
        bind(name, given, [])?;
        return Ok(Some(Value::from(changed)));
    }
    if let Some(is) = is_all(text, name) {
        bind(name, given, [])?;
        return Ok(Some(Value::from(is)));
    }
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = bind(name, given, ["chars"])?.text(0)?;
            Value::from(stripped(
                text,
                chars.as_deref(),
                name != "rstrip",
                name != "lstrip",
            ))
        }
        "split" | "rsplit" => {
            let given = bind(name, given, ["sep", "maxsplit"])?;
            split(text, &given, name == "rsplit")?
        }
        "splitlines" => {
            let keeps = bind(name, given, ["keepends"])?.flag(0, false);
            Value::from(lines(text, keeps).map(Value::from).collect::<Vec<_>>())
        }
        "partition" | "rpartition" => partition(text, name, given)?,
        "startswith" | "endswith" => {
            let given = bind(name, given, ["prefix", "start", "end"])?;
            Value::from(has_affix(text, name, &given)?)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let given = bind(name, given, ["sub", "start", "end"])?;
            search(text, name, &given)?
        }
        "replace" => {
            let given = bind(name, given, ["old", "new", "count"])?;
            let (from, to) = (part(&given, 0, name)?, part(&given, 1, name)?);
            Value::from(replaced(text, &from, &to, given.whole(2)?)?)
        }
        "removeprefix" | "removesuffix" => {
            let affix = part(&bind(name, given, ["affix"])?, 0, name)?;
            let left = match name {
                "removeprefix" => text.strip_prefix(&affix),
                _ => text.strip_suffix(&affix),
            };
            Value::from(left.unwrap_or(text))
        }
        "join" => {
            let given = bind(name, given, ["iterable"])?;
            let items = given.any(0).map(elements).transpose()?.unwrap_or_default();
            Value::from(joined(text, &items)?)
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let given = bind(name, given, ["width", "fillchar"])?;
            Value::from(padded(text, name, &given)?)
        }
        _ => return Ok(None),
    }))
}

/// Methods without arguments that give a text.
fn changed(text: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "capitalize" => capitalized(text),
        "title" => {
            let mut after_letter = false;
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                match after_letter {
                    true => out.extend(c.to_lowercase()),
                    false => out.extend(c.to_uppercase()),
                }
                after_letter = c.is_alphabetic();
            }
            out
        }
        "swapcase" => {
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                match c.is_uppercase() {
                    true => out.extend(c.to_lowercase()),
                    false => out.extend(c.to_uppercase()),
                }
            }
            out
        }
        _ => return None,
    })
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else {
        return String::new();
    };
    first
        .to_uppercase()
        .chain(chars.as_str().to_lowercase().chars())
        .collect()
}

/// Methods that ask for a kind of character; an empty text has none.
fn is_all(text: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let cased = |wanted: fn(char) -> bool, other: fn(char) -> bool| {
        text.chars().any(wanted) && !text.chars().any(other)
    };
    Some(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isdecimal" => all(|c| c.is_ascii_digit()),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        _ => return None,
    })
}

/// A text without white space, or the given characters, at its ends.
pub(super) fn stripped<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let drops = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start {
        text.trim_start_matches(drops)
    } else {
        text
    };
    if end {
        text.trim_end_matches(drops)
    } else {
        text
    }
}

fn split(text: &str, given: &Arguments<2>, from_end: bool) -> Result<Value, Error> {
    let most = match given.whole(1)? {
        Some(most) if most >= 0 => most as usize,
        _ => usize::MAX - 1,
    };
    let parts: Vec<Value> = match given.given(0) {
        None => words(text, most, from_end)
            .into_iter()
            .map(Value::from)
            .collect(),
        Some(_) => {
            let separator = part(given, 0, "split")?;
            if separator.is_empty() {
                return Err(wrong("empty separator"));
            }
            charge_list(text.matches(&separator).count().min(most))?;
            match from_end {
                true => {
                    let mut parts: Vec<Value> = text
                        .rsplitn(most + 1, &separator)
                        .map(Value::from)
                        .collect();
                    parts.reverse();
                    parts
                }
                false => text.splitn(most + 1, &separator).map(Value::from).collect(),
            }
        }
    };
    charge_list(parts.len())?;
    Ok(Value::from(parts))
}

/// What stands between white space, split at most so many times.
fn words(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = stripped(text, None, true, true);
    while !rest.is_empty() {
        let at = match from_end {
            true => rest.rfind(is_space),
            false => rest.find(is_space),
        };
        match at {
            Some(at) if words.len() < most => {
                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                let (word, left) = match from_end {
                    true => (&rest[at + width..], &rest[..at]),
                    false => (&rest[..at], &rest[at + width..]),
                };
                words.push(word);
                rest = stripped(left, None, !from_end, from_end);
            }
            _ => {
                words.push(rest);
                break;
            }
        }
    }
    if from_end {
        words.reverse();
    }
    words
}

/// The lines of a text, as `splitlines` finds them.
pub(super) fn lines(text: &str, keeps_ends: bool) -> impl Iterator<Item = &str> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ends).unwrap_or(rest.len());
        let after = &rest[at..];
        let width = match after.starts_with("\r\n") {
            true => 2,
            false => after.chars().next().map_or(0, char::len_utf8),
        };
        let line = &rest[..if keeps_ends { at + width } else { at }];
        rest = &rest[at + width..];
        Some(line)
    })
}

fn partition(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let separator = part(&bind(name, given, ["sep"])?, 0, name)?;
    if separator.is_empty() {
        return Err(wrong("empty separator"));
    }
    let parts = match name {
        "partition" => text.split_once(&separator),
        _ => text.rsplit_once(&separator),
    };
    let (before, between, after) = match parts {
        Some((before, after)) => (before, separator.as_str(), after),
        None if name == "partition" => (text, "", ""),
        None => ("", "", text),
    };
    Ok(objects::tuple(
        [before, between, after].map(Value::from).into(),
    ))
}

/// An argument that must be text.
fn part<const N: usize>(given: &Arguments<N>, place: usize, name: &str) -> Result<String, Error> {
    let value = given.any(place).cloned().unwrap_or_default();
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(format!(
            "{name}: must be str, not {}",
            type_name(&value)
        ))),
    }
}

/// The part of a text between two places, and how many characters are before it.
fn window<'a>(text: &'a str, given: &Arguments<3>) -> Result<(&'a str, usize), Error> {
    if given.given(1).is_none() && given.given(2).is_none() {
        return Ok((text, 0));
    }
    let length = text.chars().count() as i64;
    let place = |bound: Option<i64>, otherwise: i64| {
        let bound = bound.unwrap_or(otherwise);
        let bound = if bound < 0 {
            bound.saturating_add(length)
        } else {
            bound
        };
        bound.clamp(0, length) as usize
    };
    let (start, end) = (place(given.whole(1)?, 0), place(given.whole(2)?, length));
    let byte = |at: usize| {
        text.char_indices()
            .nth(at)
            .map_or(text.len(), |(byte, _)| byte)
    };
    Ok((&text[byte(start)..byte(end.max(start))], start))
}

fn has_affix(text: &str, name: &str, given: &Arguments<3>) -> Result<bool, Error> {
    let (text, _) = window(text, given)?;
    let has = |affix: &str| match name {
        "startswith" => text.starts_with(affix),
        _ => text.ends_with(affix),
    };
    let wanted = given.any(0).cloned().unwrap_or_default();
    if let Some(affix) = wanted.as_str() {
        return Ok(has(affix));
    }
    if is_list(&wanted) && objects::is_tuple(&wanted) {
        let affixes = elements(&wanted)?;
        return Ok(affixes.iter().filter_map(Value::as_str).any(has));
    }
    Err(wrong(format!(
        "{name} first arg must be str or a tuple of str, not {}",
        type_name(&wanted)
    )))
}

fn search(text: &str, name: &str, given: &Arguments<3>) -> Result<Value, Error> {
    let wanted = part(given, 0, name)?;
    let (text, before) = window(text, given)?;
    if name == "count" {
        // The library finds an empty text at both ends of each character, as Python does.
        return Ok(Value::from(text.matches(&wanted).count()));
    }
    let at = match name.starts_with('r') {
        true => text.rfind(&wanted),
        false => text.find(&wanted),
    };
    match at {
        Some(at) => Ok(Value::from(before + text[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(wrong("substring not found")),
    }
}

/// A text with some occurrences of another one replaced.
pub(super) fn replaced(
    text: &str,
    from: &str,
    to: &str,
    most: Option<i64>,
) -> Result<String, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok());
    let found = text.matches(from).count().min(most.unwrap_or(usize::MAX));
    charge_text(found.saturating_mul(to.len()).saturating_add(text.len()))?;
    Ok(text.replacen(from, to, found))
}

fn joined(between: &str, items: &[Value]) -> Result<String, Error> {
    let mut length = between.len().saturating_mul(items.len());
    for (place, item) in items.iter().enumerate() {
        let Some(text) = item.as_str() else {
            let kind = type_name(item);
            return Err(wrong(format!(
                "sequence item {place}: expected str instance, {kind} found"
            )));
        };
        length = length.saturating_add(text.len());
    }
    charge_text(length)?;
    let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
    Ok(texts.join(between))
}

fn padded(text: &str, name: &str, given: &Arguments<2>) -> Result<String, Error> {
    let width = usize::try_from(given.whole(0)?.unwrap_or(0)).unwrap_or(0);
    let fill = match given.any(1) {
        Some(fill) if fill.kind() == ValueKind::String => fill.as_str().unwrap_or(" ").to_owned(),
        _ if name == "zfill" => "0".to_owned(),
        _ => " ".to_owned(),
    };
    if fill.chars().count() != 1 {
        return Err(wrong(
            "The fill character must be exactly one character long",
        ));
    }
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    charge_text(
        missing
            .saturating_mul(fill.len())
            .saturating_add(text.len()),
    )?;
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, rest) = match name == "zfill" && text.starts_with(['+', '-']) {
        true => text.split_at(1),
        false => ("", text),
    };
    Ok(format!(
        "{sign}{}{rest}{}",
        fill.repeat(left),
        fill.repeat(missing - left)
    ))
}
