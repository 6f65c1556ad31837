use std::sync::mpsc::channel;

use super::*;

const POLICY: &str = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: no-a\n    severity: high\n    violates: { response: { any_phrase: [apple] } }\n";

fn set(text: &str) -> Arc<PolicySet> {
    Arc::new(PolicySet::from_yaml("p.yaml", text).unwrap())
}

fn answer(response: &str) -> Answer {
    Answer {
        request_id: "req_1".into(),
        route: "/v1/chat/completions",
        caller: Some("alice".into()),
        generation: Some("00000000abcd".into()),
        prompt: "secret question".into(),
        response: response.into(),
        sent_at: Instant::now(),
        unix_seconds: 1_700_000_000,
    }
}

fn sampling(queue: usize) -> Sampling {
    Sampling {
        share: 1.0,
        judge_share: 1.0,
        queue,
    }
}

fn telemetry() -> Arc<Telemetry> {
    Arc::new(Telemetry::new().unwrap())
}

fn assert_lines(telemetry: &Telemetry, present: &[&str], absent: &[&str]) {
    let text = telemetry.metrics().render();
    for line in present {
        assert!(
            text.lines().any(|l| l == *line),
            "missing {line:?} in\n{text}"
        );
    }
    for part in absent {
        assert!(!text.contains(part), "unexpected {part:?} in\n{text}");
    }
}

#[test]
fn answers_are_judged_counted_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs/decisions.jsonl");
    let options = DecisionLogOptions {
        max_bytes: 1 << 20,
        kept_files: 1,
        include_texts: false,
    };
    let log = DecisionLog::open(&path, options).unwrap();
    let telemetry = telemetry();
    let set = set(POLICY);
    let policies: Policies = Box::new(move || Some((Arc::clone(&set), Arc::default())));
    let compliance = Compliance::start(
        sampling(8),
        (policies, Box::new(|_, _| {})),
        Some(log),
        Arc::clone(&telemetry),
    )
    .unwrap();
    assert!(compliance.should_judge());
    compliance.offer(answer("an apple"));
    compliance.offer(answer("a pear"));
    compliance.shutdown();
    assert_lines(
        &telemetry,
        &[
            "realign_compliance_responses_total{verdict=\"complies\"} 1",
            "realign_compliance_responses_total{verdict=\"violates\"} 1",
            "realign_policy_violations_total{policy=\"p\",rule=\"no-a\",severity=\"high\"} 1",
            "realign_compliance_judge_lag_seconds_count 2",
            "realign_compliance_responses_dropped_total 0",
        ],
        &["secret", "alice", "req_1"],
    );
    let lines = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["verdict"], "violates");
    assert_eq!(lines[0]["violations"][0]["rule"], "no-a");
    assert_eq!(
        (&lines[0]["key"], &lines[0]["generation"]),
        (&"alice".into(), &"00000000abcd".into())
    );
    assert_eq!(lines[1]["verdict"], "complies");
    assert!(lines[0].get("prompt").is_none() && lines[0].get("response").is_none());
}

#[test]
fn a_dryrun_policy_counts_but_does_not_decide() {
    let telemetry = telemetry();
    let set = set(&POLICY.replace("version: 1", "version: 1\nenforcement: dryrun"));
    let compliance = Compliance::start(
        sampling(8),
        (
            Box::new(move || Some((Arc::clone(&set), Arc::default()))),
            Box::new(|_, _| {}),
        ),
        None,
        Arc::clone(&telemetry),
    )
    .unwrap();
    compliance.offer(answer("an apple"));
    compliance.shutdown();
    assert_lines(
        &telemetry,
        &[
            "realign_compliance_responses_total{verdict=\"complies\"} 1",
            "realign_policy_violations_total{policy=\"p\",rule=\"no-a\",severity=\"high\"} 1",
        ],
        &[],
    );
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let telemetry = telemetry();
    // The idle judge blocks while it first reads the policies, until it is released.
    let (release, held) = channel::<()>();
    let empty = Arc::new(PolicySet::default());
    let policies: Policies = Box::new(move || {
        let _released = held.recv();
        Some((Arc::clone(&empty), Arc::default()))
    });
    let compliance = Compliance::start(
        sampling(2),
        (policies, Box::new(|_, _| {})),
        None,
        Arc::clone(&telemetry),
    )
    .unwrap();
    std::thread::sleep(IDLE_POLL_INTERVAL * 2);
    for _ in 0..5 {
        compliance.offer(answer("x"));
    }
    let mut large = answer("");
    large.response = "x".repeat(MAX_WAITING_BYTES);
    compliance.offer(large);
    assert_lines(
        &telemetry,
        &["realign_compliance_responses_dropped_total 4"],
        &[],
    );
    drop(release);
    compliance.shutdown();
    assert_lines(
        &telemetry,
        &["realign_compliance_responses_total{verdict=\"complies\"} 2"],
        &[],
    );
    assert_eq!(compliance.waiting_bytes.load(Ordering::Acquire), 0);
}

#[test]
fn rules_that_are_gone_leave_no_series() {
    let telemetry = telemetry();
    let metrics = telemetry.metrics();
    let rule = |policy: &str, rule: &str| RuleLabels {
        policy: policy.into(),
        rule: rule.into(),
        severity: "high",
    };
    metrics.set_rules([rule("p", "a"), rule("p", "b")].into());
    assert_lines(
        &telemetry,
        &["realign_policy_violations_total{policy=\"p\",rule=\"b\",severity=\"high\"} 0"],
        &[],
    );
    metrics.set_rules([rule("p", "a")].into());
    let late = Judged {
        complies: false,
        violations: vec![rule("p", "b"), rule("p", "a")],
        lag: Duration::ZERO,
    };
    telemetry.emit(Event::ComplianceJudged(late));
    assert_lines(
        &telemetry,
        &["realign_policy_violations_total{policy=\"p\",rule=\"a\",severity=\"high\"} 1"],
        &["rule=\"b\""],
    );
}

#[test]
fn the_log_is_rotated_by_size_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    let options = DecisionLogOptions {
        max_bytes: 700,
        kept_files: 2,
        include_texts: true,
    };
    let mut log = DecisionLog::open(&path, options).unwrap();
    for n in 0..20 {
        log.write(&answer(&format!("answer {n}")), &[], true, "rev");
    }
    log.flush();
    drop(log);
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["d.jsonl", "d.jsonl.1", "d.jsonl.2"]);
    for name in &names {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            text.len() <= 700 && text.ends_with('\n'),
            "{name}: {}",
            text.len()
        );
        assert!(text.contains("secret question"));
    }
    let newest = std::fs::read_to_string(&path).unwrap();
    assert!(newest.contains("answer 19"));
    // The existing file is kept and its size counted after a restart.
    let mut log = DecisionLog::open(&path, options).unwrap();
    assert_eq!(log.written, newest.len() as u64);
    log.write(&answer("after"), &[], true, "rev");
}
