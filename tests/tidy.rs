//! Conventions that a reviewer should not have to check.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source tree is readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn under(dir: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    sources(Path::new(dir), &mut paths);
    assert!(!paths.is_empty(), "{dir} has sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn no_file_outgrows_a_reader() {
    for (path, text) in under("src").into_iter().chain(under("tests")) {
        let lines = text.lines().count();
        assert!(
            lines <= 600,
            "{} has {lines} lines: split it",
            path.display()
        );
    }
}

#[test]
fn nothing_unfinished_is_marked_in_the_sources() {
    for (path, text) in under("src") {
        for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME"] {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}
