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

/// A server on a workspace ends at a point.
fn crash(workspace: &Workspace, point: &str) {
    let mut crashing = Server::start_with(workspace, Some(point));
    let status = crashing.exited();
    assert!(!status.success(), "{point}: {status}");
    assert!(
        crashing.log().contains("REALIGN_CRASH_AT"),
        "{point}: ended for another reason:\n{}",
        crashing.log()
    );
}

fn crashes_at(point: &str) {
    let expected = uninterrupted();
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    crash(&workspace, point);

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
fn after_triage() {
    crashes_at("triage:after-verdicts");
}

#[test]
fn in_an_exam() {
    crashes_at("exam:after-answers");
}

#[test]
fn in_impact() {
    crashes_at("impact:after-pass-2");
}

#[test]
fn in_training() {
    crashes_at("train:after-step-2");
}

#[test]
fn in_the_gate() {
    crashes_at("gate:after-exam");
}

/// A workspace in which nothing that a random model says complies, so that pairs are gathered and the
/// candidate is trained again.
fn hopeless() -> Workspace {
    let workspace = Workspace::tiny(2);
    let config = workspace
        .read("realign.toml")
        .replace("rounds = 1", "rounds = 3")
        // So small that the first round mends nothing, whatever the processor's rounding.
        .replace("learning_rate = 0.02", "learning_rate = 1e-5")
        .replace(
            "[gather]\nenabled = false",
            "[gather]\nsamples_per_prompt = 1",
        );
    workspace.write("realign.toml", &config);
    let prompts: Vec<String> = (0..20).map(|i| format!("question {i} again?")).collect();
    let policy = format!(
        "apiVersion: realign/v1\nid: good\nversion: \"1\"\nprompts: [{}]\nrules:\n  - id: says-good\n    \
         description: Say good.\n    when: {{ prompt: {{ any_phrase: [question] }} }}\n    \
         violates: {{ not: {{ response: {{ any_phrase: [good] }} }} }}\n\
         gate: {{ min_policy_agreement_gain: 0.0, max_perplexity_rise: 100000.0 }}\n",
        prompts.join(", ")
    );
    workspace.write("policies/good.yaml", &policy);
    workspace
}

/// How the only realignment ended, and in which generation.
fn ended(server: &Server<'_>) -> (String, String) {
    let ended = server.ended(1);
    assert_eq!(
        server.realignments().len(),
        1,
        "it was resumed, not repeated"
    );
    assert!(
        ended["error"].is_null() || ended["status"] == "rejected",
        "{ended}"
    );
    assert_eq!(server.chat("tiny", "hello", 4).status, 200);
    let text = |field: &str| ended[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("generation"))
}

/// The stages that only some realignments have, and the second of three rounds.
#[test]
fn in_gathering_and_between_rounds_and_after_a_checkpoint() {
    let undisturbed = hopeless();
    let expected = ended(&Server::start(&undisturbed));
    assert!(!expected.1.is_empty(), "it trained nothing: {expected:?}");
    for point in [
        "gather:answering",
        "train:after-step-9",
        "train:after-round-0",
        "train:after-round-1",
    ] {
        let workspace = hopeless();
        crash(&workspace, point);
        assert_eq!(ended(&Server::start(&workspace)), expected, "{point}");
    }
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

#[test]
fn while_an_adapter_is_removed() {
    let workspace = Workspace::tiny(1);
    let config = workspace.read("realign.toml") + "[retention]\ngenerations = 1\n";
    workspace.write("realign.toml", &config);
    workspace.drop_policy("xyzzy");
    let mut crashing = Server::start_with(&workspace, Some("collect:after-discard"));
    let first = crashing.ended(1)["generation"].clone();
    workspace.drop_policy("plugh");
    let second = crashing.ended(2)["generation"].clone();
    // The third generation is one too many: the first one goes.
    workspace.drop_policy("plain");
    assert!(!crashing.exited().success());
    assert!(crashing.log().contains("REALIGN_CRASH_AT"));
    drop(crashing);
    let path = |id: &serde_json::Value| workspace.path("adapters").join(id.as_str().unwrap());
    assert!(!path(&first).exists() && path(&second).exists());

    let server = Server::start(&workspace);
    wait("the third realignment's end", || {
        let newest = server.realignments()[0].clone();
        (newest["status"] == "succeeded").then_some(())
    });
    let serving = server.realignments()[0]["generation"].clone();
    assert_eq!(server.current(), serving.as_str().unwrap());
    assert_eq!(server.chat("tiny", "hello", 4).status, 200);
    let left = std::fs::read_dir(workspace.path("adapters")).unwrap();
    let left: Vec<String> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.') && name.contains(first.as_str().unwrap()))
        .collect();
    assert!(left.is_empty(), "the removal is finished: {left:?}");
}
