use std::time::Duration;

use super::*;
use crate::adapter::test_support::small_weights;
use realign_core::lock::Holder;

fn manifest() -> Manifest {
    Manifest {
        base_hash: "b".repeat(64),
        base_name: "tiny".into(),
        ..Manifest::default()
    }
}

fn store() -> (tempfile::TempDir, AdapterStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = AdapterStore::open(dir.path().join("adapters")).unwrap();
    (dir, store)
}

#[test]
fn publish_then_load_list_and_current() {
    let (_dir, store) = store();
    assert_eq!(store.current().unwrap(), None);
    let first = store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    let second = store.publish(&small_weights(3, 0.7), manifest()).unwrap();
    assert_eq!(store.current().unwrap(), Some(second.clone()));
    let stored = store.load(&second, &manifest().base_hash).unwrap();
    assert_eq!(stored.manifest.generation, Some(second));
    assert_eq!(stored.weights.sites.len(), 4);
    store.set_current(&first).unwrap();
    assert_eq!(store.current().unwrap(), Some(first.clone()));
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(
        store.publish(&small_weights(2, 1.0), manifest()).unwrap(),
        first
    );
    store.set_current_base(&manifest().base_hash).unwrap();
    assert_eq!(
        store.current().unwrap(),
        Some(content::base_id(&manifest().base_hash))
    );
}

#[test]
fn damage_and_other_bases_are_told_apart() {
    let (_dir, store) = store();
    let id = store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    let base = manifest().base_hash;
    let other = store.load(&id, &"c".repeat(64)).unwrap_err();
    assert!(matches!(other, AdapterError::OtherBase { .. }), "{other}");
    let config = store.path(&id).join(peft::CONFIG_FILE);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"lora_alpha\": 2", "\"lora_alpha\": 4"),
    )
    .unwrap();
    let error = store.load(&id, &base).unwrap_err().to_string();
    assert!(error.contains("its content is generation"), "{error}");
    let model = store.path(&id).join(peft::MODEL_FILE);
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&model, bytes).unwrap();
    let error = store.load(&id, &base).unwrap_err().to_string();
    assert!(error.contains("SHA-256"), "{error}");
    fs::write(store.path(&id).join(MANIFEST_FILE), "{").unwrap();
    let listed = store.list().unwrap();
    assert!(listed[0].manifest.is_err(), "listed, not fatal");
    store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    assert!(
        store.load(&id, &base).is_ok(),
        "publishing again repairs it"
    );
}

#[test]
fn only_ids_become_paths() {
    let (_dir, store) = store();
    for text in ["..", "../adapters", "", "CURRENT", "0123456789ab"] {
        let error = store.load(&GenerationId(text.into()), "b").unwrap_err();
        assert!(
            matches!(error, AdapterError::Unknown { .. }),
            "{text}: {error}"
        );
    }
    assert!(
        store
            .set_current(&GenerationId("0123456789ab".into()))
            .is_err()
    );
    fs::write(store.root().join(CURRENT_FILE), "junk").unwrap();
    assert!(store.current().is_err());
}

fn locked(store: &AdapterStore) -> AdapterStore {
    let holder = Holder::this_process(None);
    let place = AdapterStore::place(store.root());
    let lock = DirLock::take(place, &holder, Duration::ZERO).unwrap();
    AdapterStore::open_locked(store.root(), Arc::new(lock)).unwrap()
}

