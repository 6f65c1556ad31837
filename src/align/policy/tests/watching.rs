use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::FULL;
use crate::policy::{PolicySet, PolicyWatcher, WatchError, WatchOptions};

/// Longer than any loaded machine needs; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    root: tempfile::TempDir,
    dir: PathBuf,
    changes: Receiver<()>,
    watcher: Option<PolicyWatcher>,
}

impl Rig {
    /// Watches `<root>/policies`, which `prepare` may make.
    fn new(options: WatchOptions, prepare: impl Fn(&Path)) -> Rig {
        let root = tempfile::tempdir().unwrap();
        prepare(root.path());
        let dir = root.path().join("policies");
        let (send, changes) = channel();
        let on_change = move || send.send(()).unwrap_or_default();
        let watcher = PolicyWatcher::start(&dir, options, on_change).unwrap();
        Rig {
            root,
            dir,
            changes,
            watcher: Some(watcher),
        }
    }

    /// Waits for changes until the directory's policies are of that number (`None`: invalid).
    fn expect(&self, policies: Option<usize>, step: &str) {
        loop {
            assert!(
                self.changes.recv_timeout(PATIENCE).is_ok(),
                "no change seen: {step}"
            );
            let found = PolicySet::load_dir(&self.dir)
                .ok()
                .map(|set| set.policies().len());
            if found == policies {
                return;
            }
        }
    }
}

fn plain_dir(root: &Path) {
    fs::create_dir(root.join("policies")).unwrap();
}

/// Changes are noticed by file events: with polling only, the test would time out.
fn events() -> WatchOptions {
    WatchOptions {
        debounce: Duration::from_millis(20),
        poll_interval: Duration::from_secs(600),
        file_events: true,
    }
}

fn polling() -> WatchOptions {
    WatchOptions {
        poll_interval: Duration::from_millis(20),
        file_events: false,
        ..events()
    }
}

fn both() -> WatchOptions {
    WatchOptions {
        file_events: true,
        ..polling()
    }
}

#[test]
fn saves_deletes_and_partial_writes_are_seen() {
    for options in [events(), polling()] {
        let rig = Rig::new(options, plain_dir);
        let file = rig.dir.join("a.yaml");
        fs::write(&file, FULL).unwrap();
        rig.expect(Some(1), "a file is created");

        // As editors save: a temporary file, renamed over the old one.
        let swap = rig.dir.join(".a.yaml.swp");
        fs::write(&swap, &FULL[..FULL.len() / 2]).unwrap();
        fs::rename(&swap, &file).unwrap();
        rig.expect(None, "a partial file is renamed over it");
        fs::write(&file, FULL.replace("severity: high", "severity: critical")).unwrap();
        rig.expect(Some(1), "the file is completed");

        fs::remove_file(&file).unwrap();
        rig.expect(Some(0), "the file is deleted");
    }
}

#[test]
fn what_does_not_change_policies_is_not_reported() {
    let rig = Rig::new(both(), plain_dir);
    let file = rig.dir.join("a.yaml");
    fs::write(&file, FULL).unwrap();
    rig.expect(Some(1), "a file is created");
    // Drain what a look in the middle of the first write may have reported.
    while rig.changes.recv_timeout(Duration::from_millis(200)).is_ok() {}

    fs::write(rig.dir.join("4913"), "x").unwrap();
    fs::write(rig.dir.join(".#a.yaml"), "x").unwrap();
    let copy = rig.dir.join("a.yaml~");
    fs::write(&copy, FULL).unwrap();
    fs::rename(&copy, &file).unwrap();
    let quiet = rig.changes.recv_timeout(Duration::from_millis(300));
    assert!(quiet.is_err(), "the bytes of the policies are the same");
}

#[test]
fn a_directory_that_comes_goes_and_comes_back() {
    let rig = Rig::new(both(), |_| {});
    fs::create_dir(&rig.dir).unwrap();
    fs::write(rig.dir.join("a.yaml"), FULL).unwrap();
    rig.expect(Some(1), "the directory is created after the start");
    fs::remove_dir_all(&rig.dir).unwrap();
    rig.expect(Some(0), "the directory is removed");
    fs::create_dir(&rig.dir).unwrap();
    fs::write(rig.dir.join("b.yaml"), FULL).unwrap();
    rig.expect(Some(1), "the directory is recreated");
}

#[cfg(unix)]
#[test]
fn kubernetes_volumes_flip_a_symlink() {
    use std::os::unix::fs::symlink;
    let volume = |dir: &Path, version: &str, text: Option<&str>| {
        fs::create_dir(dir.join(version)).unwrap();
        if let Some(text) = text {
            fs::write(dir.join(version).join("a.yaml"), text).unwrap();
        }
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    for options in [events(), polling()] {
        let rig = Rig::new(options, |root| {
            plain_dir(root);
            let dir = root.join("policies");
            volume(&dir, "..v1", Some(FULL));
            symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        });
        volume(&rig.dir, "..v2", Some("half: "));
        rig.expect(None, "..data leads to an invalid version");
        volume(&rig.dir, "..v3", Some(&FULL.replace("high", "critical")));
        rig.expect(Some(1), "..data leads to a valid version");
    }
}

#[cfg(unix)]
#[test]
fn the_directory_itself_may_be_a_symlink_that_moves() {
    use std::os::unix::fs::symlink;
    let rig = Rig::new(both(), |root| {
        fs::create_dir(root.join("one")).unwrap();
        fs::create_dir(root.join("two")).unwrap();
        fs::write(root.join("two/a.yaml"), FULL).unwrap();
        symlink("one", root.join("policies")).unwrap();
    });
    symlink("two", rig.root.path().join("next")).unwrap();
    fs::rename(rig.root.path().join("next"), &rig.dir).unwrap();
    rig.expect(Some(1), "the symlink leads to another directory");
    fs::remove_file(rig.root.path().join("two/a.yaml")).unwrap();
    rig.expect(Some(0), "the new directory is watched");
}

#[test]
fn dropping_stops_the_thread() {
    let mut rig = Rig::new(events(), plain_dir);
    rig.watcher.take();
    // The callback owned the sender; it is gone once the thread has ended.
    assert!(rig.changes.recv().is_err());
}

#[test]
fn a_zero_poll_interval_is_refused() {
    let options = WatchOptions {
        poll_interval: Duration::ZERO,
        ..WatchOptions::default()
    };
    let refused = PolicyWatcher::start("policies", options, || {});
    assert!(matches!(refused, Err(WatchError::ZeroPollInterval)));
}
