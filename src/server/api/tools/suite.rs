//! The JSON Schema Test Suite, which is not part of this repository: `REALIGN_JSON_SCHEMA_SUITE` names a
//! checkout's `tests/draft2020-12`. Without it these tests do nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::agreement::drawn;
use super::check::tests::oracle;
use super::check::{Verdict, check};
use super::schema::{enforceable, resolve};
use super::*;
use realign_engine::grammar::Grammars;
use realign_model::Tokenizer;
use realign_model::test_support::test_model;

/// Each group of the suite: a schema, and values that fit it or not.
fn groups() -> Vec<Value> {
    let Some(folder) = std::env::var_os("REALIGN_JSON_SCHEMA_SUITE") else {
        println!("REALIGN_JSON_SCHEMA_SUITE is not set, nothing is tested");
        return Vec::new();
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "json"));
    files.sort();
    let read =
        |path| -> Vec<Value> { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    // A schema that brings a metaschema of its own may give keywords another meaning, which is not supported.
    let known = |group: &Value| {
        let draft = group["schema"]["$schema"].as_str();
        draft.is_none_or(|draft| draft.starts_with("https://json-schema.org/draft/"))
    };
    files.into_iter().flat_map(read).filter(known).collect()
}

#[test]
fn checks_say_what_the_suite_says() {
    let (mut right, mut unknown, mut wrong) = (0, Vec::new(), Vec::new());
    for group in groups() {
        let Ok(schema) = resolve(&group["schema"]) else {
            unknown.push(format!("{}: refused", group["description"]));
            continue;
        };
        for test in group["tests"].as_array().unwrap() {
            let found = check(&schema, &test["data"].to_string());
            let name = format!(
                "{}: {}: {found:?}",
                group["description"], test["description"]
            );
            match (found, test["valid"] == true) {
                (Verdict::Valid, true) | (Verdict::Invalid { .. }, false) => right += 1,
                (Verdict::Unknown(_), _) => unknown.push(name),
                _ => wrong.push(name),
            }
        }
    }
    println!(
        "{right} right, {} unknown, {} wrong",
        unknown.len(),
        wrong.len()
    );
    println!("{}\nwrong:\n{}", unknown.join("\n"), wrong.join("\n"));
    assert!(wrong.is_empty());
}

#[test]
fn drawn_answers_to_the_suite_are_valid_or_there_is_a_notice() {
    let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
    let grammars = Grammars::new(tokenizer.clone());
    let mut rng = StdRng::seed_from_u64(1);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut silent = Vec::new();
    for group in groups() {
        let schema = &group["schema"];
        let kind = answered(schema, &tokenizer, &grammars, &mut rng);
        println!("{kind}: {}: {schema}", group["description"]);
        if kind == "invalid without notice" {
            silent.push(group["description"].to_string());
        }
        *counts.entry(kind).or_default() += 1;
    }
    println!("{counts:#?}");
    assert!(silent.is_empty(), "{silent:#?}");
}

/// What becomes of a request with this schema, without `strict`.
fn answered(
    schema: &Value,
    tokenizer: &Tokenizer,
    grammars: &Grammars,
    rng: &mut StdRng,
) -> String {
    let Ok(resolved) = resolve(schema) else {
        return "refused: a reference leads nowhere".into();
    };
    let efforts = [
        Effort::Most,
        Effort::AnyOf,
        Effort::NoPatterns,
        Effort::Type,
    ];
    let mut why = String::new();
    let compiled = efforts.into_iter().find_map(|effort| {
        let lark = schema_alone(&resolved, effort, Bounds::default());
        if why.contains("Unsatisfiable schema") {
            return None;
        }
        let compiled = grammars.compile(&lark).map_err(|e| why = e.to_string());
        compiled.is_ok().then_some((effort, lark))
    });
    let Some((effort, lark)) = compiled else {
        return format!("refused: {why}");
    };
    let (_, notices) = enforceable(&resolved, effort, Bounds::default());
    let answers: Vec<String> = (0..4)
        .filter_map(|_| drawn(tokenizer, grammars, &lark, rng))
        .collect();
    if answers.is_empty() {
        return "cut".into();
    }
    let mut kind = if notices.is_empty() {
        "valid"
    } else {
        "valid, with keywords left to the model"
    };
    for answer in answers {
        let Ok(value) = serde_json::from_str(&answer) else {
            continue;
        };
        let found = check(&resolved, &answer);
        if oracle(schema, &value) == Some(false) {
            kind = match found {
                Verdict::Invalid { .. } => "invalid with notice",
                Verdict::Unknown(_) if !notices.is_empty() => "invalid, not checked, with notice",
                _ => return "invalid without notice".into(),
            };
        }
    }
    match effort {
        Effort::Type => format!("{kind} (type alone)"),
        _ => kind.into(),
    }
}
