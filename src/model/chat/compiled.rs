//! A template as instructions that keep to a [`budget`](super::budget).
//!
//! minijinja counts steps and has no hook for the size of what a step makes. Its instructions are
//! a flat list, so a check is inserted behind each one that makes a value.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::machinery::{
    Instruction, Instructions, Vm, get_compiled_template, make_string_output,
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::budget::with_budget;
use super::errors::explained;
use super::guarded::{ASSIGN, CHECK_NEW, CHECK_SHARED};
use super::python::{
    ADD, ATTRIBUTE, COMPARE, CONCAT, CONTAINS, DIVIDE, EQUAL, FLOOR_DIVIDE, ITEM, ITERATE,
    MULTIPLY, Method, NEGATE, NOT_EQUAL, POWER, REMAINDER, SLICE, SUBTRACT,
};

/// Runs something of minijinja's. Its slices once panicked on an empty list: a template, which is
/// input, must not end a thread if there is another such fault.
///
/// # Errors
/// Its own, or that it panicked.
pub(super) fn contained<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        let why = "the template engine failed on an expression";
        Err(Error::new(ErrorKind::InvalidOperation, why))
    })
}

/// Renders a template of the environment within its budget.
///
/// # Errors
/// The template's own, and [`Exceeded`](super::budget::Exceeded) as a source.
pub(super) fn render(
    environment: &Environment<'_>,
    name: &str,
    variables: Value,
) -> Result<String, Error> {
    let template = environment.get_template(name)?;
    let compiled = get_compiled_template(&template);
    let instructions = guarded(&compiled.instructions);
    let blocks: BTreeMap<&str, Instructions<'_>> = compiled
        .blocks
        .iter()
        .map(|(name, block)| (*name, guarded(block)))
        .collect();
    let mut text = String::new();
    let done = with_budget(|| {
        contained(|| {
            let mut out = make_string_output(&mut text);
            let vm = Vm::new(environment);
            let escape = AutoEscape::None;
            vm.eval(&instructions, variables, &blocks, &mut out, escape)
                .map(|_| ())
        })
    });
    done.map_err(|error| explained(error, &instructions))?;
    Ok(text)
}

fn guarded<'a>(instructions: &Instructions<'a>) -> Instructions<'a> {
    let mut moved_to = Vec::new();
    let mut expanded = Vec::new();
    let closing = closing(instructions);
    while let Some(instruction) = instructions.get(moved_to.len() as u32) {
        let place = moved_to.len() as u32;
        moved_to.push(expanded.len() as u32);
        if let Some((_, closing)) = closing.iter().find(|(jump, _)| *jump == place) {
            expanded.extend(closing.iter().cloned());
        }
        expand(instruction.clone(), &mut expanded);
    }
    moved_to.push(expanded.len() as u32);
    let mut guarded = Instructions::new(instructions.name(), instructions.source());
    for (place, instruction) in expanded.into_iter().enumerate() {
        // An error's line is the place of its instruction, counted from 1.
        let line = u16::try_from(place + 1).unwrap_or(u16::MAX);
        guarded.add_with_line(relocated(instruction, &moved_to), line);
    }
    guarded
}

/// What is open where an instruction stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Loop,
    With,
    Capture,
    Escape,
}

/// What has to be closed before a jump leaves a block, by the jump's place: minijinja compiles `break`
/// and `continue` inside of `with`, `set` and `filter` to plain jumps, and then closes the wrong ones.
fn closing<'a>(instructions: &Instructions<'_>) -> Vec<(u32, Vec<Instruction<'a>>)> {
    use Instruction as I;
    let mut open = Vec::new();
    let mut depths = Vec::new();
    let mut jumps = Vec::new();
    while let Some(instruction) = instructions.get(depths.len() as u32) {
        let place = depths.len() as u32;
        depths.push(open.len());
        match instruction {
            I::PushLoop(_) => open.push(Open::Loop),
            I::PushWith => open.push(Open::With),
            I::BeginCapture(_) => open.push(Open::Capture),
            I::PushAutoEscape => open.push(Open::Escape),
            I::PopFrame | I::PopLoopFrame | I::EndCapture | I::PopAutoEscape => {
                open.pop();
            }
            I::Jump(target) if open.last().is_some_and(|last| *last != Open::Loop) => {
                jumps.push((place, *target, open.clone()));
            }
            _ => {}
        }
    }
    let close = |open: &Open| match open {
        Open::Loop | Open::With => vec![I::PopFrame],
        Open::Capture => vec![I::EndCapture, I::DiscardTop],
        Open::Escape => vec![I::PopAutoEscape],
    };
    let left = |(place, target, open): (u32, u32, Vec<Open>)| {
        let stays = depths.get(target as usize).copied().unwrap_or(0);
        let left = open.get(stays..).filter(|left| !left.is_empty())?;
        Some((place, left.iter().rev().flat_map(close).collect()))
    };
    jumps.into_iter().filter_map(left).collect()
}

