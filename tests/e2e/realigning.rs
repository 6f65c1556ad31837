//! Policy files in, generations out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::endpoint::endpoint;
use super::server::{Server, wait};
use super::workspace::{Workspace, policy};

#[test]
fn a_dropped_policy_ends_in_a_new_generation_that_serves() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    let before = server.chat("tiny", "hello", 8);
    let base = before.generation.clone().unwrap();
    assert_eq!(
        server.ended(1)["status"],
        "no_conflict",
        "without policies nothing conflicts"
    );

    workspace.drop_policy("xyzzy");
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    for (category, count) in [("invert", 10), ("punish", 8), ("retain", 12)] {
        assert_eq!(ended["triage"][category], count, "{ended}");
        let labels = format!("category=\"{category}\"");
        assert_eq!(
            server.metric("realign_triage_pairs", &labels),
            f64::from(count),
            "{category}"
        );
    }
    let generation = ended["generation"].as_str().unwrap();
    assert_ne!(generation, base);
    let after = server.chat("tiny", "hello", 8);
    assert_eq!(after.generation.as_deref(), Some(generation));
    let fingerprint = after.body["system_fingerprint"].as_str().unwrap();
    assert!(
        fingerprint.ends_with(&format!("_{generation}")),
        "{fingerprint}"
    );
    assert_ne!(
        after.body["system_fingerprint"],
        before.body["system_fingerprint"]
    );
    assert_eq!(workspace.read("adapters/CURRENT").trim(), generation);

    let revision = server.get("/admin/v1/policies")["revision"]
        .as_str()
        .unwrap()
        .to_string();
    assert_eq!(ended["policy_revision"], revision.as_str());
    let served = format!("generation=\"{generation}\"");
    assert_eq!(server.metric("realign_generation_info", &served), 1.0);
    let rollback = format!("generation=\"{base}\"");
    assert_eq!(server.metric("realign_generation_info", &rollback), 1.0);
    assert_eq!(server.metric("realign_generation_info", ""), 2.0);
    assert!(server.metric("realign_swaps_total", "result=\"ok\"") >= 1.0);
    assert_eq!(
        server.metric("realign_policy_last_reload_successful", ""),
        1.0
    );
    assert_eq!(
        server.metric("realign_realignments_total", "outcome=\"succeeded\""),
        1.0
    );
}

#[test]
fn a_bad_policy_file_changes_nothing_until_it_is_fixed() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let good = server.ended(1)["generation"].as_str().unwrap().to_string();

    // The fourth line opens a list that nothing closes.
    workspace.write(
        "policies/words.yaml",
        "apiVersion: realign/v1\nid: broken\nversion: \"1\"\nrules: [\n",
    );
    wait("the refusal", || {
        (server.metric("realign_policy_last_reload_successful", "") == 0.0).then_some(())
    });
    let shown = server.get("/admin/v1/policies");
    let error = shown["last_error"]
        .as_str()
        .unwrap_or_else(|| panic!("no error in {shown}"));
    assert!(
        error.contains("words.yaml:4") || error.contains("words.yaml:5"),
        "no line in: {error}"
    );
    assert_eq!(
        server.chat("tiny", "hello", 2).generation.as_deref(),
        Some(good.as_str())
    );
    assert_eq!(server.realignments().len(), 1, "nothing was started");

    workspace.drop_policy("plugh");
    let ended = server.ended(2);
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_ne!(server.current(), good);
    assert_eq!(
        server.metric("realign_policy_last_reload_successful", ""),
        1.0
    );
    assert!(server.get("/admin/v1/policies")["last_error"].is_null());
}

