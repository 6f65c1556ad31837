use super::{Category, TriageCounts, triage, triage_cached, triage_in_parts};
use crate::oracle::{MemoryVerdictCache, RuleOracle};
use crate::policy::PolicySet;
use crate::preferences::{Dataset, LineSource, Message, Pair, PairId, Role};

fn pair(chosen: &str, rejected: &str, chosen_labels: &[&str]) -> Pair {
    Pair {
        id: PairId(format!("{chosen}/{rejected}")),
        prompt: vec![Message::new(Role::User, "p")],
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
        chosen_labels: chosen_labels.iter().map(|l| l.to_string()).collect(),
        rejected_labels: Vec::new(),
        holdout: None,
        source: LineSource {
            file: "d.jsonl".into(),
            line: 1,
        },
        calling: None,
    }
}

fn oracle() -> RuleOracle {
    let text = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: r\n    violates: { any: [ { response: { any_regex: [bad] } }, { label: unsafe } ] }\n";
    RuleOracle::new(&PolicySet::from_yaml("p.yaml", text).unwrap())
}

/// The table of the paper: c_w, c_l → set.
#[test]
fn the_papers_table() {
    let cases = [
        (pair("bad", "good", &[]), Category::Invert),
        (pair("bad", "bad too", &[]), Category::Punish),
        (pair("good", "bad", &[]), Category::Retain),
        (pair("good", "fine", &[]), Category::Retain),
        (pair("good", "fine", &["unsafe"]), Category::Invert),
    ];
    let pairs: Vec<Pair> = cases.iter().map(|(pair, _)| pair.clone()).collect();
    let result = triage(&pairs, &oracle());
    let mut told = Vec::new();
    let in_parts = triage_in_parts(&pairs, &oracle(), 2, |pairs| told.push(pairs));
    assert_eq!((&in_parts, told), (&result, vec![2, 2, 1]));
    for (item, (pair, expected)) in result.items.iter().zip(&cases) {
        assert_eq!(item.category, *expected, "{pair:?}");
    }
    assert_eq!(
        result.counts,
        TriageCounts {
            invert: 2,
            punish: 1,
            retain: 2
        }
    );
    assert!((result.gap_ratio - 0.6).abs() < 1e-12);
    assert_eq!(result.indices(Category::Invert).collect::<Vec<_>>(), [0, 4]);
    for category in Category::ALL {
        assert_eq!(
            result.indices(category).count(),
            result.counts.get(category)
        );
    }

    let cache = MemoryVerdictCache::default();
    let (first, counts) = triage_cached(&pairs, &oracle(), &cache);
    assert_eq!(
        (first, counts.judged, counts.cached),
        (result.clone(), 10, 0)
    );
    let (again, counts) = triage_cached(&pairs, &oracle(), &cache);
    assert_eq!((again, counts.judged, counts.cached), (result, 0, 10));
}

#[test]
fn nothing_conflicts_without_pairs_or_rules() {
    assert_eq!(triage(&[], &oracle()).gap_ratio, 0.0);
    let none = RuleOracle::new(&PolicySet::default());
    let result = triage(&[pair("bad", "good", &[])], &none);
    assert_eq!(
        result.counts,
        TriageCounts {
            retain: 1,
            ..TriageCounts::default()
        }
    );
}

/// A dialogue is judged alike whether it is given as text or as messages.
#[test]
fn a_transcript_is_judged_like_its_messages() {
    let text = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: r\n    when: { prompt: { any_phrase: [dose] } }\n    violates: { response: { any_phrase: [fingers] } }\n";
    let oracle = RuleOracle::new(&PolicySet::from_yaml("p.yaml", text).unwrap());
    // The rule is about an earlier turn, which is not what is asked.
    let rows = [
        r#"{"prompt":"\n\nHuman: what dose did my dog get?\n\nAssistant: I do not know.\n\nHuman: and how do I whistle?\n\nAssistant:","chosen":" take two fingers","rejected":" ask someone"}"#,
        r#"{"prompt":[{"role":"user","content":"what dose did my dog get?"},{"role":"assistant","content":"I do not know."},{"role":"user","content":"and how do I whistle?"}],"chosen":"take two fingers","rejected":"ask someone"}"#,
    ];
    for row in rows {
        let data = Dataset::from_bytes("d.jsonl", row.into()).unwrap();
        let triaged = triage(&data.pairs, &oracle);
        assert_eq!(triaged.items[0].category, Category::Retain, "{row}");
    }
}

#[test]
fn recorded_thoughts_are_not_judged_with_or_without_their_opening_tag() {
    let thought = "bad idea</think>\n\ngood";
    let pairs = [
        pair(thought, "bad", &[]),
        pair(&format!("<think>{thought}"), "bad", &[]),
        pair("good</think>bad", "good", &[]),
    ];
    let result = triage(&pairs, &oracle());
    let categories: Vec<Category> = result.items.iter().map(|item| item.category).collect();
    assert_eq!(
        categories,
        [Category::Retain, Category::Retain, Category::Invert]
    );
}
