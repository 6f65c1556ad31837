//! `realign preferences check`: what is read of preference data, and how.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::workspace::Workspace;

fn check(workspace: &Workspace, args: &[&str]) -> (i32, String) {
    let Output { status, stdout, .. } = Command::new(env!("CARGO_BIN_EXE_realign"))
        .args(["preferences", "check"])
        .args(args)
        .current_dir(workspace.path("."))
        .env("REALIGN_LOG", "error")
        .output()
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap())
}

#[test]
fn what_is_read_is_said_and_what_is_not_is_named() {
    let workspace = Workspace::tiny(1);
    workspace.remove("preferences/pairs.jsonl");
    let calls = json!({
        "system": "Be exact.",
        "prompt": [
            {"role": "user", "content": "Is it saved?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "find", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "found"},
        ],
        "tools": [{"type": "function", "function": {"name": "find"}}],
        "chosen": "It is.",
        "rejected": [{"role": "assistant", "tool_calls": [
            {"type": "function", "function": {"name": "find", "arguments": {"x": 2}}}]}],
        "source": "made up",
    });
    workspace.write("preferences/a.jsonl", &format!("{calls}\n"));
    workspace.write(
        "preferences/b.csv",
        "prompt,chosen,rejected\n\"Human: One\nAssistant:\",A,B\n",
    );
    let (code, text) = check(&workspace, &[]);
    assert_eq!(code, 0, "{text}");
    for part in [
        "a.jsonl: JSON lines, 1 rows, 1 pairs (1 as TRL)",
        "columns not read: source",
        "b.csv: table, 1 rows, 1 pairs (1 as transcript)",
        // The sample, with the control tokens of the template.
        "<|im_start|>system\n",
        "Be exact.",
        "<tool_call>\n{\"name\":\"find\",\"arguments\":{\"x\":1}}\n</tool_call><|im_end|>",
        "<tool_response>\nfound\n</tool_response>",
        "It is.<|im_end|>",
        "{\"name\":\"find\",\"arguments\":{\"x\":2}}",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }

    workspace.write(
        "preferences/c.json",
        "[\n{\"prompt\":\"p\",\"completion\":\"a\",\"label\":true}\n]",
    );
    workspace.write("preferences/d.xlsx", "");
    let (code, text) = check(&workspace, &["--no-model", "--json"]);
    assert_eq!(code, 1, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let refused = &report["files"][2]["refused"][0];
    assert_eq!(refused["source"]["line"], 2, "{report}");
    assert!(refused["reason"].as_str().unwrap().contains("KTO"));
    assert!(report["not_read"][0].as_str().unwrap().ends_with("d.xlsx"));

    let (code, _) = check(&workspace, &["--no-model", "--data", "preferences/b.csv"]);
    assert_eq!(code, 0);
}
