use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

fn id(n: usize) -> GenerationId {
    GenerationId(format!("{n:012x}"))
}

fn generation(n: usize) -> Arc<Generation> {
    Arc::new(Generation {
        id: id(n),
        base_hash: format!("{n:064x}"),
        policy_revision: Some(n.to_string()),
        adapter: None,
    })
}

fn registry(capacity: usize) -> Registry {
    Registry::new(generation(0), capacity)
}

#[test]
fn swap_returns_what_changed_and_checks_what_was_expected() {
    let registry = registry(4);
    let swapped = registry.swap(generation(1), Some(&id(0))).unwrap();
    assert_eq!(
        swapped,
        Swapped {
            from: id(0),
            to: id(1),
            retired: None
        }
    );
    let conflict = registry.swap(generation(2), Some(&id(0))).unwrap_err();
    assert_eq!(
        conflict,
        SwapError::Conflict {
            expected: id(0),
            actual: id(1)
        }
    );
    assert_eq!(registry.lease_current().id, id(1));
    let swapped = registry.swap(generation(2), None).unwrap();
    assert_eq!(
        swapped.retired,
        Some(id(0)),
        "the base loses its role as previous"
    );
    let back = registry.rollback(None).unwrap();
    assert_eq!(
        back,
        Swapped {
            from: id(2),
            to: id(1),
            retired: None
        }
    );
    assert_eq!(
        registry.rollback(Some(&id(1))).unwrap().to,
        id(2),
        "a rollback can be undone"
    );
}

#[test]
fn a_swap_to_what_serves_keeps_the_previous() {
    let registry = registry(4);
    registry.swap(generation(1), None).unwrap();
    registry.swap(generation(1), None).unwrap();
    assert_eq!(registry.previous().unwrap().id, id(0));
}

#[test]
fn a_candidate_that_served_is_none_any_more() {
    let registry = registry(4);
    let candidate = generation(1);
    registry.show_candidate(&candidate);
    assert_eq!(registry.candidate().unwrap().id, id(1));
    registry.swap(candidate, None).unwrap();
    assert!(registry.candidate().is_none(), "it serves");
    registry.rollback(None).unwrap();
    assert!(registry.candidate().is_none(), "it is what served before");
}

#[test]
fn nothing_to_roll_back_to() {
    let error = registry(4).rollback(None).unwrap_err();
    assert_eq!(error, SwapError::NoPrevious { current: id(0) });
}

#[test]
fn selectors() {
    let registry = registry(4);
    registry.swap(generation(1), None).unwrap();
    let cases: &[(Option<&str>, Option<usize>)] = &[
        (None, Some(1)),
        (Some("current"), Some(1)),
        (Some("base"), Some(0)),
        (Some("000000000000"), Some(0)),
        (Some("000000000001"), Some(1)),
        (Some("000000000002"), None),
        (Some("00000000000A"), None),
        (Some("../../etc"), None),
        (Some(""), None),
    ];
    for (selector, expect) in cases {
        let got = registry.resolve(*selector).ok().map(|g| g.id.clone());
        assert_eq!(got, expect.map(id), "{selector:?}");
    }
}

#[test]
fn the_loader_runs_once_per_generation_kept_and_memory_stays_bounded() {
    let loads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&loads);
    let registry = registry(4).with_loader(Box::new(move |id| {
        count.fetch_add(1, Ordering::Relaxed);
        match id.0.as_str() {
            "0000000000ff" => Err(AdapterError::Shape("damaged".into())),
            other => {
                let n = usize::from_str_radix(other, 16).unwrap();
                Ok(Arc::into_inner(generation(n)).unwrap())
            }
        }
    }));
    registry.swap(generation(1), None).unwrap();
    for n in [2, 3, 2, 4, 2, 3] {
        assert_eq!(registry.resolve(Some(&id(n).0)).unwrap().id, id(n));
    }
    // There is room for two besides current and previous: 4 evicted 3, so 3 was read twice.
    assert_eq!(loads.load(Ordering::Relaxed), 4);
    assert!(registry.loaded().len() <= 5, "base and four more");
    let held = registry.resolve(Some(&id(5).0)).unwrap();
    for n in [6, 7] {
        registry.resolve(Some(&id(n).0)).unwrap();
    }
    let again = registry.resolve(Some(&id(5).0)).unwrap();
    assert!(
        Arc::ptr_eq(&held, &again),
        "a forgotten generation that is held is shared"
    );
    let error = registry.resolve(Some("0000000000ff")).unwrap_err();
    assert!(matches!(error, ResolveError::Load { ref reason, .. } if reason.ends_with("damaged")));
}

#[test]
fn leases_are_counted_by_role() {
    let registry = registry(2);
    assert_eq!(registry.leases(), LeaseCounts::default());
    let on_base = registry.lease_current();
    assert_eq!(registry.leases().current, 1);
    registry.swap(generation(1), None).unwrap();
    let on_one = [registry.lease_current(), registry.lease_current()];
    let expect = LeaseCounts {
        current: 2,
        previous: 1,
        retired: 0,
        base: 0,
    };
    assert_eq!(registry.leases(), expect);
    registry.swap(generation(2), None).unwrap();
    let expect = LeaseCounts {
        current: 0,
        previous: 2,
        retired: 0,
        base: 1,
    };
    assert_eq!(registry.leases(), expect);
    registry.swap(generation(3), None).unwrap();
    let expect = LeaseCounts {
        current: 0,
        previous: 0,
        retired: 2,
        base: 1,
    };
    assert_eq!(registry.leases(), expect);
    drop((on_base, on_one));
    assert_eq!(registry.leases(), LeaseCounts::default());
}

