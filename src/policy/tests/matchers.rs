use super::{valid, with_rule};
use crate::policy::Exchange;

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