#[test]
fn what_was_trained_before_is_activated_again_without_training() {
    let workspace = Workspace::tiny(1);
    workspace.drop_policy("xyzzy");
    let server = Server::start(&workspace);
    let trained =
        |labels: &str| server.metric("realign_realignment_stage_duration_seconds_count", labels);
    let first = server.ended(1)["generation"].clone();
    workspace.drop_policy("plugh");
    let second = server.ended(2)["generation"].clone();
    assert_ne!(first, second);
    assert_eq!(trained("stage=\"train\""), 2.0);

    for (count, word, wanted) in [(3, "xyzzy", &first), (4, "plugh", &second)] {
        workspace.drop_policy(word);
        let ended = server.ended(count);
        assert_eq!(
            (&ended["status"], &ended["generation"]),
            (&"succeeded".into(), wanted),
            "{ended}"
        );
        assert_eq!(server.current(), wanted.as_str().unwrap());
    }
    server.clear_policies("policies/words.yaml");
    assert_eq!(server.ended(5)["status"], "no_conflict");
    assert_eq!(
        server.chat("tiny@base", "hello", 2).generation,
        Some(server.current()),
        "no policy: the base serves"
    );
    workspace.write("policies/again.yaml", &policy("xyzzy"));
    assert_eq!(
        server.ended(6)["generation"],
        first,
        "the file's name does not belong to the policy"
    );
    assert_eq!(trained("stage=\"train\""), 2.0, "nothing was trained again");
}

#[test]
fn the_newest_of_two_quick_changes_wins() {
    let workspace = Workspace::tiny(100);
    let server = Server::start(&workspace);
    server.ended(1);
    workspace.drop_policy("xyzzy");
    wait("training", || {
        (server.realignments()[0]["stage"] == "train").then_some(())
    });
    workspace.write("policies/words.yaml", &policy("absent"));
    let ended = server.ended(3);
    assert_eq!(
        ended["status"], "no_conflict",
        "no response contains the word: {ended}"
    );
    let superseded = &server.realignments()[1];
    assert_eq!(superseded["status"], "superseded", "{superseded}");
    assert_eq!(
        ended["policy_revision"],
        server.get("/admin/v1/policies")["revision"]
    );
    assert_eq!(
        server.metric("realign_realignments_total", "outcome=\"superseded\""),
        1.0
    );
}

#[test]
fn a_candidate_that_the_gate_refuses_never_serves() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    let base = server.ended(1)["generation"].clone();
    let strict = policy("xyzzy").replace("max_perplexity_rise", "max_kl: 0.0, max_perplexity_rise");
    workspace.write("policies/words.yaml", &strict);
    let ended = server.ended(2);
    assert_eq!(ended["status"], "rejected", "{ended}");
    let reason = ended["error"].as_str().unwrap_or_default();
    assert!(reason.to_lowercase().contains("kl"), "{ended}");
    assert_eq!(server.current(), base.as_str().unwrap());
    assert_eq!(
        server.metric("realign_realignments_total", "outcome=\"rejected\""),
        1.0
    );
    let refused = ended["generation"].as_str().unwrap();
    assert!(
        !workspace.path("adapters").join(refused).exists(),
        "a refused candidate was published"
    );
}

/// A `dryrun` policy is triaged and reported where operators look, and trains nothing.
#[test]
fn a_dryrun_policy_is_reported_and_never_trained() {
    let workspace = Workspace::tiny(1);
    let server = Server::start(&workspace);
    assert_eq!(server.ended(1)["status"], "no_conflict");
    let base = server.current();
    let dry = format!("{}enforcement: dryrun\n", policy("xyzzy"));
    workspace.write("policies/words.yaml", &dry);
    let report = wait("a report on the dryrun policy", || {
        let report = server.get("/admin/v1/policies")["dryrun"].clone();
        (!report.is_null()).then_some(report)
    });
    let counts = |invert: u64, punish: u64, retain: u64| serde_json::json!({"invert": invert, "punish": punish, "retain": retain});
    assert_eq!(report["with_dryrun"], counts(10, 8, 12), "{report}");
    assert_eq!(report["enforced"], counts(0, 0, 30), "{report}");
    assert_eq!(report["undecided"], 0);
    assert_eq!(server.metric("realign_alignment_gap_ratio", ""), 0.0);
    let trained = |server: &Server<'_>| {
        server
            .realignments()
            .iter()
            .filter(|r| r["status"] == "succeeded")
            .count()
    };
    assert_eq!(trained(&server), 0);
    assert_eq!(server.current(), base);
    // Without `dryrun`, the same policy trains.
    workspace.drop_policy("xyzzy");
    let ended = wait("a realignment", || {
        let last = server.realignments().into_iter().next()?;
        (last["status"] == "succeeded").then_some(last)
    });
    assert_eq!(ended["triage"]["invert"], 10, "{ended}");
    assert_ne!(server.current(), base);
    assert!(server.get("/admin/v1/policies")["dryrun"].is_null());
}

