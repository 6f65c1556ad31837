use std::fs;
use std::path::Path;

use super::{FULL, valid, with_rule};
use crate::policy::{Gate, PolicyErrors, PolicySet, diff};

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

#[test]
fn missing_and_empty_directories_are_the_empty_set() {
    let dir = tempfile::tempdir().unwrap();
    let missing = PolicySet::load_dir(&dir.path().join("none")).unwrap();
    let empty = PolicySet::load_dir(dir.path()).unwrap();
    assert!(missing.is_empty() && empty.is_empty());
    assert_eq!(missing.revision(), empty.revision());
    assert_eq!(empty.gate(), Gate::default());
}

#[test]
fn only_policy_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", FULL);
    write(dir.path(), "b.YML", &with_rule("violates: { label: x }"));
    for junk in [
        ".a.yaml.swp",
        ".#a.yaml",
        "#a.yaml#",
        "a.yaml~",
        "4913",
        ".hidden.yaml",
        "README.md",
    ] {
        write(dir.path(), junk, "{{{");
    }
    let set = PolicySet::load_dir(dir.path()).unwrap();
    let ids: Vec<&str> = set.policies().iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["no-flat-refusals", "p"]);
}

#[test]
fn ids_are_unique_without_regard_to_case() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", FULL);
    let upper = FULL.replace("id: no-flat-refusals", "id: No-Flat-Refusals");
    write(dir.path(), "b.yaml", &upper);
    let errors = PolicySet::load_dir(dir.path()).unwrap_err().to_string();
    for part in [
        "b.yaml:2:5: policy id `No-Flat-Refusals` is used already in",
        "a.yaml:2:5 as `no-flat-refusals`",
    ] {
        assert!(errors.contains(part), "`{part}` is not in:\n{errors}");
    }
}

#[test]
fn errors_of_all_files_are_reported_together() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", FULL);
    write(dir.path(), "b.yaml", FULL);
    write(dir.path(), "c.yaml", "nonsense: true");
    write(dir.path(), "d.yaml", &"#".repeat((1 << 20) + 1));
    fs::write(dir.path().join("e.yaml"), b"id: a\nversion: \xff\n").unwrap();
    fs::create_dir(dir.path().join("f.yaml")).unwrap();
    let errors = PolicySet::load_dir(dir.path()).unwrap_err().to_string();
    for part in [
        "b.yaml:2:5: policy id `no-flat-refusals` is used already in",
        "a.yaml:2:5",
        "c.yaml:1:1: unknown key `nonsense`",
        "d.yaml: cannot read the file: larger than 1048576 bytes",
        "e.yaml: line 2 is not valid UTF-8",
        "f.yaml: cannot read the file: not a regular file",
    ] {
        assert!(errors.contains(part), "`{part}` is not in:\n{errors}");
    }
    assert_eq!(errors.lines().count(), 5, "{errors}");
}

#[test]
fn revision_follows_meaning() {
    let base = valid(FULL);
    let same = [
        FULL.replace("# or dryrun", "# comment"),
        FULL.replace("severity: high", "severity:    'high'"),
        FULL.replace("description: A flat", "description: Any flat"),
        FULL.replace("version: 2026-11-01", "version: \"2026-11-01\""),
    ];
    for text in &same {
        assert_ne!(text, FULL);
        assert_eq!(valid(text).revision(), base.revision(), "{text}");
    }
    let other = [
        FULL.replace("severity: high", "severity: critical"),
        FULL.replace("2026-11-01", "2026-11-02"),
        FULL.replace("id: no-flat", "id: no-more-flat"),
        FULL.replace("id: benign", "id: mild"),
        FULL.replace("i cannot|", ""),
        FULL.replace("emergency services", "services"),
        FULL.replace("bomb|", ""),
        FULL.replace("max_perplexity_rise: 0.05", "max_perplexity_rise: 0.06"),
        FULL.replace("enforcement: enforce", "enforcement: dryrun"),
    ];
    for text in &other {
        assert_ne!(text, FULL);
        assert_ne!(valid(text).revision(), base.revision(), "{text}");
    }
    assert_eq!(base.revision().len(), 64);
}

#[test]
fn file_names_and_rule_order_do_not_change_the_revision() {
    let rule = |id: &str| format!("  - {{ id: {id}, violates: {{ label: {id} }} }}\n");
    let head = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n";
    let ab = valid(&format!("{head}{}{}", rule("a"), rule("b")));
    let ba = valid(&format!("{head}{}{}", rule("b"), rule("a")));
    assert_eq!(ab.revision(), ba.revision());
    assert!(diff(&ab, &ba).is_empty());

    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "z.yaml", FULL);
    assert_eq!(
        PolicySet::load_dir(dir.path()).unwrap().revision(),
        valid(FULL).revision()
    );
}

