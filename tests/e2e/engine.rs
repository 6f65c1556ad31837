//! Which engine the servers of these tests run on: `REALIGN_TEST_ENGINE`, `native` if it is unset.
//!
//! The tests are the same for every engine. What one cannot do by its nature is left out by name
//! and with a reason, never silently.

use std::process::Command;

const VARIABLE: &str = "REALIGN_TEST_ENGINE";

/// The engine under test.
pub fn name() -> String {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    match name.as_str() {
        "" | "native" => "native".into(),
        "mistralrs" if cfg!(feature = "mistralrs") => name,
        "mistralrs" => panic!("{VARIABLE}=mistralrs needs `cargo test --features mistralrs`"),
        other => panic!("{VARIABLE}={other}: allowed are native and mistralrs"),
    }
}

/// Has a server run on it.
pub fn choose(command: &mut Command) {
    run_on(command, &name());
}

/// Has a server run on a certain engine. What steers the tests alone is kept from it: a server
/// refuses `REALIGN_` variables that it does not know.
pub fn run_on(command: &mut Command, engine: &str) {
    for own in [VARIABLE, "REALIGN_SKIP_PROMETHEUS", "REALIGN_TEST_MODEL"] {
        command.env_remove(own);
    }
    command.env("REALIGN_ENGINE__KIND", engine);
}

/// Whether a test is to be left out because only the native engine does what it is about.
pub fn lacks(what: &str) -> bool {
    let name = name();
    if name == "native" {
        return false;
    }
    eprintln!("left out with the engine {name}: {what}");
    true
}
