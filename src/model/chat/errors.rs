//! What a template failed on, in Jinja2's words.
//!
//! minijinja does not say which value was undefined. The instructions of a rendering have their own
//! places as lines ([`super::compiled`]), so the one that made the value can be found.

use minijinja::machinery::{Instruction, Instructions};
use minijinja::{Error, ErrorKind};

use super::budget;
use super::guarded::{CHECK_NEW, CHECK_SHARED};
use super::python::{ATTRIBUTE, ITEM};

/// An error with the message that Jinja2 has for it, as far as it can be told.
pub(super) fn explained(error: Error, instructions: &Instructions<'_>) -> Error {
    if budget::reason(&error).is_some() {
        return error;
    }
    let place = error.line().filter(|place| *place < usize::from(u16::MAX));
    let Some(at) = place.and_then(|place| u32::try_from(place.checked_sub(1)?).ok()) else {
        return error;
    };
    let why = match (error.kind(), instructions.get(at)) {
        (ErrorKind::UndefinedError, Some(instruction)) => {
            let given = error.detail().and_then(|detail| detail.parse().ok());
            let operand = given.unwrap_or(match instruction {
                Instruction::GetItem => 1,
                _ => 0,
            });
            undefined(instructions, at, operand)
        }
        (ErrorKind::UnknownFunction, Some(Instruction::CallFunction(name, _))) => {
            Some(format!("'{name}' is undefined"))
        }
        (ErrorKind::UnknownFilter, Some(Instruction::ApplyFilter(name, ..))) => {
            Some(format!("No filter named '{name}' found."))
        }
        (ErrorKind::UnknownTest, Some(Instruction::PerformTest(name, ..))) => {
            Some(format!("No test named '{name}' found."))
        }
        _ => return error,
    };
    let why = why.unwrap_or_else(|| "a value is undefined".to_owned());
    Error::new(error.kind(), why)
}

/// Says which value was undefined: an operand, counted from the last, of the instruction at a place.
fn undefined(instructions: &Instructions<'_>, at: u32, operand: usize) -> Option<String> {
    let mut end = at.checked_sub(1)?;
    for _ in 0..operand {
        end = begin(instructions, end, 0)?.checked_sub(1)?;
    }
    loop {
        match instructions.get(end)? {
            Instruction::CallFunction(CHECK_NEW | CHECK_SHARED, _) => end = end.checked_sub(1)?,
            Instruction::Lookup(name) => match assigned(instructions, end, name) {
                Some(value) => end = value,
                None => return Some(format!("'{name}' is undefined")),
            },
            Instruction::GetAttr(name) => return Some(no_attribute(name)),
            Instruction::GetItem | Instruction::CallFunction(ITEM | ATTRIBUTE, _) => {
                let Instruction::LoadConst(key) = instructions.get(end.checked_sub(1)?)? else {
                    return None;
                };
                return Some(match key.as_str() {
                    Some(name) => no_attribute(name),
                    None => format!("list object has no element {key}"),
                });
            }
            _ => return None,
        }
    }
}

/// Where the value of a name was made that is read at a place, if it is an attribute or an item: an
/// undefined one remembers what it was looked up in.
fn assigned(instructions: &Instructions<'_>, read: u32, name: &str) -> Option<u32> {
    let stores = |place: &u32| matches!(instructions.get(*place), Some(Instruction::StoreLocal(stored)) if *stored == name);
    let values = (0..read)
        .rev()
        .filter(stores)
        .filter_map(|place| place.checked_sub(1));
    let is_attribute = |value: &u32| match instructions.get(*value) {
        Some(Instruction::GetAttr(_)) => true,
        Some(Instruction::GetItem | Instruction::CallFunction(ITEM | ATTRIBUTE, _)) => {
            let key = value.checked_sub(1).and_then(|key| instructions.get(key));
            matches!(key, Some(Instruction::LoadConst(key)) if key.as_str().is_some())
        }
        _ => false,
    };
    values.into_iter().find(is_attribute)
}

fn no_attribute(name: &str) -> String {
    format!("'dict object' has no attribute '{name}'")
}

/// How deep an operand is followed.
const MAX_DEPTH: usize = 64;

/// The place where the operand begins whose last instruction is at `end`; `None` where that depends on
/// a condition.
fn begin(instructions: &Instructions<'_>, end: u32, depth: usize) -> Option<u32> {
    use Instruction as I;
    if depth > MAX_DEPTH {
        return None;
    }
    let operands = match instructions.get(end)? {
        I::Lookup(_) | I::LoadConst(_) => 0,
        I::GetAttr(_) => 1,
        I::GetItem => 2,
        I::CallFunction(_, count)
        | I::CallMethod(_, count)
        | I::CallObject(count)
        | I::ApplyFilter(_, count, _)
        | I::PerformTest(_, count, _) => usize::from((*count)?),
        I::BuildList(count) => (*count)?,
        I::BuildMap(pairs) | I::BuildKwargs(pairs) => 2 * pairs,
        _ => return None,
    };
    let mut begins = end;
    for _ in 0..operands {
        begins = begin(instructions, begins.checked_sub(1)?, depth + 1)?;
    }
    Some(begins)
}
