//! Tests of the store over `object_store`'s backends, and of controllers that race.

mod faults;
mod race;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use crate::bucket::Bucket;
use crate::objects::Objects;
use crate::records::{Current, FORMAT, Replica, encode};
use crate::store::{CURRENT, LEASE, Store, history_key};
use crate::{Controller, Files, Standing, StoreError, StoreUrl};

const TERM: Duration = Duration::from_secs(10);

fn memory() -> Store {
    let bucket = Bucket::new(Arc::new(InMemory::new()), "some/prefix").unwrap();
    Store::over(Arc::new(bucket))
}

/// A clock that a test sets.
#[derive(Clone, Default)]
struct Time(Arc<std::sync::Mutex<Duration>>);

impl Time {
    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

fn controller(store: &Store, name: &str, time: &Time) -> Controller {
    let time = time.clone();
    Controller::with_clock(
        store.clone(),
        name.into(),
        TERM,
        Box::new(move || time.now()),
    )
}

fn naming(generation: &str) -> Current {
    Current {
        generation: Some(generation.into()),
        policy_revision: Some("r1".into()),
        base_hash: Some("b".into()),
        ..Current::nothing()
    }
}

fn fencing(standing: &Standing) -> Option<u64> {
    match standing {
        Standing::Holder { fencing, .. } => Some(*fencing),
        Standing::Standby(_) => None,
    }
}

fn files(text: &str) -> Files {
    Files(["config", text, "manifest"].map(|part| Bytes::from(part.to_string())))
}

#[test]
fn urls_are_buckets_with_prefixes() {
    for (text, shown) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://b-1/a/b.c/", "s3://b-1/a/b.c"),
    ] {
        let url: StoreUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), shown);
    }
    for text in [
        "",
        "bucket",
        "s3://",
        "s3:///a",
        "gs://b",
        "s3://b/../c",
        "s3://b//c",
        "s3://b/ä",
    ] {
        assert!(text.parse::<StoreUrl>().is_err(), "{text}");
    }
    let secret = "s3://key:secret@bucket/x".parse::<StoreUrl>().unwrap_err();
    assert!(!secret.to_string().contains("secret"), "{secret}");
}

#[test]
fn objects_are_created_once_and_replaced_by_version() {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    let memory = Bucket::new(Arc::new(InMemory::new()), "p").unwrap();
    let local = Bucket::new(Arc::new(local), "p").unwrap();
    for bucket in [&memory, &local] {
        assert!(bucket.read("a").unwrap().is_none());
        let first = bucket.create("a", "1".into()).unwrap().unwrap();
        assert_eq!(bucket.create("a", "2".into()).unwrap(), None);
        assert_eq!(bucket.read("a").unwrap().unwrap().bytes, "1");
        bucket.write("d/x", "1".into()).unwrap();
        bucket.write("d/x", "2".into()).unwrap();
        bucket.write("d/y/z", "2".into()).unwrap();
        assert_eq!(bucket.names("d/").unwrap(), ["x"]);
        bucket.remove("d/x").unwrap();
        bucket.remove("d/x").unwrap();
        assert!(bucket.names("d/").unwrap().is_empty());
        match bucket.replace("a", "2".into(), &first) {
            Ok(second) => {
                assert!(second.is_some());
                assert_eq!(bucket.replace("a", "3".into(), &first).unwrap(), None);
                assert_eq!(bucket.read("a").unwrap().unwrap().bytes, "2");
            }
            // A directory cannot compare and swap, and says so rather than overwrite.
            Err(error) => assert!(matches!(error, StoreError::Unconditional(_)), "{error}"),
        }
    }
}

#[test]
fn a_generation_is_written_once_and_read_whole() {
    let store = memory();
    assert_eq!(store.download("0123456789ab").unwrap(), None);
    store.upload("0123456789ab", &files("weights")).unwrap();
    store.upload("0123456789ab", &files("weights")).unwrap();
    let read = store.download("0123456789ab").unwrap();
    assert_eq!(read, Some(files("weights")));
    for id in ["", "../../x", "xyz"] {
        assert!(store.download(id).is_err(), "{id:?}");
    }
    // An upload that was interrupted before its manifest is no generation, and is completed.
    let weights = "generations/aa/adapter_model.safetensors";
    store.objects.create(weights, "weights".into()).unwrap();
    assert_eq!(store.download("aa").unwrap(), None);
    let other = store.upload("aa", &files("other")).unwrap_err();
    assert!(matches!(other, StoreError::Damaged { .. }), "{other}");
    store.upload("aa", &files("weights")).unwrap();
    assert_eq!(store.download("aa").unwrap(), Some(files("weights")));
}

#[test]
fn the_holder_publishes_and_the_history_is_kept() {
    let (store, time) = (memory(), Time::default());
    let a = controller(&store, "a", &time);
    assert!(matches!(
        a.publish(&naming("11")),
        Err(StoreError::NotHolder(_))
    ));
    assert_eq!(fencing(&a.tick().unwrap()), Some(1));
    assert_eq!(store.current().unwrap().unwrap().epoch, 0);
    let first = a.publish(&naming("11")).unwrap();
    assert_eq!((first.epoch, first.writer.as_str()), (1, "a"));
    // The same again is no new epoch.
    assert_eq!(a.publish(&naming("11")).unwrap(), first);
    let second = a.publish(&naming("22")).unwrap();
    assert_eq!(store.current().unwrap().unwrap(), second);
    assert_eq!(store.epoch(1).unwrap().unwrap(), first);
    assert_eq!(store.epoch(2).unwrap().unwrap(), second);
    assert_eq!(store.epoch(3).unwrap(), None);
}

