use super::*;

fn rules() -> CanaryRules {
    CanaryRules {
        shares: vec![500, 5000],
        min_requests: 50,
        min_ms: 1000,
        max_ms: 60_000,
    }
}

fn observation(of_candidate: bool, seen: Seen) -> Observation {
    Observation {
        candidate: "b".into(),
        share: 5000,
        of_candidate,
        key: None,
        seen,
    }
}

fn answer(of_candidate: bool, failed: bool, ms: u64) -> Observation {
    let seen = Seen::Answer {
        failed: Some(failed),
        first_byte_ms: Some(ms),
    };
    observation(of_candidate, seen)
}

fn seen(answers: impl Iterator<Item = Observation>) -> Trial {
    let mut trial = Trial::new("b", 5000, 0);
    answers.for_each(|observed| trial.see(&observed));
    trial
}

#[test]
fn a_step_ends_with_enough_requests_and_time_and_not_without() {
    let trial = seen((0..98).map(|n: u64| answer(n.is_multiple_of(2), n % 20 < 2, 100)));
    assert_eq!(trial.verdict(5000, &rules()), Verdict::Wait);
    let Verdict::Back(why) = trial.verdict(60_000, &rules()) else {
        panic!("it waits for ever")
    };
    assert!(
        why.contains("too few requests") && why.contains("50 %"),
        "{why}"
    );
    let mut trial = seen((0..100).map(|n: u64| answer(n.is_multiple_of(2), n % 20 < 2, 100)));
    assert_eq!(trial.verdict(999, &rules()), Verdict::Wait);
    assert_eq!(trial.verdict(1000, &rules()), Verdict::On);
    assert_eq!(trial.verdict(60_000, &rules()), Verdict::On);
    trial.widen(6000, 2000);
    assert_eq!(
        trial.verdict(2000, &rules()),
        Verdict::Wait,
        "the next step counts anew"
    );
    assert_eq!(rules().after(500), Some(5000));
    assert_eq!(rules().after(5000), None);
}

#[test]
fn each_signal_sends_a_worse_generation_back_and_is_named() {
    let errors = seen((0..60).map(|n: u64| answer(n.is_multiple_of(2), n.is_multiple_of(2), 100)));
    let slow = seen((0..200).map(|n: u64| {
        answer(
            n.is_multiple_of(2),
            false,
            if n.is_multiple_of(2) { 500 } else { 100 },
        )
    }));
    let verdict = |n: u32| {
        observation(
            n.is_multiple_of(2),
            Seen::Verdict {
                violates: n.is_multiple_of(2),
            },
        )
    };
    let violations = seen((0..60).map(verdict));
    for (trial, name) in [
        (errors, "errors"),
        (slow, "slow"),
        (violations, "violations"),
    ] {
        let Verdict::Back(why) = trial.verdict(10, &rules()) else {
            panic!("{name}: {:?}", trial.status(10))
        };
        assert!(why.starts_with(&format!("canary: {name}")), "{why}");
        assert!(trial.status(10).evidence.iter().any(|(_, e)| *e >= 1.0));
    }
}

#[test]
fn what_says_nothing_about_the_generation_is_not_held_against_it() {
    // Clients leave; what serves is as slow; a candidate of before failed.
    let left = (0..500).map(|n: u64| {
        let seen = Seen::Answer {
            failed: None,
            first_byte_ms: None,
        };
        observation(n.is_multiple_of(2), seen)
    });
    let both_slow = (0..500).map(|n: u64| answer(n.is_multiple_of(2), false, 100 + n * 7 % 900));
    let other = (0..500).map(|_| Observation {
        candidate: "a".into(),
        ..answer(true, true, 1)
    });
    let trial = seen(left.chain(both_slow).chain(other));
    assert_eq!(
        trial.verdict(1000, &rules()),
        Verdict::On,
        "{:?}",
        trial.status(0)
    );
}

#[test]
fn a_few_users_prove_nothing_but_raise_doubts() {
    let of_user = |n: u64| Observation {
        key: Some(n % 10),
        ..answer(n.is_multiple_of(2), n.is_multiple_of(2), 100)
    };
    let trial = seen((0..2000).map(of_user));
    assert_eq!(
        trial.verdict(59_999, &rules()),
        Verdict::Wait,
        "five users' first failures"
    );
    let Verdict::Back(why) = trial.verdict(60_000, &rules()) else {
        panic!("a generation that always fails goes on")
    };
    assert!(
        why.contains("1000 of 1000 failed") && why.contains("not refuted"),
        "{why}"
    );
    // One of many users' requests always fail.
    let of_one = |n: u64| Observation {
        key: Some(n % 200),
        ..answer(n.is_multiple_of(2), n.is_multiple_of(200), 100)
    };
    let trial = seen((0..2000).map(of_one));
    let none = trial
        .status(0)
        .evidence
        .iter()
        .all(|(_, evidence)| *evidence < 0.2);
    assert!(none, "{:?}", trial.status(0));
}

#[test]
fn evidence_outlasts_a_step() {
    let mut trial = Trial::new("b", 500, 0);
    let failure = |share| Observation {
        share,
        ..answer(true, true, 1)
    };
    trial.see(&failure(500));
    trial.see(&failure(500));
    assert_eq!(trial.verdict(0, &rules()), Verdict::Wait);
    trial.widen(5000, 10);
    // Of a request that came before the share grew.
    trial.see(&failure(500));
    assert!(matches!(trial.verdict(10, &rules()), Verdict::Back(_)));
}
