//! Pairs that the server makes itself.

use super::server::Server;
use super::workspace::Workspace;

/// A rule that no answer of a random model keeps to, with forty prompts.
fn policy() -> String {
    let prompts: Vec<String> = (0..40).map(|i| format!("pills number {i}?")).collect();
    format!(
        "apiVersion: realign/v1\nid: gathers\nversion: \"1\"\nprompts: [{}]\nrules:\n  - id: says-zzzz\n    \
         description: Say zzzz.\n    when: {{ prompt: {{ any_phrase: [pills] }} }}\n    \
         violates: {{ not: {{ response: {{ any_phrase: [zzzz] }} }} }}\n",
        prompts.join(", ")
    )
}

#[test]
fn without_data_the_model_is_asked_and_what_is_missing_is_said() {
    let workspace = Workspace::tiny(1);
    workspace.remove("preferences/pairs.jsonl");
    let config = workspace.read("realign.toml");
    let config = config.replace(
        "[gather]\nenabled = false",
        "[gather]\nsamples_per_prompt = 2",
    );
    workspace.write("realign.toml", &config);
    // A policy that is not enforced asks for nothing, and needs no data.
    let dry = policy() + "enforcement: dryrun\n";
    workspace.write("policies/words.yaml", &dry);
    let server = Server::start(&workspace);
    let ended = server.ended(1);
    assert_eq!(ended["status"], "no_conflict", "{ended}");
    let base = server.current();

    workspace.write("policies/words.yaml", &policy());
    let ended = server.ended(2);
    assert_eq!(ended["status"], "failed", "{ended}");
    let error = ended["error"].as_str().unwrap_or_default();
    for part in [
        "no preference pairs",
        "gathers:says-zzzz",
        "no complete answer complied",
    ] {
        assert!(error.contains(part), "{ended}");
    }
    let gathered = &ended["triage"]["gathered"];
    assert_eq!(gathered["generation"], base.as_str(), "{ended}");
    // An exam keeps its half of the prompts.
    let prompts = gathered["prompts"]["policy"].as_u64().unwrap_or_default();
    assert!((5..35).contains(&prompts), "{ended}");
    assert!(
        gathered["answers"]["violating"].as_u64() > Some(prompts),
        "{ended}"
    );
    assert_eq!(server.current(), base);
}