/// An instruction with Python's semantics and with its check.
fn expand<'a>(instruction: Instruction<'a>, into: &mut Vec<Instruction<'a>>) {
    use Instruction as I;
    if let Some((function, operands)) = operator(&instruction) {
        into.push(I::CallFunction(function, Some(operands)));
        return;
    }
    match instruction {
        // What is written as a value goes through the formatter, which weighs it.
        I::EmitRaw(text) => into.extend([I::LoadConst(Value::from(text)), I::Emit]),
        I::SetAttr(name) => into.extend([
            I::LoadConst(Value::from(name)),
            I::CallFunction(ASSIGN, Some(3)),
            I::DiscardTop,
        ]),
        I::GetAttr(name) if Method::is_name(name) => into.extend([
            I::LoadConst(Value::from(name)),
            I::CallFunction(ATTRIBUTE, Some(2)),
        ]),
        // A constant that names no method is looked up in one step.
        I::GetItem => match into.last() {
            Some(I::LoadConst(key)) if !key.as_str().is_some_and(Method::is_name) => {
                into.push(instruction);
            }
            _ => into.push(I::CallFunction(ITEM, Some(2))),
        },
        I::PushLoop(_) => into.extend([I::CallFunction(ITERATE, Some(1)), instruction]),
        I::BuildList(_) | I::BuildMap(_) => {
            into.extend([instruction, I::CallFunction(CHECK_SHARED, Some(1))]);
        }
        I::ApplyFilter(..)
        | I::PerformTest(..)
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(_)
        | I::EndCapture => into.extend([instruction, I::CallFunction(CHECK_NEW, Some(1))]),
        other => into.push(other),
    }
}

/// The function that stands for an operator, and how many operands it has.
fn operator(instruction: &Instruction<'_>) -> Option<(&'static str, u16)> {
    use Instruction as I;
    Some(match instruction {
        I::Add => (ADD, 2),
        I::Sub => (SUBTRACT, 2),
        I::Mul => (MULTIPLY, 2),
        I::Div => (DIVIDE, 2),
        I::IntDiv => (FLOOR_DIVIDE, 2),
        I::Rem => (REMAINDER, 2),
        I::Pow => (POWER, 2),
        I::Neg => (NEGATE, 1),
        I::StringConcat => (CONCAT, 2),
        I::Eq => (EQUAL, 2),
        I::Ne => (NOT_EQUAL, 2),
        I::Lt => (COMPARE[0], 2),
        I::Lte => (COMPARE[1], 2),
        I::Gt => (COMPARE[2], 2),
        I::Gte => (COMPARE[3], 2),
        I::In => (CONTAINS, 2),
        I::Slice => (SLICE, 4),
        _ => return None,
    })
}

/// An instruction with the target of its jump where that is now.
fn relocated<'a>(instruction: Instruction<'a>, moved_to: &[u32]) -> Instruction<'a> {
    use Instruction as I;
    let to = |target: u32| moved_to.get(target as usize).copied().unwrap_or(target);
    match instruction {
        I::Iterate(target) => I::Iterate(to(target)),
        I::Jump(target) => I::Jump(to(target)),
        I::JumpIfFalse(target) => I::JumpIfFalse(to(target)),
        I::JumpIfFalseOrPop(target) => I::JumpIfFalseOrPop(to(target)),
        I::JumpIfTrueOrPop(target) => I::JumpIfTrueOrPop(to(target)),
        I::BuildMacro(name, offset, flags) => I::BuildMacro(name, to(offset), flags),
        other => other,
    }
}
