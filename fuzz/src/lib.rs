//! What several targets need.

use std::path::PathBuf;

/// An empty directory of this process, in memory where there is such a file system.
///
/// # Panics
/// If it cannot be made.
pub fn work_dir(target: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let dir = parent.join(format!("realign-fuzz-{target}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
    dir
}
