//! All metric names. No other file spells one.
//!
//! Names follow Prometheus' conventions: base units, `_total` on counters, `_ratio` for 0 to 1.

/// Histogram: from receipt of a request to its first generated token.
pub(crate) const TIME_TO_FIRST_TOKEN_SECONDS: &str = "realign_time_to_first_token_seconds";
/// Histogram: between two tokens of one sequence.
pub(crate) const INTER_TOKEN_LATENCY_SECONDS: &str = "realign_inter_token_latency_seconds";
/// Histogram: from receipt of a request to its last byte.
pub(crate) const REQUEST_DURATION_SECONDS: &str = "realign_request_duration_seconds";
/// Counter by `route` and `status`: finished requests.
pub(crate) const REQUESTS_TOTAL: &str = "realign_requests_total";
/// Counter by `reason`: valid requests that were refused.
pub(crate) const REQUESTS_REFUSED_TOTAL: &str = "realign_requests_refused_total";
/// Counter by `listener` and `reason`: waiting connections that were ended to make room.
pub(crate) const CONNECTIONS_EVICTED_TOTAL: &str = "realign_connections_evicted_total";
/// Counter: finished answers that violate the JSON schema that was asked for.
pub(crate) const SCHEMA_INVALID_ANSWERS_TOTAL: &str = "realign_schema_invalid_answers_total";
/// Gauge: sequences in the running batch.
pub(crate) const REQUESTS_RUNNING: &str = "realign_requests_running";
/// Gauge: sequences accepted, not yet in the batch.
pub(crate) const REQUESTS_WAITING: &str = "realign_requests_waiting";
/// Gauge: fraction of KV blocks held by running sequences.
pub(crate) const KV_CACHE_USAGE_RATIO: &str = "realign_kv_cache_usage_ratio";
/// Counter, in tokens: prompt tokens looked up in the prefix cache.
pub(crate) const PREFIX_CACHE_QUERIES_TOTAL: &str = "realign_prefix_cache_queries_total";
/// Counter, in tokens: prompt tokens found in the prefix cache.
pub(crate) const PREFIX_CACHE_HITS_TOTAL: &str = "realign_prefix_cache_hits_total";
/// Counter: sequences preempted in favour of older ones.
pub(crate) const PREEMPTIONS_TOTAL: &str = "realign_preemptions_total";
/// Counter, in tokens: drafted tokens.
pub(crate) const DRAFT_TOKENS_TOTAL: &str = "realign_draft_tokens_total";
/// Counter, in tokens: drafted tokens that were drawn.
pub(crate) const ACCEPTED_DRAFT_TOKENS_TOTAL: &str = "realign_draft_tokens_accepted_total";
/// Counter: sequences and embeddings that failed because a value was NaN or infinite.
pub(crate) const NONFINITE_LOGITS_TOTAL: &str = "realign_nonfinite_logits_total";
/// Counter: prompt tokens of finished requests.
pub(crate) const PROMPT_TOKENS_TOTAL: &str = "realign_prompt_tokens_total";
/// Counter: generated tokens of finished requests.
pub(crate) const GENERATION_TOKENS_TOTAL: &str = "realign_generation_tokens_total";

/// Gauge: 1 if the policy set on disk was accepted when last read.
pub(crate) const POLICY_LAST_RELOAD_SUCCESSFUL: &str = "realign_policy_last_reload_successful";
/// Gauge: when a policy set was last accepted, in Unix seconds.
pub(crate) const POLICY_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS: &str =
    "realign_policy_last_reload_success_timestamp_seconds";
/// Counter by `result` (`ok` or `failed`): attempts to load the policy set.
pub(crate) const POLICY_RELOADS_TOTAL: &str = "realign_policy_reloads_total";
/// Gauge of 1 for each active `policy` and its `revision`.
pub(crate) const POLICY_INFO: &str = "realign_policy_info";

