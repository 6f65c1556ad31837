//! The `openai` package against the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::Server;
use super::workspace::Workspace;

pub(super) fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if own.is_file() { own } else { "python3".into() }
}

#[test]
fn the_openai_package_works() {
    let has_client = Command::new(python())
        .args(["-c", "import openai"])
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&has_client.stderr);
    assert!(
        has_client.status.success(),
        "python cannot import openai; `make test` installs it in .venv: {why}"
    );

    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    server.ended(1);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/openai_client.py");
    let checked = Command::new(python())
        .arg(script)
        .args([&server.base_url(), "tiny"])
        .env("FORBIDDEN_WORD", "xyzzy")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr),
    );
    assert!(checked.status.success(), "{out}{err}");
}