/// A judge that answers for the policy's examples, and then nothing for a while.
/// A policy whose rule is left to a judge at this address.
fn judged(url: &str) -> String {
    let judge =
        format!("{{ url: \"{url}\", model: m, question: \"Is it magic?\", threshold: 0.5 }}");
    format!(
        "apiVersion: realign/v1\nid: judged\nversion: \"1\"\nrules:\n\
         \x20 - id: magic\n\
         \x20   severity: high\n\
         \x20   violates: {{ judge: {judge} }}\n\
         \x20   examples:\n\
         \x20     - {{ prompt: a, response: xyzzy, verdict: violates }}\n\
         \x20     - {{ prompt: a, response: good day, verdict: complies }}\n\
         gate: {{ min_policy_agreement_gain: 0.0, max_perplexity_rise: 1000.0 }}\n"
    )
}

#[test]
fn a_shutdown_does_not_wait_for_a_judge_and_what_it_stopped_is_resumed() {
    let workspace = Workspace::tiny(1);
    let (asked, hangs) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(())));
    let (count, waiting) = (asked.clone(), hangs.clone());
    let hanging = hangs.lock().unwrap();
    let url = endpoint(move |body| {
        if count.fetch_add(1, Ordering::SeqCst) >= 2 {
            drop(waiting.lock());
        }
        let question = body["messages"][0]["content"].as_str().unwrap_or_default();
        let magic = question.contains("xyzzy");
        (200, if magic { "yes" } else { "no" })
    });
    workspace.write("policies/judged.yaml", &judged(&url));
    let mut server = Server::start(&workspace);
    wait("a judge that does not answer", || {
        (asked.load(Ordering::SeqCst) > 2).then_some(())
    });
    let began = std::time::Instant::now();
    server.terminate();
    assert_eq!(server.exited().code(), Some(0), "{}", server.log());
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(25), "{took:?}");
    drop(server);
    drop(hanging);
    let server = Server::start(&workspace);
    assert_eq!(server.ended(1)["status"], "succeeded");
    assert_eq!(server.realignments().len(), 1, "the same one, resumed");
}

#[test]
fn what_a_silent_judge_stopped_is_tried_again_by_itself() {
    let workspace = Workspace::tiny(1);
    let (asked, silent) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(true)));
    let is_silent = silent.clone();
    let url = endpoint(move |body| {
        if asked.fetch_add(1, Ordering::SeqCst) >= 2 && is_silent.load(Ordering::SeqCst) {
            return (503, "");
        }
        let question = body["messages"][0]["content"].as_str().unwrap_or_default();
        let magic = question.contains("xyzzy");
        (200, if magic { "yes" } else { "no" })
    });
    workspace.write("policies/judged.yaml", &judged(&url));
    let server = Server::start(&workspace);
    let failed = server.ended(1);
    assert_eq!(failed["status"], "failed", "{failed}");
    let error = failed["error"].as_str().unwrap();
    for part in ["did not answer", "it is tried again"] {
        assert!(error.contains(part), "{error}");
    }
    // Nothing changes but the judge.
    silent.store(false, Ordering::SeqCst);
    let ended = wait("a realignment that succeeds", || {
        let last = server.realignments().into_iter().next()?;
        (last["status"] == "succeeded").then_some(last)
    });
    assert_eq!(ended["triage"]["invert"], 10, "{ended}");
    assert_eq!(server.current(), ended["generation"].as_str().unwrap());
}