/// Gauge: 1 if the shared store answered when it was last asked.
pub(crate) const STORE_UP: &str = "realign_store_up";
/// Gauge: the epoch that the shared store's `CURRENT` names.
pub(crate) const STORE_EPOCH: &str = "realign_store_epoch";
/// Gauge: the shared store's epoch that this server serves.
pub(crate) const STORE_SERVING_EPOCH: &str = "realign_store_serving_epoch";
/// Gauge: 1 if this server may publish into the shared store.
pub(crate) const STORE_LEASE_HELD: &str = "realign_store_lease_held";
/// Gauge: how far a generation's fingerprint here is from the published one, in nats.
pub(crate) const STORE_FINGERPRINT_DISTANCE: &str = "realign_store_fingerprint_distance";
/// Gauge: 1 if this server refuses what `CURRENT` names because it computes otherwise with it.
pub(crate) const STORE_FINGERPRINT_REFUSED: &str = "realign_store_fingerprint_refused";
/// Gauge, by target: the newest epoch that it answers by.
pub(crate) const FLEET_TARGET_EPOCH: &str = "realign_fleet_target_epoch";
/// Gauge, by stage: 1 for the one that the rollout is in.
pub(crate) const FLEET_ROLLOUT_STAGE: &str = "realign_fleet_rollout_stage";
/// Gauge: the share of the requests that get the generation of a canary.
pub(crate) const FLEET_CANARY_SHARE: &str = "realign_fleet_canary_share";
/// Gauge, by signal: how far the evidence against the generation of a canary has come.
pub(crate) const FLEET_CANARY_EVIDENCE: &str = "realign_fleet_canary_evidence";
/// Gauge: 1 if an operator paused rollouts.
pub(crate) const FLEET_PAUSED: &str = "realign_fleet_paused";
/// Gauge: 1 if what should serve was given up.
pub(crate) const FLEET_REFUSED: &str = "realign_fleet_refused";
/// Counter, by generation and outcome: answers of targets.
pub(crate) const FLEET_ANSWERS_TOTAL: &str = "realign_fleet_answers_total";
/// Histogram, by generation: time to the first byte of an answer.
pub(crate) const FLEET_FIRST_BYTE_SECONDS: &str = "realign_fleet_first_byte_seconds";
/// Counter, by generation and verdict: answers that passed through a gateway and were judged.
pub(crate) const FLEET_COMPLIANCE_ANSWERS_TOTAL: &str = "realign_fleet_compliance_answers_total";
/// Counter, by reason: answers that passed through a gateway and were not judged although they were drawn.
pub(crate) const FLEET_COMPLIANCE_DROPPED_TOTAL: &str = "realign_fleet_compliance_dropped_total";
/// Gauge: for how long this server has failed to serve what the shared store names.
pub(crate) const FLEET_SKEW_SECONDS: &str = "realign_fleet_skew_seconds";

/// Counter by `outcome` and `trigger`: finished realignments.
pub(crate) const REALIGNMENTS_TOTAL: &str = "realign_realignments_total";
/// Gauge by `stage`: 1 for the current stage.
pub(crate) const REALIGNMENT_STAGE: &str = "realign_realignment_stage";
/// Histogram by `stage`: wall time of finished stages.
pub(crate) const REALIGNMENT_STAGE_DURATION_SECONDS: &str =
    "realign_realignment_stage_duration_seconds";
