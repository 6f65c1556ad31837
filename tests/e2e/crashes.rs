//! Whatever kills the server, a restart serves a valid generation and finishes the realignment.

use std::sync::OnceLock;

use super::server::{Server, wait};
use super::workspace::Workspace;

/// The generation that an uninterrupted realignment ends in.
fn uninterrupted() -> &'static str {
    static GENERATION: OnceLock<String> = OnceLock::new();
    GENERATION.get_or_init(|| {
        let workspace = Workspace::tiny(1);
        workspace.drop_policy("xyzzy");
        finished(&Server::start(&workspace))
    })
}

/// The generation that the only realignment ends in.
fn finished(server: &Server<'_>) -> String {
    let ended = server.ended(1);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(
        server.realignments().len(),
        1,
        "the realignment was resumed, not repeated"
    );
    let generation = ended["generation"].as_str().unwrap().to_string();
    assert_eq!(server.current(), generation);
    generation
}

fn crashes_at(point: &str) {
    let expected = uninterrupted();
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let mut crashing = Server::start_with(&workspace, Some(point));
    let status = crashing.exited();
    assert!(!status.success(), "{point}: {status}");
    assert!(
        crashing.log().contains("REALIGN_CRASH_AT"),
        "{point}: ended for another reason:\n{}",
        crashing.log()
    );
    drop(crashing);

    let server = Server::start(&workspace);
    let first = server.chat("tiny", "hello", 4).generation.unwrap();
    let base = server.chat("tiny@base", "hello", 4).generation.unwrap();
    assert!(
        first == base || first == expected,
        "{point}: {first} serves after the restart"
    );
    assert_eq!(finished(&server), expected, "{point}");
    let manifests = std::fs::read_dir(workspace.path("adapters")).unwrap();
    let names: Vec<String> = manifests
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.contains("tmp")),
        "{point} left temporary files: {names:?}"
    );
}

#[test]
fn in_training() {
    crashes_at("train:after-step-2");
}

#[test]
fn before_a_generation_has_its_name() {
    crashes_at("publish:after-staging");
}

#[test]
fn before_current_names_a_published_generation() {
    crashes_at("publish:after-rename");
}

#[test]
fn while_current_is_written() {
    crashes_at("publish:after-current-temp");
}

#[test]
fn after_current_was_written() {
    crashes_at("publish:after-current");
}

/// Ends a server in the middle of training, with `end`, and compares the generation that the next
/// one finishes with that of an uninterrupted run.
fn ends_in_training(end: impl FnOnce(Server<'_>)) {
    const EPOCHS: usize = 30;
    let undisturbed = Workspace::tiny(EPOCHS);
    undisturbed.drop_policy("xyzzy");
    let expected = finished(&Server::start(&undisturbed));

    let workspace = Workspace::tiny(EPOCHS);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    wait("some steps", || {
        let step = server.realignments().first()?["losses"]["step"].as_u64()?;
        (step > 20).then_some(())
    });
    let running = &server.realignments()[0];
    assert_eq!(
        running["status"], "running",
        "it is too late to prove anything"
    );
    end(server);

    let server = Server::start(&workspace);
    assert_eq!(server.chat("tiny", "hello", 4).status, 200);
    assert_eq!(finished(&server), expected);
}

#[test]
fn killed_in_training() {
    ends_in_training(|server| server.kill());
}

#[test]
fn terminated_in_training() {
    ends_in_training(|mut server| {
        server.terminate();
        assert_eq!(server.exited().code(), Some(0), "{}", server.log());
    });
}