#[test]
fn only_whoever_may_write_removes_what_is_left_over() {
    let (_dir, store) = store();
    let id = store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    let left = |name: &str| {
        let path = store.root().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let staged = left(".staging-0123456789ab");
    let reader = AdapterStore::open(store.root()).unwrap();
    assert_eq!(reader.list().unwrap().len(), 1);
    assert!(staged.exists(), "readers remove nothing");
    store.write(&small_weights(3, 1.0), manifest()).unwrap();
    assert!(!staged.exists(), "no other process was writing");
    let (staged, trash) = (
        left(".staging-0123456789ab-17"),
        left(".trash-0123456789ab"),
    );
    let temporary = store.root().join("CURRENT.tmp");
    fs::write(&temporary, "x").unwrap();
    let store = locked(&store);
    assert!(!staged.exists() && !trash.exists() && !temporary.exists());
    assert_eq!(store.current().unwrap(), Some(id));
}

#[test]
fn what_is_being_staged_is_left_alone() {
    let (_dir, store) = store();
    let writing = store.publishing().unwrap();
    let staged = store.root().join(".staging-0123456789ab");
    fs::create_dir(&staged).unwrap();
    let waiting = store.clone();
    let other = std::thread::spawn(move || waiting.write(&small_weights(2, 1.0), manifest()));
    std::thread::sleep(Duration::from_millis(50));
    assert!(staged.exists() && !other.is_finished());
    writing.release();
    other.join().unwrap().unwrap();
    assert!(!staged.exists(), "abandoned once the lock was free");
}

#[test]
fn only_the_holder_of_the_directory_writes_current() {
    let (_dir, store) = store();
    let server = locked(&store);
    let id = server.publish(&small_weights(2, 1.0), manifest()).unwrap();
    let added = store.write(&small_weights(3, 1.0), manifest()).unwrap();
    for refused in [
        store.set_current(&added),
        store.set_current_base("b"),
        store.remove(&added, &|_| false).map(drop),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("is in use by"), "{error}");
    }
    assert_eq!(store.current().unwrap(), Some(id));
    server.set_current(&added).unwrap();
}

#[test]
fn a_generation_that_is_needed_is_not_removed() {
    let (_dir, store) = store();
    let first = store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    let second = store.publish(&small_weights(3, 1.0), manifest()).unwrap();
    assert!(store.bytes(&first) > 100);
    assert!(
        !store.remove(&second, &|_| false).unwrap(),
        "CURRENT names it"
    );
    assert!(!store.remove(&first, &|id| *id == first).unwrap());
    assert!(store.remove(&first, &|_| false).unwrap());
    assert!(!store.path(&first).exists());
    assert!(store.remove(&first, &|_| false).is_err(), "it is gone");
    assert!(store.set_current(&first).is_err());
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn a_directory_that_is_not_there_is_empty_and_stays_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = AdapterStore::open(dir.path().join("none")).unwrap();
    assert_eq!(store.list().unwrap().len(), 0);
    assert_eq!(store.current().unwrap(), None);
    assert!(!store.root().exists());
    fs::write(store.root(), "").unwrap();
    assert!(AdapterStore::open(store.root()).is_err());
}

#[test]
fn files_are_passed_on_and_verified() {
    let (_here, from) = store();
    let (_there, to) = store();
    let base = manifest().base_hash;
    let id = from.write(&small_weights(2, 1.0), manifest()).unwrap();
    let files = from.files(&id, &base).unwrap();
    let add = |id: &GenerationId, base: &str, files: &[Vec<u8>; 3]| {
        to.add(id, base, files.each_ref().map(Vec::as_slice))
    };
    let other = GenerationId("0123456789ab".into());
    let nowhere = GenerationId("../../../etc".into());
    let mut damaged = files.clone();
    let last = damaged[1].len() - 1;
    damaged[1][last] ^= 1;
    assert!(add(&other, &base, &files).is_err());
    assert!(add(&nowhere, &base, &files).is_err());
    assert!(add(&id, &base, &damaged).is_err());
    assert!(add(&id, &"c".repeat(64), &files).is_err());
    assert!(to.list().unwrap().is_empty(), "nothing of it stays");
    add(&id, &base, &files).unwrap();
    add(&id, &base, &files).unwrap();
    assert_eq!(to.current().unwrap(), None);
    assert_eq!(to.files(&id, &base).unwrap(), files);
}
