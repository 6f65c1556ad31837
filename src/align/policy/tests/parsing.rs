use super::{FULL, load, valid, with_rule};
use crate::policy::{Enforcement, Gate, Severity, schema_json};

#[test]
fn a_full_policy_is_read() {
    let set = valid(FULL);
    let policy = set.get("no-flat-refusals").unwrap();
    assert_eq!(policy.version, "2026-11-01");
    assert_eq!(policy.enforcement, Enforcement::Enforce);
    assert_eq!((policy.source.line, policy.source.column), (2, 5));
    let gate = Gate {
        max_perplexity_rise: 0.05,
        ..Gate::default()
    };
    assert_eq!(policy.gate, gate);
    let rule = policy.rule("benign-refusal").unwrap();
    assert_eq!(rule.severity, Severity::High);
    assert_eq!(rule.examples.len(), 2);
    assert_eq!(rule.examples[1].source.line, 16);
    assert!(set.run_examples().passed());
}

#[test]
fn errors_say_where_and_what() {
    let base = with_rule("violates: { label: x }");
    let cases: &[(String, &[&str])] = &[
        (String::new(), &["p.yaml: the file is empty"]),
        (
            base.replace("realign/v1", "realign/v2"),
            &["p.yaml:1:13: apiVersion `realign/v2`", "`realign/v1`"],
        ),
        (
            base.replace("apiVersion: realign/v1\n", ""),
            &["the key `apiVersion` is missing"],
        ),
        (
            base.replace("version: 1\n", "verison: 1\n"),
            &[
                "p.yaml:3:1: unknown key `verison`",
                "did you mean `version`?",
            ],
        ),
        (
            base.replace("id: p", "id: My Policy"),
            &["p.yaml:2:5: policy id `My Policy` is not valid"],
        ),
        (
            base.replace("label: x", "lable: x"),
            &["p.yaml:6:17: unknown key `lable`; did you mean `label`?"],
        ),
        (
            with_rule("severity: hihg\nviolates: { label: x }"),
            &["p.yaml:6:15: unknown value `hihg`; did you mean `high`?"],
        ),
        (
            with_rule("violates: { response: { any-regex: [x] } }"),
            &["did you mean `any_regex`?"],
        ),
        (
            with_rule("violates: { response: { zzz: [x] } }"),
            &[
                "unknown key `zzz` (allowed: all, any, not, any_regex, all_regex, any_phrase, length)",
            ],
        ),
        (
            with_rule("violates: { response: { any_regex: ['('] } }"),
            &["p.yaml:6:41: rule `r`: the pattern `(` is not usable: unclosed group"],
        ),
        (
            with_rule("violates: { response: { any_regex: ['(\\w{900}){900}'] } }"),
            &["rule `r`", "larger than", "smaller repetitions"],
        ),
        (
            with_rule("violates: { probe: { kind: x } }"),
            &["p.yaml:6:26: unknown key `kind` (allowed: data, use_examples, threshold)"],
        ),
        (
            with_rule("violates: { probe: { data: ../x.jsonl } }"),
            &["give the name of a file in the policy's directory"],
        ),
        (
            with_rule("violates: { probe: { data: x.jsonl } }"),
            &[
                "p.yaml:6:32: rule `r`: `data` x.jsonl: a policy given as text has no files beside it",
            ],
        ),
        (
            with_rule("violates: { probe: { use_examples: false } }"),
            &["a probe needs something to be fitted on"],
        ),
        (
            with_rule("violates: { probe: { threshold: 2 } }"),
            &["`threshold` is 2, but must be between 0 and 1"],
        ),
        (
            with_rule(
                "violates: { judge: { url: ftp://x, model: m, question: ' ', template: '{{', concurrency: 0 } }",
            ),
            &[
                "begins with http://",
                "`question` is empty",
                "`template` is not usable",
                "from 1 to 64",
            ],
        ),
        (
            with_rule("violates: { cascade: [ { yes_if: { label: x }, probe: {} } ] }"),
            &["exactly one of `yes_if`, `no_if`, `probe` and `judge`"],
        ),
        (
            with_rule("violates: { cascade: [ { probe: {}, unsure: [0.8, 0.2] } ] }"),
            &["two probabilities, the lower first"],
        ),
        (
            with_rule("violates: { cascade: [ { no_if: { label: x }, unsure: [0.2, 0.8] } ] }"),
            &["other stages are always sure"],
        ),
        (
            with_rule("violates: { label: x }\nminimum: {}"),
            &["`minimum` needs `accuracy`"],
        ),
        (
            with_rule("violates: { label: x }\nminimum: { recall: 1.5 }"),
            &["must be between 0 and 1"],
        ),
        (
            with_rule("violates: { response: { judge: 'is it rude?' } }"),
            &["`judge` reads the whole exchange; put it beside `response`"],
        ),
        (
            with_rule("violates: {}"),
            &["p.yaml:6:15: rule `r`: this condition is empty"],
        ),
        (
            with_rule("violates: { response: {} }"),
            &["this test is empty"],
        ),
        (
            with_rule("violates: { any: [] }"),
            &["`any` is an empty list"],
        ),
        (
            with_rule("violates: { label: [] }"),
            &["`label` needs a label"],
        ),
        (
            with_rule("violates: { response: { any_phrase: [' '] } }"),
            &["a phrase in `any_phrase` is empty"],
        ),
        (
            with_rule("violates: { response: { length: {} } }"),
            &["needs `min`, `max` or both"],
        ),
        (
            with_rule("violates: { response: { length: { min: 5, max: 2 } } }"),
            &["min 5 above max 2"],
        ),
        (
            with_rule("description: no violates"),
            &["the key `violates` is missing"],
        ),
        (
            with_rule("violates: { label: x }\nviolates: { label: w }"),
            &["p.yaml:7:5:", "`violates` stands here a second time"],
        ),
        (
            format!("{base}gate: {{ max_kl: -1 }}\n"),
            &["p.yaml:7:17: gate: `max_kl` is -1, but must be 0 or more"],
        ),
        (
            format!("{base}gate: {{ min_policy_agreement_gain: 5 }}\n"),
            &["between 0 and 1"],
        ),
        (format!("{base}---\n{base}"), &["one policy"]),
        (
            "apiVersion: realign/v1\nid: p\nversion: 1\nrules: []\n".to_owned(),
            &["p.yaml:4:8: `rules` is empty"],
        ),
        (base.replace("rules:", "rules: ]"), &["p.yaml:4:"]),
        (
            format!(
                "apiVersion: realign/v1\nid: p\nversion: 1\nrules: {}x{}\n",
                "[".repeat(200),
                "]".repeat(200)
            ),
            &["p.yaml:"],
        ),
    ];
    for (text, expected) in cases {
        let errors = load(text).expect_err(text).to_string();
        for part in *expected {
            assert!(
                errors.contains(part),
                "`{part}` is not in:\n{errors}\n--\n{text}"
            );
        }
    }
}

