use super::{load, valid, with_rule};
use crate::oracle::{MemoryVerdictCache, Oracle, RuleOracle};
use crate::policy::{Exchange, PolicySet, Thinking, diff};

const RULE: &str = "violates: { response: { any_regex: ['^secret|plan'] } }";

fn set(thinking: &str) -> PolicySet {
    let text = with_rule(RULE);
    valid(&text.replacen("rules:", &format!("{thinking}rules:"), 1))
}

fn exchange(response: &str) -> Exchange<'_> {
    Exchange {
        prompt: "p",
        response,
        labels: &[],
    }
}

#[test]
fn thoughts_are_judged_where_the_policy_says_so() {
    for (thinking, setting, cases) in [
        (
            "",
            Thinking::Ignore,
            [
                ("<think>a plan</think>Hello", false),
                ("<think>a plan</think>secret", true),
            ],
        ),
        (
            "thinking: ignore\n",
            Thinking::Ignore,
            [
                ("<think>a plan</think>Hello", false),
                ("<think>a plan", true),
            ],
        ),
        (
            "thinking: judge\n",
            Thinking::Judge,
            [
                ("<think>a plan</think>Hello", true),
                ("<think>a</think>secret", false),
            ],
        ),
    ] {
        let set = set(thinking);
        assert_eq!(set.policies()[0].thinking, setting);
        let oracle = RuleOracle::with_dryrun(&set);
        for (response, violates) in cases {
            let judged = oracle.judge(&exchange(response));
            assert_eq!(!judged.complies(), violates, "{thinking}{response}");
        }
    }
    let error = load(&with_rule(RULE).replacen("rules:", "thinking: maybe\nrules:", 1));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("ignore") && error.contains("judge"),
        "{error}"
    );
}

#[test]
fn the_setting_is_part_of_the_meaning() {
    let (plain, ignoring, judging) = (set(""), set("thinking: ignore\n"), set("thinking: judge\n"));
    assert_eq!(plain.revision(), ignoring.revision());
    assert_ne!(plain.revision(), judging.revision());
    let changed = diff(&plain, &judging);
    assert!(format!("{changed:?}").contains("thinking"), "{changed:?}");
    // One cache for both: no verdict is taken for the other's.
    let cache = MemoryVerdictCache::default();
    let asked = [exchange("<think>a plan</think>Hello")];
    for (set, complies) in [(&plain, true), (&judging, false), (&plain, true)] {
        let (judged, _) = RuleOracle::with_dryrun(set).judge_cached(&asked, &cache);
        assert_eq!(judged[0].complies(), complies);
    }
}

#[test]
fn places_are_those_of_the_whole_response() {
    let set = set("");
    let explained =
        RuleOracle::with_dryrun(&set).explain(&exchange("<think>é</think>\nOh, a plan"));
    let found = &explained[0].tests[0].found[0];
    assert_eq!((found.start, found.end, &*found.text), (23, 27, "plan"));
}

/// A probe is fitted on what is judged: rows that differ only in thoughts are the same.
#[test]
fn rows_of_a_data_file_are_read_without_their_thoughts() {
    let revision = |thinking: &str, response: &str| {
        let dir = tempfile::tempdir().unwrap();
        let row = serde_json::json!({"prompt": "p", "response": response, "verdict": "violates"});
        std::fs::write(dir.path().join("x.jsonl"), format!("{row}\n")).unwrap();
        let rule = with_rule("violates: { probe: { data: x.jsonl, use_examples: false } }");
        let text = rule.replacen("rules:", &format!("{thinking}rules:"), 1);
        std::fs::write(dir.path().join("p.yaml"), text).unwrap();
        let set = PolicySet::load_dir(dir.path()).unwrap_or_else(|errors| panic!("{errors}"));
        set.revision().to_owned()
    };
    let plain = revision("", "Hello");
    for thought in [
        "<think>a plan</think>\n\nHello",
        // The opening tag was in the prompt.
        "a plan</think>\n\nHello",
    ] {
        assert_eq!(revision("", thought), plain, "{thought}");
        let judging = "thinking: judge\n";
        assert_ne!(revision(judging, thought), revision(judging, "Hello"));
    }
}