/// Gauge: progress of the running realignment.
pub(crate) const REALIGNMENT_PROGRESS_RATIO: &str = "realign_realignment_progress_ratio";
/// Gauge: rows of preference data that are no pairs, when it was read last.
pub(crate) const PREFERENCE_ROWS_REFUSED: &str = "realign_preference_rows_refused";
/// Gauge: files and folders next to the preference data that are not read.
pub(crate) const PREFERENCE_FILES_NOT_READ: &str = "realign_preference_files_not_read";
/// Gauge by `category`: preference pairs of the last triage.
pub(crate) const TRIAGE_PAIRS: &str = "realign_triage_pairs";
/// Gauge: fraction of preference pairs in conflict with the active policy.
pub(crate) const ALIGNMENT_GAP_RATIO: &str = "realign_alignment_gap_ratio";
/// Gauge by `state`: 1 for whether what serves is aligned, as the exam measured it.
pub(crate) const ALIGNMENT_STATE: &str = "realign_alignment_state";
/// Gauge by `policy`, `rule` and `generation_role`: compliance that the last exam measured.
pub(crate) const POLICY_COMPLIANCE_RATIO: &str = "realign_policy_compliance_ratio";
/// Gauge by `generation_role`: diverted controls of the last exam.
pub(crate) const CONTROL_DIVERTED_RATIO: &str = "realign_control_diverted_ratio";
/// Gauge: how long the current generation has not been measured as aligned to the active policies; 0
/// while it is.
pub(crate) const ALIGNMENT_GAP_OPEN_SECONDS: &str = "realign_alignment_gap_open_seconds";
/// Gauge by `part`: the last training step's losses.
pub(crate) const TRAIN_LOSS: &str = "realign_train_loss";
/// Gauge by `generation_role`: policy agreement that the last gate measured.
pub(crate) const GATE_POLICY_AGREEMENT_RATIO: &str = "realign_gate_policy_agreement_ratio";
/// Gauge by `check`: capability change that the last gate measured, candidate minus current.
pub(crate) const GATE_CAPABILITY_DELTA: &str = "realign_gate_capability_delta";

/// Gauge of 1 for each `generation` that serves or can be rolled back to, with its
/// `policy_revision`.
pub(crate) const GENERATION_INFO: &str = "realign_generation_info";
/// Gauge by `generation_role`: sequences that hold a generation.
pub(crate) const GENERATION_LEASES: &str = "realign_generation_leases";
/// Gauge: 1 if the generation that an operator pinned does not serve.
pub(crate) const PIN_LOST: &str = "realign_pin_lost";
/// Counter by `result` (`ok` or `failed`): attempted swaps.
pub(crate) const SWAPS_TOTAL: &str = "realign_swaps_total";
/// Histogram: from a staged adapter to the completed swap.
pub(crate) const SWAP_DURATION_SECONDS: &str = "realign_swap_duration_seconds";

/// Gauge: size of the adapter directory's generations when it was last looked through.
pub(crate) const ADAPTERS_BYTES: &str = "realign_adapters_bytes";
/// Counter by `kind`: adapters, records and cached results that retention removed.
pub(crate) const COLLECTED_TOTAL: &str = "realign_collected_total";

/// Counter by `verdict`: answers to clients that were judged.
pub(crate) const COMPLIANCE_RESPONSES_TOTAL: &str = "realign_compliance_responses_total";
/// Counter by `policy`, `rule` and `severity`: rules that judged answers violate.
pub(crate) const POLICY_VIOLATIONS_TOTAL: &str = "realign_policy_violations_total";
/// Histogram: from an answer's last byte to its judgement.
pub(crate) const COMPLIANCE_JUDGE_LAG_SECONDS: &str = "realign_compliance_judge_lag_seconds";
/// Counter: answers that were not judged because the queue was full.
pub(crate) const COMPLIANCE_RESPONSES_DROPPED_TOTAL: &str =
    "realign_compliance_responses_dropped_total";

/// Counter: spans that did not reach the trace collector.
pub(crate) const TRACE_SPANS_DROPPED_TOTAL: &str = "realign_trace_spans_dropped_total";
/// Counter by `thread`: panics of threads that the server cannot do without.
pub(crate) const THREAD_PANICS_TOTAL: &str = "realign_thread_panics_total";
/// Gauge of 1 with the program's `version`.
pub(crate) const BUILD_INFO: &str = "realign_build_info";