#[test]
fn all_errors_of_a_file_are_collected() {
    let text = "apiVersion: realign/v1\nid: '!'\nversion: ''\nrules:\n  - id: r\n    violates: { response: { any_regex: ['(', '['] } }\n  - id: r\n    violates: { all: [ { label: [] }, {} ] }\ngate: { max_kl: -1 }\n";
    let errors = load(text).unwrap_err();
    assert_eq!(errors.0.len(), 8, "{errors}");
    let duplicate = errors
        .0
        .iter()
        .find(|e| e.message.contains("used already on line 5"));
    assert_eq!(duplicate.and_then(|e| e.line), Some(7));
}

#[test]
fn alias_bombs_are_refused() {
    let mut text = String::from("apiVersion: realign/v1\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n");
    for i in 1..12 {
        let aliases = vec![format!("*x{}", i - 1); 10].join(", ");
        text.push_str(&format!("x{i}: &x{i} [{aliases}]\n"));
    }
    let started = std::time::Instant::now();
    assert!(load(&text).is_err());
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

/// `policies/policy.schema.json` is what editors load; run with `UPDATE_SCHEMA=1` to rewrite it.
#[test]
fn the_published_schema_is_up_to_date() {
    let path = realign_model::test_support::path("policies/policy.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, schema_json()).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        published,
        schema_json(),
        "run this test with UPDATE_SCHEMA=1"
    );
    assert!(published.contains("judge") && published.contains("cascade"));
}

#[test]
fn ids_are_parts_that_can_be_a_path() {
    let with =
        |id: &str| with_rule("violates: { label: x }").replace("id: p", &format!("id: '{id}'"));
    for id in ["a", "A.b-c_d/e.1", "2026-11-01", "team/sub/policy", "a..b"] {
        assert_eq!(valid(&with(id)).policies()[0].id, id);
    }
    for id in [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/..",
        "a/../b",
        "../a",
        "a/.",
        "./a",
        "a/.hidden",
        "a.",
        "a/b...",
        "a\\b",
        "a b",
        "a/-b",
        "ä",
    ] {
        let errors = load(&with(id)).unwrap_err().to_string();
        assert!(
            errors.contains(&format!("policy id `{id}` is not valid")),
            "{id}: {errors}"
        );
    }
    let twice = with_rule("violates: { label: x }")
        .replace("- id: r", "- id: R\n    violates: { label: w }\n  - id: r");
    let errors = load(&twice).unwrap_err().to_string();
    assert!(
        errors.contains("rule id `r` is used already on line 5"),
        "{errors}"
    );
}
