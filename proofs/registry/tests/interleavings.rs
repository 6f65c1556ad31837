//! Swaps, leases and retention at once, in every order.

use std::sync::Arc;

use loom::thread;
use registry_interleavings::adapter::generation::{Generation, GenerationId};
use registry_interleavings::adapter::registry::{Registry, ResolveError, SwapError};

fn id(n: usize) -> GenerationId {
    GenerationId(format!("{n:012x}"))
}

fn generation(n: usize) -> Generation {
    Generation {
        id: id(n),
        policy_revision: None,
    }
}

/// A registry whose base is generation 0, and that loads any other. Besides the base it keeps what serves, what
/// served before, and one more.
fn registry() -> Arc<Registry> {
    keeping(3)
}

fn keeping(capacity: usize) -> Arc<Registry> {
    let load = |wanted: &GenerationId| {
        Ok(Generation {
            id: wanted.clone(),
            policy_revision: None,
        })
    };
    let registry = Registry::new(Arc::new(generation(0)), capacity).with_loader(Box::new(load));
    Arc::new(registry)
}

/// Explores all schedules with at most this many preemptions.
fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// Runs `other` beside `own`, and returns what both did.
fn beside<A: Send + 'static, B>(
    registry: &Arc<Registry>,
    other: impl FnOnce(&Registry) -> A + Send + 'static,
    own: impl FnOnce(&Registry) -> B,
) -> (A, B) {
    let shared = registry.clone();
    let thread = thread::spawn(move || other(&shared));
    let own = own(registry);
    (thread.join().unwrap(), own)
}

/// Sequences that hold generations, by the registry's own count.
fn held(registry: &Registry) -> usize {
    let counts = registry.leases();
    counts.current + counts.previous + counts.retired + counts.base
}

#[test]
fn of_two_conditional_swaps_one_wins_and_its_choice_serves() {
    explore(3, || {
        let registry = registry();
        let swap = |n: usize| move |r: &Registry| r.swap(Arc::new(generation(n)), Some(&id(0)));
        let (first, second) = beside(&registry, swap(1), swap(2));
        let (won, lost, serves) = match (first, second) {
            (Ok(won), Err(lost)) => (won, lost, id(1)),
            (Err(lost), Ok(won)) => (won, lost, id(2)),
            both => panic!("{both:?}"),
        };
        assert_eq!((won.from, won.to.clone()), (id(0), serves.clone()));
        let (expected, actual) = (id(0), serves.clone());
        assert_eq!(lost, SwapError::Conflict { expected, actual });
        assert_eq!(registry.lease_current().id, serves);
        assert_eq!(registry.previous().unwrap().id, id(0));
    });
}

#[test]
fn leases_follow_the_pointer_and_are_counted() {
    explore(3, || {
        let registry = registry();
        let swaps = |r: &Registry| {
            r.swap(Arc::new(generation(1)), None).unwrap();
            r.swap(Arc::new(generation(2)), None).unwrap();
        };
        let lease = |r: &Registry| [r.lease_current(), r.lease_current()];
        let ((), leases) = beside(&registry, swaps, lease);
        // What serves never goes back.
        assert!(leases[0].id.0 <= leases[1].id.0, "{leases:?}");
        assert_eq!(held(&registry), 2, "{:?}", registry.leases());
        // The base has no files that could be removed.
        for lease in leases.iter().filter(|lease| lease.id != id(0)) {
            assert!(registry.is_needed(&lease.id), "{}", lease.id);
        }
        drop(leases);
        assert_eq!(held(&registry), 0, "{:?}", registry.leases());
    });
}

/// A request names a generation that is not in memory, while an operator makes another copy of it serve and
/// then something else.
#[test]
fn a_lease_of_another_copy_is_counted_too() {
    explore(3, || {
        let registry = keeping(4);
        let swaps = |r: &Registry| {
            r.swap(Arc::new(generation(1)), None).unwrap();
            r.swap(Arc::new(generation(2)), None).unwrap();
            r.swap(Arc::new(generation(3)), None).unwrap();
        };
        let resolve = |r: &Registry| r.resolve(Some(&id(1).0)).unwrap();
        let ((), lease) = beside(&registry, swaps, resolve);
        assert_eq!(lease.id, id(1));
        assert!(registry.is_needed(&id(1)));
        assert_eq!(held(&registry), 1, "{:?}", registry.leases());
        drop(lease);
        assert_eq!(held(&registry), 0, "{:?}", registry.leases());
        assert!(!registry.is_needed(&id(1)));
    });
}

#[test]
fn two_requests_for_one_generation_share_it() {
    explore(3, || {
        let registry = registry();
        let resolve = |r: &Registry| r.resolve(Some(&id(1).0)).unwrap();
        let (one, other) = beside(&registry, resolve, resolve);
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(held(&registry), 2);
    });
}

/// Retention looks whether a generation is needed and drops it, while a request asks for it.
#[test]
fn retention_drops_nothing_that_a_request_has() {
    explore(3, || {
        let registry = registry();
        for n in [1, 2, 3] {
            registry.swap(Arc::new(generation(n)), None).unwrap();
        }
        let collect = |r: &Registry| {
            let needed = r.is_needed(&id(1));
            if !needed {
                r.forget(&id(1));
            }
            needed
        };
        let resolve = |r: &Registry| r.resolve(Some(&id(1).0)).unwrap();
        let (_, lease) = beside(&registry, collect, resolve);
        assert!(registry.is_needed(&id(1)));
        assert_eq!(held(&registry), 1, "{:?}", registry.leases());
        drop(lease);
        assert_eq!(held(&registry), 0);
    });
}

#[test]
fn what_is_withheld_answers_again_after_a_swap() {
    explore(3, || {
        let registry = registry();
        registry.withhold("its files are gone");
        let swap = |r: &Registry| r.swap(Arc::new(generation(1)), None).unwrap();
        let (_, answer) = beside(&registry, swap, |r| r.resolve(None));
        match answer {
            // Never the base that stands in for it.
            Ok(lease) => assert_eq!(lease.id, id(1)),
            Err(error) => assert!(matches!(error, ResolveError::Withheld { .. })),
        }
        assert_eq!(registry.resolve(None).unwrap().id, id(1));
    });
}