#[test]
fn a_lease_is_taken_over_when_it_was_silent_for_a_term() {
    let (store, time) = (memory(), Time::default());
    let (a, b) = (
        controller(&store, "a", &time),
        controller(&store, "b", &time),
    );
    a.tick().unwrap();
    a.publish(&naming("11")).unwrap();
    assert_eq!(fencing(&b.tick().unwrap()), None);
    time.pass(TERM / 2);
    a.tick().unwrap();
    time.pass(TERM * 3 / 4);
    // It was renewed since b looked first.
    assert_eq!(fencing(&b.tick().unwrap()), None);
    time.pass(TERM);
    // Its holder stops by its own clock before another may take over.
    assert!(matches!(a.standing(), Standing::Standby(_)));
    assert!(matches!(
        a.publish(&naming("22")),
        Err(StoreError::NotHolder(_))
    ));
    assert_eq!(fencing(&b.tick().unwrap()), Some(2));
    assert_eq!(b.publish(&naming("33")).unwrap().epoch, 2);
    // The first waits for the second.
    assert_eq!(fencing(&a.tick().unwrap()), None);
    assert_eq!(fencing(&a.tick().unwrap()), None);
}

#[test]
fn a_holder_whose_clock_stands_still_cannot_publish_over_the_next() {
    let (store, time, stopped) = (memory(), Time::default(), Time::default());
    let a = controller(&store, "a", &stopped);
    let b = controller(&store, "b", &time);
    a.tick().unwrap();
    a.publish(&naming("11")).unwrap();
    b.tick().unwrap();
    time.pass(TERM * 2);
    assert_eq!(fencing(&b.tick().unwrap()), Some(2));
    // By its own clock it still holds the lease, and `CURRENT` names what it published.
    assert!(matches!(a.standing(), Standing::Holder { .. }));
    let refused = a.publish(&naming("22")).unwrap_err();
    assert!(matches!(refused, StoreError::NotHolder(_)), "{refused}");
    let current = store.current().unwrap().unwrap();
    assert_eq!((current.epoch, current.fencing), (1, 2));
    assert_eq!(current.generation.as_deref(), Some("11"));
}

#[test]
fn a_lease_that_is_given_back_is_free_at_once() {
    let (store, time) = (memory(), Time::default());
    let (a, b) = (
        controller(&store, "a", &time),
        controller(&store, "b", &time),
    );
    a.tick().unwrap();
    a.release().unwrap();
    assert!(matches!(
        a.publish(&naming("11")),
        Err(StoreError::NotHolder(_))
    ));
    assert_eq!(fencing(&b.tick().unwrap()), Some(2));
}

#[test]
fn a_run_that_gave_up_on_its_lease_takes_it_again_with_a_new_token() {
    let (store, time) = (memory(), Time::default());
    let a = controller(&store, "a", &time);
    a.tick().unwrap();
    time.pass(TERM);
    assert!(matches!(a.tick().unwrap(), Standing::Standby(_)));
    assert_eq!(fencing(&a.tick().unwrap()), Some(2));
}

#[test]
fn a_token_is_never_used_twice_even_if_the_lease_is_removed() {
    let (store, time) = (memory(), Time::default());
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        let next = controller(&store, name, &time);
        assert_eq!(fencing(&next.tick().unwrap()), Some(at as u64 + 1));
        store.objects.remove(LEASE).unwrap();
    }
}

#[test]
fn an_unreadable_object_stops_and_says_which() {
    let (store, time) = (memory(), Time::default());
    for (bytes, expect) in [("{", "CURRENT"), (r#"{"format": 9}"#, "format 9")] {
        store.objects.write(CURRENT, bytes.into()).unwrap();
        let error = controller(&store, "a", &time).tick().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(store.current().is_err());
    }
}

#[test]
fn a_missing_record_of_the_history_is_written_before_the_next_epoch() {
    let (store, time) = (memory(), Time::default());
    let a = controller(&store, "a", &time);
    a.tick().unwrap();
    let first = a.publish(&naming("11")).unwrap();
    store.objects.remove(&history_key(1)).unwrap();
    a.publish(&naming("22")).unwrap();
    assert_eq!(store.epoch(1).unwrap(), Some(first));
}

#[test]
fn replicas_say_what_they_serve_and_until_when() {
    let store = memory();
    let replica = |name: &str| Replica {
        name: name.into(),
        role: "follower".into(),
        epoch: Some(3),
        generation: "11".into(),
        ready: true,
        reason: None,
        at: 1,
        until: 2,
        version: "0".into(),
    };
    store.report(&replica("b")).unwrap();
    store.report(&replica("a")).unwrap();
    store.objects.write("replicas/c.json", "?".into()).unwrap();
    let names: Vec<String> = store
        .replicas()
        .unwrap()
        .into_iter()
        .map(|r| r.map_or_else(|(name, _)| name, |r| r.name))
        .collect();
    assert_eq!(names, ["a", "b", "c.json"]);
    assert!(store.report(&replica("../x")).is_err());
    store.forget("a").unwrap();
    assert_eq!(store.replicas().unwrap().len(), 2);
    let record = naming("11");
    assert_eq!(record.format, FORMAT);
    assert!(!encode(&record).is_empty());
}
