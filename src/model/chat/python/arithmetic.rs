//! Numbers.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::{type_name, undefined, wrong};

/// A number as its operators see it.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value.kind() {
            ValueKind::Bool => Some(Self::Whole(value.is_true().into())),
            ValueKind::Number if value.is_integer() => {
                i128::try_from(value.clone()).ok().map(Self::Whole)
            }
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Self::Float),
            _ => None,
        }
    }

    pub(super) fn float(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

/// The error of an operator that does not know its operands.
pub(super) fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    if b.is_undefined() {
        return undefined(0);
    }
    if a.is_undefined() {
        return undefined(1);
    }
    let name = match operator {
        "**" => "** or pow()",
        other => other,
    };
    wrong(format!(
        "unsupported operand type(s) for {name}: '{}' and '{}'",
        type_name(a),
        type_name(b)
    ))
}

pub(super) fn arithmetic(operator: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    let (Some(x), Some(y)) = (Number::of(a), Number::of(b)) else {
        return Err(unsupported(operator, a, b));
    };
    if let (Number::Whole(x), Number::Whole(y)) = (x, y)
        && let Some(result) = whole_arithmetic(operator, x, y)?
    {
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    let (x, y) = (x.float(), y.float());
    if y == 0.0 && matches!(operator, "/" | "//" | "%") {
        return Err(wrong(match operator {
            "/" => "float division by zero",
            "//" => "float floor division by zero",
            _ => "float modulo",
        }));
    }
    Ok(Value::from(match operator {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" => x / y,
        "//" => (x / y).floor(),
        "%" => x - y * (x / y).floor(),
        _ => x.powf(y),
    }))
}

/// Of whole numbers; `None` where the result is a float.
fn whole_arithmetic(operator: &str, x: i128, y: i128) -> Result<Option<i128>, Error> {
    if y == 0 && matches!(operator, "/" | "//" | "%") {
        return Err(wrong(match operator {
            "/" => "division by zero",
            "//" => "integer division or modulo by zero",
            _ => "integer modulo by zero",
        }));
    }
    let floor = || {
        let quotient = x.checked_div(y)?;
        let rest = x.checked_rem(y)?;
        // Python rounds down, Rust towards zero.
        let down = rest != 0 && (rest < 0) != (y < 0);
        Some((quotient - i128::from(down), rest + if down { y } else { 0 }))
    };
    let result = match operator {
        "+" => x.checked_add(y),
        "-" => x.checked_sub(y),
        "*" => x.checked_mul(y),
        "//" => floor().map(|(quotient, _)| quotient),
        "%" => floor().map(|(_, rest)| rest),
        "**" if y >= 0 => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        _ => return Ok(None),
    };
    let too_large = || wrong("a whole number of more than 128 bits");
    result.map(Some).ok_or_else(too_large)
}

pub(super) fn negate(value: Value) -> Result<Value, Error> {
    match Number::of(&value) {
        Some(Number::Float(number)) => Ok(Value::from(-number)),
        Some(Number::Whole(_)) => arithmetic("-", &Value::from(0), &value),
        None if value.is_undefined() => Err(undefined(0)),
        None => {
            let kind = type_name(&value);
            Err(wrong(format!("bad operand type for unary -: '{kind}'")))
        }
    }
}