#[test]
fn dryrun_policies_do_not_train() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", FULL);
    let before = PolicySet::load_dir(dir.path()).unwrap();
    let dry = with_rule("violates: { label: x }") + "enforcement: dryrun\ngate: { max_kl: 0.1 }\n";
    write(dir.path(), "dry.yaml", &dry);
    let after = PolicySet::load_dir(dir.path()).unwrap();
    assert_eq!(after.revision(), before.revision());
    assert_eq!(after.enforced().revision(), after.revision());
    assert_ne!(after.content_hash(), before.content_hash());
    assert_eq!(after.policies().len(), 2);
    assert_eq!(after.enforced().policies().len(), 1);
    assert_eq!(after.gate().max_kl, None);
}

#[test]
fn the_strictest_gate_counts() {
    let gate = |g, p, k| Gate {
        min_policy_agreement_gain: g,
        max_perplexity_rise: p,
        max_kl: k,
        ..Gate::default()
    };
    let cases = [
        (
            gate(0.1, 0.2, None),
            gate(0.0, 0.1, Some(0.5)),
            gate(0.1, 0.1, Some(0.5)),
        ),
        (
            gate(0.0, 0.0, Some(0.2)),
            gate(0.0, 0.3, Some(0.1)),
            gate(0.0, 0.0, Some(0.1)),
        ),
    ];
    for (a, b, expected) in cases {
        assert_eq!(a.strictest(b), expected);
        assert_eq!(b.strictest(a), expected);
    }
}

#[test]
fn rule_hashes_cover_what_decides_a_verdict() {
    let hash = |text: &str| valid(text).policies()[0].rules[0].hash().to_owned();
    let base = hash(FULL);
    for same in [
        "severity: high|severity: reduced",
        "id: benign|id: mild",
        "2026-11-01|2",
    ] {
        let (from, to) = same.split_once('|').unwrap();
        assert_eq!(hash(&FULL.replace(from, to)), base, "{same}");
    }
    for other in ["bomb|bombs", "sorry, but|pardon", "emergency|urgent"] {
        let (from, to) = other.split_once('|').unwrap();
        assert_ne!(hash(&FULL.replace(from, to)), base, "{other}");
    }
    let labels = |list: &str| hash(&with_rule(&format!("violates: {{ label: {list} }}")));
    assert_eq!(labels("[a, b, a]"), labels("[b, a]"));
    assert_ne!(labels("a"), labels("b"));
}

#[test]
fn failing_examples_stop_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", FULL);
    let failures = || {
        PolicySet::load_dir(dir.path())
            .unwrap()
            .run_examples()
            .into_errors()
    };
    assert_eq!(failures(), []);
    let cases = [
        (
            "verdict: violates",
            "verdict: complies",
            "a.yaml:15:9: rule `benign-refusal`: example 1 expects `complies`, but the rule says `violates`: `violates` holds: the response has \"I cannot\"",
        ),
        (
            "\"I cannot help with killing.\"",
            "\"Yes.\"",
            "example 1 expects `violates`, but the rule says `complies`: `violates` does not hold",
        ),
        ("bomb|launder", "kill", "`when` does not hold"),
        (
            "emergency services",
            "killing",
            "exception 1 holds: the response has \"killing\"",
        ),
    ];
    for (from, to, expected) in cases {
        write(dir.path(), "a.yaml", &FULL.replacen(from, to, 1));
        let errors = PolicyErrors(failures()).to_string();
        assert!(
            errors.contains(expected),
            "`{expected}` is not in:\n{errors}"
        );
    }
    let report = valid(&with_rule("violates: { label: x }")).run_examples();
    assert_eq!(report.untested(), [("p", "r")]);
}

#[test]
fn diff_names_what_changed() {
    let old = valid(FULL);
    let new = FULL
        .replace("severity: high", "severity: critical")
        .replace("bomb|", "")
        .replace("2026-11-01", "2")
        .replace(
            "    examples:",
            "    examples: []\n  - id: new\n    violates: { label: x }\n    examples:",
        )
        .replace("Use `kill <pid>`.", "I can't");
    let shown = diff(&old, &valid(&new)).to_string();
    assert_eq!(
        shown,
        "~ policy no-flat-refusals (version)\n+ rule no-flat-refusals:new\n~ rule no-flat-refusals:benign-refusal (severity, when, examples)\n"
    );
    let gone = diff(&old, &PolicySet::default()).to_string();
    assert_eq!(
        gone,
        "- policy no-flat-refusals\n- rule no-flat-refusals:benign-refusal\n"
    );
    assert!(diff(&old, &valid(FULL)).is_empty());
}
