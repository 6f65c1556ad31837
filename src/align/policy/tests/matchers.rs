use super::{valid, with_rule};
use crate::policy::{Exchange, JudgeSpec, ProbeSpec, RuleOutcome, Score, Scores};

fn check(violates: &str, cases: &[(&str, &str, &[&str], bool)]) {
    let set = valid(&with_rule(&format!("violates: {violates}")));
    let rule = &set.policies()[0].rules[0];
    for (prompt, response, labels, expected) in cases {
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        let exchange = Exchange {
            prompt,
            response,
            labels: &labels,
        };
        assert_eq!(
            rule.violated_by(&exchange),
            *expected,
            "{violates} on {exchange:?}"
        );
    }
}

#[test]
fn regexes() {
    check(
        "{ response: { any_regex: ['^no', 'never$'] } }",
        &[
            ("", "no way", &[], true),
            ("", "well, never", &[], true),
            ("no", "yes", &[], false),
        ],
    );
    check(
        "{ response: { all_regex: ['(?i)a', 'b'] } }",
        &[
            ("", "xAb", &[], true),
            ("", "a", &[], false),
            ("", "b", &[], false),
        ],
    );
}

#[test]
fn phrases_are_whole_words_in_any_case() {
    check(
        r#"{ response: { any_phrase: ["I can't", "C++", "naïve idea"] } }"#,
        &[
            ("", "Sorry, i CAN'T do it", &[], true),
            ("", "Sorry, I can\u{2019}t do it", &[], true),
            ("", "I\n can't", &[], true),
            ("", "Hi can't", &[], false),
            ("", "I can'tankerous", &[], false),
            ("", "use c++.", &[], true),
            ("", "use c++11", &[], false),
            ("", "A NAÏVE  IDEA!", &[], true),
            ("", "", &[], false),
        ],
    );
}

#[test]
fn phrases_without_word_boundaries_are_found_anywhere() {
    check(
        r#"{ response: { any_phrase: ["!", "…"] } }"#,
        &[
            ("", "Great!", &[], true),
            ("", "So …", &[], true),
            ("", "Great.", &[], false),
        ],
    );
    check(
        r#"{ response: { any_phrase: ["剂量", "ยา", "COVID疫苗"] } }"#,
        &[
            ("", "请告诉我剂量是多少", &[], true),
            ("", "กินยาแล้ว", &[], true),
            ("", "打COVID疫苗", &[], false),
            ("", "a COVID疫苗了", &[], true),
            ("", "请告诉我", &[], false),
        ],
    );
}

#[test]
fn lengths_include_both_ends() {
    check(
        "{ response: { length: { min: 2, max: 3 } } }",
        &[
            ("", "é", &[], false),
            ("", "éé", &[], true),
            ("", "ééé", &[], true),
            ("", "éééé", &[], false),
        ],
    );
    check(
        "{ prompt: { length: { max: 2, unit: words } } }",
        &[
            ("one  two", "", &[], true),
            ("one two three", "", &[], false),
            ("", "", &[], true),
        ],
    );
}

#[test]
fn labels_are_compared_exactly() {
    check(
        "{ label: a }",
        &[
            ("", "", &["a", "b"], true),
            ("", "", &["A"], false),
            ("", "", &[], false),
        ],
    );
    check(
        "{ label: [a, c] }",
        &[("", "", &["c"], true), ("", "", &["b"], false)],
    );
}

#[test]
fn combinators_work_at_both_levels() {
    check(
        "{ not: { response: { any_regex: [x] } } }",
        &[("", "x", &[], false), ("", "y", &[], true)],
    );
    check(
        "{ prompt: { not: { any: [ { any_regex: [a] }, { any_regex: [b] } ] } } }",
        &[
            ("a", "", &[], false),
            ("b", "", &[], false),
            ("c", "", &[], true),
        ],
    );
    check(
        "{ any: [ { label: l }, { all: [ { prompt: { any_regex: [p] } }, { response: { any_regex: [r] } } ] } ] }",
        &[
            ("p", "r", &[], true),
            ("p", "x", &[], false),
            ("", "", &["l"], true),
        ],
    );
    // Several keys in one node: all must hold.
    check(
        "{ prompt: { any_regex: [p] }, response: { any_regex: [r], length: { max: 2 } } }",
        &[
            ("p", "r", &[], true),
            ("x", "r", &[], false),
            ("p", "rrr", &[], false),
        ],
    );
}