#[test]
fn leases_while_swapping_are_never_torn_and_never_lost() {
    let registry = registry(4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let lease = registry.lease_current();
                    let n = usize::from_str_radix(&lease.id.0, 16).unwrap();
                    assert_eq!(lease.base_hash, format!("{n:064x}"), "one whole generation");
                    assert!(n >= last, "generation {n} after {last}");
                    last = n;
                    registry.leases();
                }
            });
        }
        for n in 1..=2000 {
            let swapped = registry.swap(generation(n), Some(&id(n - 1))).unwrap();
            assert_eq!(swapped.to, id(n));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.leases(), LeaseCounts::default());
}

#[test]
fn of_many_conditional_swaps_exactly_one_wins() {
    let registry = registry(4);
    let wins = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 1..=16 {
            let (registry, wins) = (&registry, &wins);
            scope.spawn(move || {
                if registry.swap(generation(n), Some(&id(0))).is_ok() {
                    wins.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(wins.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_withheld_answers_to_its_name_only() {
    let registry = registry(4);
    registry.withhold("it is damaged");
    for selector in [None, Some("current")] {
        let error = registry.resolve(selector).unwrap_err();
        assert!(matches!(error, ResolveError::Withheld { .. }), "{error}");
        assert!(error.to_string().contains("it is damaged"), "{error}");
    }
    assert_eq!(registry.resolve(Some("base")).unwrap().id, id(0));
    assert_eq!(registry.resolve(Some(&id(0).0)).unwrap().id, id(0));
    // Activating what is there already is an act like any other.
    registry.swap(generation(0), None).unwrap();
    assert!(registry.resolve(None).is_ok() && registry.withheld().is_none());
    registry.withhold("again");
    registry.offer();
    assert!(registry.resolve(None).is_ok());
}

#[test]
fn what_serves_served_before_or_is_held_is_needed() {
    let registry = registry(4);
    for n in 1..=4 {
        registry.swap(generation(n), None).unwrap();
    }
    let needed = |n| registry.is_needed(&id(n));
    assert!(needed(4) && needed(3) && !needed(2) && !needed(9));
    assert!(registry.loaded().iter().any(|g| g.id == id(2)), "kept");
    registry.forget(&id(2));
    assert!(registry.loaded().iter().all(|g| g.id != id(2)));
    let lease = registry.lease_current();
    for n in 5..=9 {
        registry.swap(generation(n), None).unwrap();
    }
    assert!(needed(4), "a sequence holds it");
    registry.forget(&id(4));
    assert!(needed(4), "still");
    drop(lease);
    assert!(!needed(4));
}

fn named(name: &str, generation: &Arc<Generation>) -> Named {
    Named {
        name: name.into(),
        path: format!("/adapters/{name}"),
        generation: generation.clone(),
    }
}

#[test]
fn a_name_is_given_once_and_its_leases_outlive_it() {
    let registry = registry(2);
    let one = generation(1);
    registry.add_name(named("a", &one)).unwrap();
    let taken = NameError::Taken {
        name: "a".into(),
        holds: id(1),
    };
    assert_eq!(registry.add_name(named("a", &one)), Err(taken.clone()));
    assert_eq!(registry.add_name(named("a", &generation(2))), Err(taken));
    drop(one);
    assert_eq!(registry.leases(), LeaseCounts::default());
    let lease = registry.named("a").unwrap();
    assert_eq!(registry.leases().retired, 1);
    assert_eq!(registry.lease_current().id, id(0), "what serves stays");
    let other = registry.remove_name("a", Some(&id(2).0)).unwrap_err();
    assert!(matches!(other, NameError::Other { .. }), "{other}");
    drop(registry.remove_name("a", Some(&id(1).0)).unwrap());
    assert!(registry.named("a").is_none());
    assert_eq!(registry.leases().retired, 1);
    let again = registry.in_memory(&id(1)).unwrap();
    assert!(Arc::ptr_eq(&again, &lease), "one copy is enough");
    drop((again, lease));
    assert_eq!(registry.leases(), LeaseCounts::default());
    assert!(matches!(
        registry.remove_name("a", None),
        Err(NameError::Unknown { .. })
    ));
}

#[test]
fn a_name_of_what_serves_counts_as_no_lease() {
    let registry = registry(3);
    registry.swap(generation(1), None).unwrap();
    let current = registry.in_memory(&id(1)).unwrap();
    registry.add_name(named("a", &current)).unwrap();
    registry.add_name(named("b", &current)).unwrap();
    assert_eq!(registry.leases().current, 1);
    drop(current);
    for n in 2..6 {
        registry.swap(generation(n), None).unwrap();
        assert_eq!(registry.leases(), LeaseCounts::default(), "after {n}");
    }
    let lease = registry.named("b").unwrap();
    assert_eq!(registry.leases().retired, 1);
    for name in ["a", "b"] {
        drop(registry.remove_name(name, None).unwrap());
        assert_eq!(registry.leases().retired, 1);
    }
    drop(lease);
    assert_eq!(registry.leases(), LeaseCounts::default());
}

#[test]
fn names_are_bounded() {
    let registry = registry(2);
    for n in 0..MAX_NAMES {
        registry
            .add_name(named(&n.to_string(), &generation(n + 1)))
            .unwrap();
    }
    let one_more = registry.add_name(named("more", &generation(99)));
    assert_eq!(one_more, Err(NameError::Full));
    registry.remove_name("3", None).unwrap();
    registry.add_name(named("more", &generation(99))).unwrap();
}
