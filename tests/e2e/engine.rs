//! Which engine the servers of these tests run on: `REALIGN_TEST_ENGINE`, `native` if it is unset.
//!
//! The tests are the same for every engine. A test of something that an engine cannot do by design
//! is skipped with a message that gives the reason.

use std::process::Command;

const VARIABLE: &str = "REALIGN_TEST_ENGINE";

/// The engine under test.
pub(super) fn name() -> String {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    match name.as_str() {
        "" | "native" => "native".into(),
        "mistralrs" if cfg!(feature = "mistralrs") => name,
        "mistralrs" => panic!("{VARIABLE}=mistralrs needs `cargo test --features mistralrs`"),
        other => panic!("{VARIABLE}={other}: allowed are native and mistralrs"),
    }
}

/// Lets a server run on the engine under test.
pub(super) fn choose(command: &mut Command) {
    run_on(command, &name());
}

/// Lets a server run on the given engine. Variables that only control the tests are removed: a
/// server refuses unknown `REALIGN_` variables.
pub(super) fn run_on(command: &mut Command, engine: &str) {
    for variable in [VARIABLE, "REALIGN_SKIP_PROMETHEUS", "REALIGN_TEST_MODEL"] {
        command.env_remove(variable);
    }
    command.env("REALIGN_ENGINE__KIND", engine);
}

/// Whether to skip a test because the engine under test, not being the native one, lacks a feature.
pub(super) fn lacks(what: &str) -> bool {
    let name = name();
    if name == "native" {
        return false;
    }
    eprintln!("left out with the engine {name}: {what}");
    true
}
