//! Packed weights that are kept: the same bits as without, and nothing that is damaged is used.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use realign_cpu::stored::{Origin, load_cached};
use realign_cpu::{CpuBackend, load};
use realign_model::cache::WeightsCache;
use realign_model::{KvType, ModelFiles};
use sha2::{Digest, Sha256};

use super::files::copy;
use super::{FAMILIES, QUANTISED, files, fixture, served};

/// A cache in a directory of its own.
fn cache(dir: &Path) -> WeightsCache {
    WeightsCache {
        directory: dir.join("cache"),
        max_bytes: 1 << 30,
    }
}

/// The bits of a model's logits.
fn bits(model: CpuBackend) -> Vec<u32> {
    let tokens: Vec<u32> = (1..24).collect();
    let logits = served((&model, KvType::default()), &tokens, &[16, 7], None);
    let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    logits.into_iter().map(f32::to_bits).collect()
}

fn cached(files: &ModelFiles, cache: &WeightsCache) -> (Vec<u32>, Origin) {
    let (model, origin) = load_cached(&files.clone().cached(Some(cache))).unwrap();
    (bits(CpuBackend::new(model)), origin)
}

fn plain(files: &ModelFiles) -> Vec<u32> {
    bits(CpuBackend::new(load(files).unwrap()))
}

/// The files of weights that are kept.
fn kept(cache: &WeightsCache) -> Vec<PathBuf> {
    let list = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten();
        entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    };
    let all = list(&cache.directory);
    let all = all.iter().flat_map(|shelf| list(shelf));
    all.filter(|path| path.extension().is_some_and(|e| e == "weights"))
        .collect()
}

/// Waits until what was made is there under its name, which happens in the background.
fn wait_for(cache: &WeightsCache, count: usize) -> Vec<PathBuf> {
    let started = Instant::now();
    loop {
        let found = kept(cache);
        if found.len() == count {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{found:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every kind of file: safetensors, those quantised while they are loaded, GGUF.
fn every_kind() -> Vec<(String, ModelFiles)> {
    let mut all = Vec::new();
    for family in FAMILIES {
        all.push((family.to_string(), files(&fixture(family))));
    }
    for family in QUANTISED {
        let eight = files(&fixture(family)).quantised(Some("q8_0".parse().unwrap()));
        all.push((format!("{family} in q8_0"), eight.unwrap()));
        let gguf = files(&fixture(family).join("model-q8_0.gguf"));
        all.push((format!("{family} as GGUF"), gguf));
    }
    all
}

#[test]
fn what_is_mapped_computes_the_same_bits() {
    for (name, files) in every_kind() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let expected = plain(&files);
        let (first, origin) = cached(&files, &cache);
        assert_eq!(origin, Origin::Written, "{name}");
        let path = wait_for(&cache, 1).remove(0);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        let (second, origin) = cached(&files, &cache);
        assert_eq!(origin, Origin::Mapped, "{name}");
        assert!(first == expected && second == expected, "{name}");
        let known = files.clone().cached(Some(&cache)).known_hash();
        assert!(known.is_none_or(|hash| hash == files.base_hash().unwrap()));
    }
}

/// What is read and packed of every family's files. A difference means that files of the same layout
/// number would hold something else: count `realign_cpu`'s `LAYOUT` up.
#[test]
fn what_is_kept_of_each_family_is_that_of_the_layouts_number() {
    let mut hash = Sha256::new();
    for (_, files) in every_kind() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        cached(&files, &cache);
        let mut file = File::open(wait_for(&cache, 1).remove(0)).unwrap();
        // Up to the table, whose place the footer has.
        let mut place = [0; 8];
        file.seek(SeekFrom::End(-48)).unwrap();
        file.read_exact(&mut place).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut sections = Vec::new();
        file.take(u64::from_le_bytes(place))
            .read_to_end(&mut sections)
            .unwrap();
        hash.update(&sections);
    }
    assert_eq!(hex::encode(&hash.finalize()[..8]), "fc7cbda1e60de3ba");
}

/// Puts a damaged file in the place of a kept one.
fn damage(path: &Path, how: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    // As another file: one that is mapped must not be cut.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn what_is_damaged_cut_or_of_another_layout_is_packed_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let files = files(&fixture("qwen2").join("model-q8_0.gguf"));
    let expected = plain(&files);
    assert_eq!(cached(&files, &cache).1, Origin::Written);
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 12] = [
        ("first byte", |b| b[0] ^= 1),
        ("a scale", |b| b[101] ^= 0x80),
        ("the table", |b| {
            let at = b.len() - 65;
            b[at] ^= 1;
        }),
        ("the footer", |b| {
            let at = b.len() - 64;
            b[at] ^= 1;
        }),
        ("its sum", |b| *b.last_mut().unwrap() ^= 1),
        ("another layout", |b| {
            let at = b.len() - 56;
            b[at] += 1;
        }),
        ("the table's place", |b| {
            let at = b.len() - 41;
            b[at] = 0xff;
        }),
        ("one byte short", |b| {
            b.pop();
        }),
        ("one byte long", |b| b.push(0)),
        ("half", |b| b.truncate(b.len() / 2)),
        ("short", |b| b.truncate(9)),
        ("empty", Vec::clear),
    ];
    for (name, change) in changes {
        let path = wait_for(&cache, 1).remove(0);
        damage(&path, change);
        let (got, origin) = cached(&files, &cache);
        assert_eq!(origin, Origin::Written, "{name}");
        assert!(got == expected, "{name}");
        wait_for(&cache, 1);
        let (got, origin) = cached(&files, &cache);
        assert_eq!((origin, got == expected), (Origin::Mapped, true), "{name}");
    }
    // Norms and biases too, wherever they lie; what is not noticed is padding.
    let path = wait_for(&cache, 1).remove(0);
    let length = fs::metadata(&path).unwrap().len() as usize;
    let mut noticed = 0;
    for at in (0..length).step_by(length / 7 + 1) {
        let path = wait_for(&cache, 1).remove(0);
        damage(&path, |b| b[at] ^= 4);
        let (got, origin) = cached(&files, &cache);
        assert!(got == expected, "byte {at}");
        noticed += usize::from(origin == Origin::Written);
        wait_for(&cache, 1);
        if origin == Origin::Mapped {
            damage(&path, |b| b[at] ^= 4);
        }
    }
    assert!(noticed >= 3, "{noticed}");
}

#[test]
fn a_table_that_was_made_for_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let (one, other) = (files(&fixture("qwen2")), files(&fixture("qwen3")));
    cached(&one, &cache);
    wait_for(&cache, 1);
    cached(&other, &cache);
    let paths = wait_for(&cache, 2);
    // Each under the other's name, as a mistaken copy would have it.
    let aside = dir.path().join("aside");
    fs::rename(&paths[0], &aside).unwrap();
    fs::rename(&paths[1], &paths[0]).unwrap();
    fs::rename(&aside, &paths[1]).unwrap();
    for files in [one, other] {
        let (got, origin) = cached(&files, &cache);
        assert!(got == plain(&files));
        assert_eq!(origin, Origin::Written);
        wait_for(&cache, 2);
    }
}

