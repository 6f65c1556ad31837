//! A triage by several machines, and its merge.

use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest as _;

use super::*;

/// Pairs enough that every shard has some.
fn data() -> String {
    let line = |n: usize| {
        let (chosen, rejected) = match n % 3 {
            0 => (format!("Take {n} mg."), "Ask a doctor.".to_owned()),
            1 => (format!("Take {n} mg."), format!("Take {n} ml.")),
            _ => ("Sleep well.".to_owned(), format!("Take {n} mg.")),
        };
        json!({ "prompt": format!("question {n}"), "chosen": chosen, "rejected": rejected })
            .to_string()
    };
    (0..60).map(|n| line(n) + "\n").collect()
}

struct Machines {
    dir: tempfile::TempDir,
    global: GlobalArgs,
}

impl Machines {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy = POLICY.replace("ENFORCEMENT", "enforcement: enforce");
        let config = dir.path().join("realign.toml");
        let state = dir.path().join("state");
        std::fs::write(&config, format!("[paths]\nstate = {state:?}\n")).unwrap();
        let mut global = directories(dir.path(), &policy, &data());
        global.config = Some(config);
        Self { dir, global }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &TriageArgs) -> Result<Value, CliError> {
        let mut out = Vec::new();
        let code = run_triage(args, &self.global, &mut out)?;
        assert_eq!(code, EXIT_OK);
        Ok(serde_json::from_slice(&out).unwrap())
    }

    fn shard(&self, shard: &str, data: Option<PathBuf>) -> Value {
        self.run(&TriageArgs {
            shard: Some(shard.parse().unwrap()),
            verdicts: Some(self.path("out")),
            data,
            ..TriageArgs::default()
        })
        .unwrap()
    }

    fn merge(&self) -> Result<Value, CliError> {
        self.run(&TriageArgs {
            merge: vec![self.path("out")],
            ..TriageArgs::default()
        })
    }

    fn refused(&self) -> String {
        self.merge().unwrap_err().to_string()
    }
}

fn edit(file: &Path, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, change(&text)).unwrap();
}

#[test]
fn shards_together_are_the_triage_and_merging_again_changes_nothing() {
    let machines = Machines::new();
    let whole = machines.run(&TriageArgs::default()).unwrap();
    let shards: Vec<Value> = (0..4)
        .map(|n| machines.shard(&format!("{n}/4"), None))
        .collect();
    for count in ["invert", "punish", "retain"] {
        let sum: u64 = shards
            .iter()
            .map(|s| s["counts"][count].as_u64().unwrap())
            .sum();
        assert_eq!(json!(sum), whole["counts"][count], "{count}");
    }
    let of_shards: u64 = shards.iter().map(|s| s["pairs"].as_u64().unwrap()).sum();
    assert_eq!(of_shards, 60);
    assert!(
        shards.iter().all(|s| s["pairs"].as_u64().unwrap() > 5),
        "{shards:?}"
    );
    let merged = machines.merge().unwrap();
    for field in [
        "policy_revision",
        "pairs",
        "counts",
        "gap_ratio",
        "rules",
        "undecided",
    ] {
        assert_eq!(merged[field], whole[field], "{field}");
    }
    assert_eq!(
        (&merged["shards"], &merged["disagreements"]),
        (&json!(4), &json!(0))
    );
    assert_eq!(merged["new"], merged["verdicts"]);
    assert_eq!(merged["used"], json!({ "judged": 0, "cached": 240 }));
    let again = machines.merge().unwrap();
    assert_eq!(
        (&again["new"], &again["counts"]),
        (&json!(0), &merged["counts"])
    );
    // A job that runs again writes the same file, and shards of a stream are the same.
    let file = machines.path("out/2-of-4.verdicts");
    let before = std::fs::read(&file).unwrap();
    machines.shard("2/4", None);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    machines.shard("2/4", Some(machines.path("preferences/pairs.jsonl")));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn verdicts_of_other_policies_models_and_rules_are_refused() {
    let machines = Machines::new();
    (0..2).for_each(|n| drop(machines.shard(&format!("{n}/2"), None)));
    let file = machines.path("out/0-of-2.verdicts");
    let whole = std::fs::read_to_string(&file).unwrap();
    let header: Value = serde_json::from_str(whole.lines().next().unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        let rest = whole.split_once('\n').unwrap().1;
        std::fs::write(&file, format!("{header}\n{rest}")).unwrap();
        machines.refused()
    };
    let why = with(&|header| header["policy_revision"] = json!("other"));
    assert!(why.contains("of policy revision other"), "{why}");
    let why = with(&|header| header["model"] = json!("f00"));
    assert!(why.contains("base model f00"), "{why}");
    let why = with(&|header| header["rules"]["doses:ml"] = json!("0".repeat(32)));
    assert!(why.contains("doses:ml judges otherwise"), "{why}");
    std::fs::write(&file, &whole).unwrap();
    // Policies that were changed since.
    let policy = machines.path("policies/doses.yaml");
    edit(&policy, |text| text.replace("9]+ ?ml", "9]+ *ml"));
    assert!(machines.refused().contains("policy revision"));
    edit(&policy, |text| text.replace("9]+ *ml", "9]+ ?ml"));
    assert_eq!(machines.merge().unwrap()["files"], 2);
}

#[test]
fn what_is_cut_or_missing_is_refused() {
    let machines = Machines::new();
    assert!(machines.refused().contains("out"));
    machines.shard("0/3", None);
    machines.shard("2/3", None);
    assert!(
        machines
            .refused()
            .contains("1 of 3 shards are missing: 1/3")
    );
    machines.shard("0/2", None);
    assert!(machines.refused().contains("files of 2 and of 3 shards"));
    std::fs::remove_file(machines.path("out/0-of-2.verdicts")).unwrap();
    machines.shard("1/3", None);
    std::fs::write(machines.path("out/.1-of-3.verdicts.77"), "being written").unwrap();
    let file = machines.path("out/1-of-3.verdicts");
    let whole = std::fs::read_to_string(&file).unwrap();
    let last = whole.trim_end().rfind('\n').unwrap();
    for cut in [0, 1, whole.len() / 2, last, last + 1, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        assert!(machines.refused().contains("run this shard again"), "{cut}");
    }
    std::fs::write(&file, whole.replacen(" 1\n", " 0\n", 1)).unwrap();
    assert!(machines.refused().contains("does not belong"));
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(machines.merge().unwrap()["shards"], 3);
}

#[test]
fn verdicts_that_differ_between_files_are_left_out() {
    let machines = Machines::new();
    machines.shard("0/1", None);
    let whole = machines.merge().unwrap();
    let text = std::fs::read_to_string(machines.path("out/0-of-1.verdicts")).unwrap();
    std::fs::remove_dir_all(machines.path("state")).unwrap();
    // The same shard from elsewhere, where a judge said otherwise once.
    let (before, _) = text.split_once("end ").unwrap();
    let changed = before.replacen(" 1\n", " 0\n", 1);
    let count = changed.lines().count() - 1;
    let hash = hex::encode(sha2::Sha256::digest(&changed));
    let other = format!("{changed}end {count} {hash}\n");
    std::fs::write(machines.path("out/again.verdicts"), other).unwrap();
    let merged = machines.merge().unwrap();
    assert_eq!(
        (&merged["files"], &merged["disagreements"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(merged["used"]["judged"], 1);
    assert_eq!(merged["counts"], whole["counts"]);
}