#[test]
fn when_and_exceptions_bound_a_rule() {
    let set = valid(&with_rule(
        "when: { prompt: { any_regex: [p] } }\nviolates: { response: { any_regex: [v] } }\nexceptions: [ { label: ok }, { response: { any_regex: [e] } } ]",
    ));
    let rule = &set.policies()[0].rules[0];
    let ok = ["ok".to_owned()];
    for (prompt, response, labels, expected) in [
        ("p", "v", &[] as &[String], true),
        ("x", "v", &[], false),
        ("p", "x", &[], false),
        ("p", "v", &ok, false),
        ("p", "ve", &[], false),
    ] {
        let exchange = Exchange {
            prompt,
            response,
            labels,
        };
        assert_eq!(rule.violated_by(&exchange), expected, "{exchange:?}");
    }
}

/// Answers of a probe and a judge, and the number of questions to the judge.
struct Stand {
    probe: Option<f64>,
    judge: Option<f64>,
    asked: std::cell::Cell<usize>,
}

impl Scores for Stand {
    fn probe(&self, _: &ProbeSpec, _: &Exchange<'_>) -> Option<Score> {
        score(self.probe)
    }

    fn judge(&self, _: &JudgeSpec, _: &Exchange<'_>) -> Option<Score> {
        self.asked.set(self.asked.get() + 1);
        score(self.judge)
    }
}

fn score(probability: Option<f64>) -> Option<Score> {
    probability.map(|probability| Score {
        probability,
        threshold: 0.5,
    })
}

const JUDGE: &str = "judge: { url: 'http://127.0.0.1:1/v1', model: m, question: 'Rude?' }";

#[test]
fn a_cascade_asks_the_judge_only_where_nothing_before_is_sure() {
    let text = format!(
        "violates:\n  cascade:\n    - yes_if: {{ response: {{ any_regex: [bad] }} }}\n    - no_if: {{ response: {{ any_regex: [good] }} }}\n    - {{ probe: {{}}, unsure: [0.2, 0.8] }}\n    - {JUDGE}"
    );
    let set = valid(&with_rule(&text));
    let rule = &set.policies()[0].rules[0];
    use RuleOutcome::{NotMatched, Undecided, Violated};
    let cases = [
        ("bad", None, None, Violated, 0),
        ("good", None, None, NotMatched, 0),
        ("x", Some(0.9), None, Violated, 0),
        ("x", Some(0.1), None, NotMatched, 0),
        ("x", Some(0.6), Some(0.7), Violated, 1),
        ("x", Some(0.6), Some(0.3), NotMatched, 1),
        ("x", Some(0.6), None, Undecided, 1),
        ("x", None, Some(0.9), Undecided, 0),
    ];
    for (response, probe, judge, expected, asked) in cases {
        let stand = Stand {
            probe,
            judge,
            asked: Default::default(),
        };
        let exchange = Exchange {
            prompt: "p",
            response,
            labels: &[],
        };
        assert_eq!(
            rule.evaluate_with(&exchange, &stand),
            expected,
            "{response} {probe:?} {judge:?}"
        );
        assert_eq!(stand.asked.get(), asked, "{response} {probe:?} {judge:?}");
    }
}

#[test]
fn what_the_text_settles_is_settled_whatever_is_unknown() {
    let cases = [
        (
            format!("violates: {{ any: [ {{ {JUDGE} }}, {{ label: x }} ] }}"),
            RuleOutcome::Violated,
        ),
        (
            format!("violates: {{ all: [ {{ {JUDGE} }}, {{ label: other }} ] }}"),
            RuleOutcome::NotMatched,
        ),
        (
            format!("violates: {{ {JUDGE} }}\nexceptions: [ {{ label: x }} ]"),
            RuleOutcome::Excepted(0),
        ),
        (
            format!("when: {{ label: other }}\nviolates: {{ {JUDGE} }}"),
            RuleOutcome::NotApplicable,
        ),
        (
            format!("when: {{ {JUDGE} }}\nviolates: {{ label: x }}"),
            RuleOutcome::Undecided,
        ),
        (
            format!("violates: {{ not: {{ {JUDGE} }} }}"),
            RuleOutcome::Undecided,
        ),
    ];
    let labels = ["x".to_owned()];
    let exchange = Exchange {
        prompt: "",
        response: "",
        labels: &labels,
    };
    for (text, expected) in cases {
        let set = valid(&with_rule(&text));
        assert_eq!(
            set.policies()[0].rules[0].evaluate(&exchange),
            expected,
            "{text}"
        );
    }
}

#[test]
fn what_a_probe_is_fitted_on_is_part_of_its_rules_hash() {
    let rule = |body: &str, example: &str| {
        let text = with_rule(&format!(
            "{body}\nexamples: [ {{ prompt: a, response: {example}, verdict: complies }} ]"
        ));
        valid(&text).policies()[0].rules[0].hash().to_owned()
    };
    assert_ne!(
        rule("violates: { probe: {} }", "b"),
        rule("violates: { probe: {} }", "c")
    );
    assert_eq!(
        rule("violates: { label: x }", "b"),
        rule("violates: { label: x }", "c")
    );
}