#[test]
fn other_weights_in_a_file_of_the_same_name_size_and_time_are_packed() {
    let (dir, model) = (tempfile::tempdir().unwrap(), copy("llama"));
    let cache = cache(dir.path());
    let weights = model.path().join("model.safetensors");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let age = || {
        let file = File::options().write(true).open(&weights).unwrap();
        file.set_modified(long_ago).unwrap();
    };
    age();
    let (first, origin) = cached(&files(model.path()), &cache);
    assert_eq!(origin, Origin::Written);
    wait_for(&cache, 1);
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    age();
    let (second, origin) = cached(&files(model.path()), &cache);
    assert_eq!(origin, Origin::Written);
    assert!(second == plain(&files(model.path())) && second != first);
    wait_for(&cache, 2);
}

#[test]
fn a_directory_that_cannot_be_written_to_or_is_too_small_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(&fixture("llama"));
    let expected = plain(&files);
    let file = dir.path().join("file");
    fs::write(&file, "no directory").unwrap();
    let blocked = WeightsCache {
        directory: file.join("cache"),
        max_bytes: 1 << 30,
    };
    let small = WeightsCache {
        max_bytes: 20_000,
        ..cache(dir.path())
    };
    for cache in [blocked, small] {
        let (got, origin) = cached(&files, &cache);
        assert_eq!((origin, got == expected), (Origin::Memory, true));
        assert!(kept(&cache).is_empty());
    }
    let shelf = fs::read_dir(dir.path().join("cache")).unwrap();
    let shelf: Vec<PathBuf> = shelf.map(|e| e.unwrap().path()).collect();
    assert!(shelf.iter().all(|dir| !dir.join("part").exists()));
}

#[test]
fn a_file_that_others_may_write_to_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let files = files(&fixture("llama"));
    cached(&files, &cache);
    let path = wait_for(&cache, 1).remove(0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let (got, origin) = cached(&files, &cache);
    assert_eq!(origin, Origin::Written);
    assert!(got == plain(&files));
    // It was replaced.
    let started = Instant::now();
    while fs::metadata(&path).unwrap().permissions().mode() & 0o777 != 0o444 {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn of_several_that_start_at_once_one_packs() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let files = files(&fixture("gemma3"));
    let expected = plain(&files);
    let origins: Vec<Origin> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..6)
            .map(|_| {
                // Each with a hash of its own, as processes have.
                let files = super::files(&files.root);
                let (cache, expected) = (&cache, &expected);
                scope.spawn(move || {
                    let (got, origin) = cached(&files, cache);
                    assert!(got == *expected);
                    origin
                })
            })
            .collect();
        starts.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let written = origins.iter().filter(|o| **o == Origin::Written).count();
    assert_eq!(written, 1, "{origins:?}");
    assert!(origins.iter().all(|o| *o != Origin::Memory), "{origins:?}");
    assert_eq!(wait_for(&cache, 1).len(), 1);
}
