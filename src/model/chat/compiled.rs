//! A template as instructions that keep to a [`budget`](super::budget).
//!
//! minijinja counts steps and has no hook for the size of what a step makes. Its instructions are
//! a flat list, so a check is inserted behind each one that makes a value.

use std::collections::BTreeMap;

use minijinja::machinery::{
    Instruction, Instructions, Token, Vm, get_compiled_template, make_string_output, tokenize,
};
use minijinja::{AutoEscape, Environment, Error, Value};

use super::budget::{exceeded, with_budget};
use super::guarded::{ASSIGN, CHECK_NEW, CHECK_SHARED, MULTIPLY, check_source};

/// Tokens between `{{` and `}}`, or `{%` and `%}`: the parser nests a chain of operators as deep
/// as it is long, and the compiler recurses.
const MAX_BLOCK_TOKENS: usize = 1000;
/// `elif` branches: each nests in the one before it.
const MAX_ELIFS: usize = 200;

/// A variable that is 1, see [`prepare`].
pub(super) const ONE: &str = "realign_one";

/// Checks a source, and rewrites two things in it.
///
/// The compiler computes products of constants, for which it has no budget: `a * b` becomes
/// `a * one * b` with a variable, which is no constant. `{% generation %}`, with which training
/// tools mark the assistant's text, becomes a condition that holds.
pub(super) fn prepare(source: &str) -> Result<String, Error> {
    check_source(source)?;
    let mut prepared = String::with_capacity(source.len());
    let (mut copied, mut in_block, mut elifs) = (0, 0, 0);
    let (mut begins_block, mut may_be_splat) = (false, true);
    let multiply = format!("* {ONE} *");
    for token in tokenize(source, false, Default::default(), Default::default()) {
        let (token, span) = token?;
        in_block += 1;
        let instead = match token {
            Token::Mul if !may_be_splat => Some(multiply.as_str()),
            Token::Ident("generation") if begins_block => Some("if true"),
            Token::Ident("endgeneration") if begins_block => Some("endif"),
            _ => None,
        };
        if let Some(instead) = instead {
            let (start, end) = (span.start_offset as usize, span.end_offset as usize);
            prepared.push_str(source.get(copied..start).unwrap_or_default());
            prepared.push_str(instead);
            copied = end;
        }
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_block = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        begins_block = matches!(token, Token::BlockStart);
        may_be_splat = matches!(token, Token::ParenOpen | Token::Comma);
        if in_block > MAX_BLOCK_TOKENS {
            let limit = MAX_BLOCK_TOKENS;
            return Err(exceeded(format!(
                "has an expression of more than {limit} tokens"
            )));
        }
        if elifs > MAX_ELIFS {
            return Err(exceeded(format!("has more than {MAX_ELIFS} elif branches")));
        }
    }
    prepared.push_str(source.get(copied..).unwrap_or_default());
    Ok(prepared)
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
    with_budget(|| {
        let mut out = make_string_output(&mut text);
        let vm = Vm::new(environment);
        vm.eval(
            &instructions,
            variables,
            &blocks,
            &mut out,
            AutoEscape::None,
        )
        .map(|_| ())
    })?;
    Ok(text)
}

fn guarded<'a>(instructions: &Instructions<'a>) -> Instructions<'a> {
    let mut moved_to = Vec::new();
    let mut expanded = Vec::new();
    while let Some(instruction) = instructions.get(moved_to.len() as u32) {
        moved_to.push(expanded.len() as u32);
        expand(instruction.clone(), &mut expanded);
    }
    moved_to.push(expanded.len() as u32);
    let mut guarded = Instructions::new(instructions.name(), instructions.source());
    for instruction in expanded {
        guarded.add(relocated(instruction, &moved_to));
    }
    guarded
}

/// An instruction with its check.
fn expand<'a>(instruction: Instruction<'a>, into: &mut Vec<Instruction<'a>>) {
    use Instruction as I;
    match instruction {
        // What is written as a value goes through the formatter, which weighs it.
        I::EmitRaw(text) => into.extend([I::LoadConst(Value::from(text)), I::Emit]),
        I::Mul => into.push(I::CallFunction(MULTIPLY, Some(2))),
        I::SetAttr(name) => into.extend([
            I::LoadConst(Value::from(name)),
            I::CallFunction(ASSIGN, Some(3)),
            I::DiscardTop,
        ]),
        I::Add | I::Slice | I::BuildList(_) | I::BuildMap(_) => {
            into.extend([instruction, I::CallFunction(CHECK_SHARED, Some(1))]);
        }
        // Comparisons and tests make no large values, but may be slow: the check looks at the clock.
        I::StringConcat
        | I::ApplyFilter(..)
        | I::PerformTest(..)
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(_)
        | I::EndCapture
        | I::Eq
        | I::Ne
        | I::Gt
        | I::Gte
        | I::Lt
        | I::Lte
        | I::In => into.extend([instruction, I::CallFunction(CHECK_NEW, Some(1))]),
        other => into.push(other),
    }
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
