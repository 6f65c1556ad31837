use std::time::{Duration, SystemTime};

use super::*;

fn identity(path: &Path) -> Identity {
    Identity::of(&[path.to_owned()], None).unwrap()
}

/// A file whose content is an hour old; that its metadata is new cannot be helped.
fn old_file(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("model.gguf");
    fs::write(&path, bytes).unwrap();
    age(&path);
    path
}

fn age(path: &Path) {
    let hour = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(hour)
        .unwrap();
}

/// As if it had been written long ago.
fn settled(mut identity: Identity) -> Identity {
    for seen in &mut identity.files {
        (seen.modified, seen.changed) = ((1, 0), (1, 0));
    }
    identity
}

#[test]
fn a_hash_is_recalled_for_the_same_identity_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = WeightsCache {
        directory: dir.path().join("cache"),
        max_bytes: 1 << 30,
    };
    let path = old_file(dir.path(), &[7; 10_000]);
    let known = settled(identity(&path));
    assert_eq!(cache.recall(&known), None);
    cache.remember(&known, "abc");
    assert_eq!(cache.recall(&known).as_deref(), Some("abc"));
    let mut other = known.clone();
    other.files[0].changed = (1, 1);
    assert_eq!(cache.recall(&other), None, "other times");
    let mut other = known.clone();
    other.quantisation = Some("q8_0".into());
    assert_eq!(cache.recall(&other), None, "quantised");
    // A note that was damaged says nothing.
    let note = cache.note(&known);
    let text = fs::read_to_string(&note).unwrap();
    fs::write(&note, text.replace("abc", "abd")).unwrap();
    assert_eq!(cache.recall(&known), None, "damaged");
}

#[test]
fn a_file_that_was_just_written_is_not_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let cache = WeightsCache {
        directory: dir.path().join("cache"),
        max_bytes: 1 << 30,
    };
    let new = identity(&old_file(dir.path(), &[7; 10_000]));
    assert!(!new.is_settled(), "its times were set a moment ago");
    cache.remember(&new, "abc");
    assert_eq!(cache.recall(&new), None);
}

#[test]
fn another_content_of_the_same_size_and_times_is_another_identity() {
    let dir = tempfile::tempdir().unwrap();
    let path = old_file(dir.path(), &[7; 3_000_000]);
    let first = identity(&path);
    let mut bytes = vec![7; 3_000_000];
    bytes[2_999_999] = 8;
    fs::write(&path, bytes).unwrap();
    age(&path);
    let second = identity(&path);
    assert_eq!(first.files[0].modified, second.files[0].modified);
    assert_ne!(first.samples, second.samples);
}
