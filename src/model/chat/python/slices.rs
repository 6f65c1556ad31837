//! `value[start:stop:step]`. minijinja's own slices panic on an empty list with a step back.

use minijinja::{Error, Value};

use super::super::budget::{charge_list, charge_text};
use super::arguments::whole;
use super::{is_dict, is_list, objects, undefined, wrong};

/// A bound of a slice.
fn bound(value: &Value) -> Result<Option<i64>, Error> {
    if value.is_none() {
        return Ok(None);
    }
    whole(value)
        .map(Some)
        .map_err(|_| wrong("slice indices must be integers or None or have an __index__ method"))
}

pub(super) fn slice(value: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined(3));
    }
    if is_dict(&value) {
        return Err(wrong("unhashable type: 'slice'"));
    }
    if value.as_str().is_none() && !is_list(&value) {
        return Ok(Value::UNDEFINED);
    }
    let step = bound(&step)?.unwrap_or(1);
    if step == 0 {
        return Err(wrong("slice step cannot be zero"));
    }
    let (start, stop) = (bound(&start)?, bound(&stop)?);
    if let Some(text) = value.as_str() {
        charge_text(text.len())?;
        let chars: Vec<char> = text.chars().collect();
        let kept = places(chars.len(), start, stop, step).map(|i| chars[i]);
        return Ok(Value::from(kept.collect::<String>()));
    }
    charge_list(value.len().unwrap_or(0))?;
    let items: Vec<Value> = value.try_iter()?.collect();
    let kept = places(items.len(), start, stop, step).map(|i| items[i].clone());
    let kept: Vec<Value> = kept.collect();
    Ok(match objects::is_tuple(&value) {
        true => objects::tuple(kept),
        false => Value::from(kept),
    })
}

/// The places that a slice takes, all below `length`.
fn places(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = length as i64;
    let (least, most) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let clamped = |bound: i64| {
        let from_start = if bound < 0 {
            bound.saturating_add(length)
        } else {
            bound
        };
        from_start.clamp(least, most)
    };
    let start = start.map_or(if step > 0 { least } else { most }, clamped);
    let stop = stop.map_or(if step > 0 { most } else { least }, clamped);
    let is_left = move |place: i64| if step > 0 { place < stop } else { place > stop };
    std::iter::successors(Some(start), move |place| place.checked_add(step))
        .take_while(move |place| is_left(*place))
        .filter_map(|place| usize::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_take_what_python_takes() {
        let take = |length, start, stop, step| -> Vec<usize> {
            places(length, start, stop, step).collect()
        };
        assert_eq!(take(0, None, None, -1), Vec::<usize>::new());
        assert_eq!(take(3, None, None, -1), [2, 1, 0]);
        assert_eq!(take(3, Some(-2), None, 1), [1, 2]);
        assert_eq!(take(3, Some(5), Some(0), -1), [2, 1]);
        assert_eq!(take(3, Some(-9), Some(9), 2), [0, 2]);
        assert_eq!(take(3, Some(i64::MAX), Some(i64::MIN), i64::MIN), [2]);
        assert_eq!(take(3, Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(take(3, Some(2), Some(1), 1), Vec::<usize>::new());
    }
}
