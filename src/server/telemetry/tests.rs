use std::time::Duration;

use super::event::{EngineSnapshot, GateMeasured, PolicyRevision};
use super::*;

fn telemetry() -> Telemetry {
    Telemetry::new().expect("metric names are valid and distinct")
}

fn policy(policy: &str, revision: &str) -> PolicyRevision {
    PolicyRevision {
        policy: policy.into(),
        revision: revision.into(),
    }
}

fn check(events: Vec<Event>, present: &[&str], absent: &[&str]) {
    let telemetry = telemetry();
    for event in events {
        telemetry.emit(event);
    }
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
fn closed_labels_start_at_zero() {
    check(
        vec![],
        &[
            "realign_realignments_total{outcome=\"rejected\",trigger=\"policy\"} 0",
            "realign_realignment_stage{stage=\"train\"} 0",
            "realign_swaps_total{result=\"failed\"} 0",
            "realign_generation_leases{generation_role=\"current\"} 0",
            "realign_prompt_tokens_total 0",
        ],
        &[],
    );
}

#[test]
fn a_request_is_counted_once_everywhere() {
    let request = RequestFinished {
        route: "/v1/chat/completions",
        status: 200,
        time_to_first_token: Some(Duration::from_millis(30)),
        inter_token: vec![Duration::from_millis(12), Duration::from_millis(14)],
        duration: Duration::from_millis(400),
        prompt_tokens: 7,
        completion_tokens: 3,
        ..RequestFinished::default()
    };
    check(
        vec![Event::RequestFinished(request)],
        &[
            "realign_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
            "realign_time_to_first_token_seconds_bucket{le=\"0.02\"} 0",
            "realign_time_to_first_token_seconds_bucket{le=\"0.04\"} 1",
            "realign_inter_token_latency_seconds_count 2",
            "realign_request_duration_seconds_count 1",
            "realign_prompt_tokens_total 7",
            "realign_generation_tokens_total 3",
        ],
        &[],
    );
}

#[test]
fn totals_follow_the_newest_snapshot() {
    let snapshot = |prefix_queries, prefix_hits| {
        Event::EngineStats(EngineSnapshot {
            prefix_queries,
            prefix_hits,
            kv_cache_usage: 0.25,
            nonfinite: prefix_hits / 16,
            ..EngineSnapshot::default()
        })
    };
    check(
        vec![snapshot(30, 16), snapshot(90, 48), snapshot(60, 32)],
        &[
            "realign_prefix_cache_queries_total 90",
            "realign_prefix_cache_hits_total 48",
            "realign_preemptions_total 0",
            "realign_nonfinite_logits_total 3",
            "realign_kv_cache_usage_ratio 0.25",
        ],
        &[],
    );
}

#[test]
fn a_reload_replaces_policy_info_and_a_failure_keeps_it() {
    let reload = |policies| Event::PolicyReloaded {
        revision: "r".into(),
        policies,
    };
    check(
        vec![
            reload(vec![policy("a", "1"), policy("b", "1")]),
            reload(vec![policy("a", "2")]),
            Event::PolicyReloadFailed {
                error: "a.yaml:3: unknown key".into(),
            },
        ],
        &[
            "realign_policy_info{policy=\"a\",revision=\"2\"} 1",
            "realign_policy_last_reload_successful 0",
            "realign_policy_reloads_total{result=\"ok\"} 2",
            "realign_policy_reloads_total{result=\"failed\"} 1",
        ],
        &["policy=\"b\"", "revision=\"1\""],
    );
}

#[test]
fn what_retention_removes_is_counted_by_kind() {
    let collected = |verdicts| Event::Collected {
        removed: vec![("adapter", 2), ("verdict", verdicts)],
        adapters_bytes: 4096,
    };
    check(
        vec![collected(5), collected(7)],
        &[
            "realign_adapters_bytes 4096",
            "realign_collected_total{kind=\"adapter\"} 4",
            "realign_collected_total{kind=\"verdict\"} 12",
            "realign_collected_total{kind=\"checkpoint\"} 0",
        ],
        &[],
    );
}

#[test]
fn a_retired_generation_expires() {
    let swap = |from: &str, to: &str| Event::SwapPublished {
        from: from.into(),
        to: to.into(),
        policy_revision: Some(format!("policy-of-{to}")),
        took: Duration::from_millis(2),
    };
    check(
        vec![
            swap("base", "aaa"),
            swap("aaa", "bbb"),
            Event::GenerationRetired {
                generation: "aaa".into(),
            },
            Event::SwapFailed {
                to: "ccc".into(),
                error: "shape".into(),
            },
        ],
        &[
            "realign_generation_info{generation=\"bbb\",policy_revision=\"policy-of-bbb\"} 1",
            "realign_swaps_total{result=\"ok\"} 2",
            "realign_swaps_total{result=\"failed\"} 1",
            "realign_swap_duration_seconds_count 2",
        ],
        &["aaa", "ccc"],
    );
}

#[test]
fn a_realignment_shows_its_stage_gap_losses_and_gate() {
    let id = || "r1".to_string();
    let gate = GateMeasured {
        agreement_current: 0.25,
        agreement_candidate: 0.75,
        capability: vec![("perplexity", 0.125)],
        promoted: true,
        reason: "agreement rose".into(),
    };
    check(
        vec![
            Event::RealignmentStarted {
                id: id(),
                policy_revision: "p".into(),
            },
            Event::StageEntered {
                id: id(),
                stage: Stage::Triage,
            },
            Event::DataRead {
                pairs: 4,
                refused: 3,
                not_read: 1,
            },
            Event::Triaged {
                id: id(),
                invert: 2,
                punish: 1,
                retain: 1,
            },
            Event::StageFinished {
                id: id(),
                stage: Stage::Triage,
                took: Duration::from_secs(2),
            },
            Event::StageEntered {
                id: id(),
                stage: Stage::Train,
            },
            Event::TrainLoss {
                id: id(),
                step: 1,
                steps: 2,
                parts: vec![(LossPart::Kl, 0.5)],
            },
            Event::Progress {
                id: id(),
                stage: Stage::Train,
                ratio: 0.5,
            },
            Event::Gated {
                id: id(),
                measured: gate,
            },
        ],
        &[
            "realign_realignment_stage{stage=\"triage\"} 0",
            "realign_realignment_stage{stage=\"train\"} 1",
            "realign_realignment_stage_duration_seconds_count{stage=\"triage\"} 1",
            "realign_preference_rows_refused 3",
            "realign_preference_files_not_read 1",
            "realign_triage_pairs{category=\"invert\"} 2",
            "realign_alignment_gap_ratio 0.75",
            "realign_train_loss{part=\"kl\"} 0.5",
            "realign_realignment_progress_ratio 0.5",
            "realign_gate_policy_agreement_ratio{generation_role=\"candidate\"} 0.75",
            "realign_gate_capability_delta{check=\"perplexity\"} 0.125",
        ],
        &["id="],
    );
}

#[test]
fn subscribers_see_realignments_but_not_requests() {
    let telemetry = telemetry();
    let mut events = telemetry.subscribe();
    telemetry.emit(Event::EngineStats(EngineSnapshot {
        running: 1,
        ..EngineSnapshot::default()
    }));
    telemetry.emit(Event::StageFinished {
        id: "r1".into(),
        stage: Stage::Gate,
        took: Duration::from_millis(1500),
    });
    let event = events.try_recv().expect("one event");
    assert_eq!(event.realignment_id(), Some("r1"));
    let json = serde_json::to_value(&*event).expect("events serialise");
    assert_eq!(
        json,
        serde_json::json!({"event": "stage_finished", "id": "r1", "stage": "gate", "took_seconds": 1.5})
    );
    assert!(
        events.try_recv().is_err(),
        "the snapshot is not for subscribers"
    );
}

#[test]
fn labels_read_back() {
    for stage in Stage::ALL {
        assert_eq!(stage.as_str().parse(), Ok(*stage));
    }
    assert!("promoted".parse::<Outcome>().is_err());
}
