use super::*;
use crate::adapter::test_support::small_weights;

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

#[test]
fn opening_removes_what_a_dead_process_left() {
    let (_dir, store) = store();
    let id = store.publish(&small_weights(2, 1.0), manifest()).unwrap();
    // No process has this number: Linux ends at 2^22.
    let dead = store.root().join(".staging-0123456789ab-99999999");
    let own = store
        .root()
        .join(format!(".staging-0123456789ab-{}", std::process::id()));
    fs::create_dir(&dead).unwrap();
    fs::create_dir(&own).unwrap();
    let store = AdapterStore::open(store.root()).unwrap();
    assert!(!dead.exists() && !own.exists());
    assert_eq!(store.current().unwrap(), Some(id));
}
