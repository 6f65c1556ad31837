//! Schedules of seeds, and those that once found something.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rayon::prelude::*;

use super::super::Event;
use super::check;
use super::faults::Fault;
use super::outside::{Outside, Trouble};
use super::policies::Content;
use super::process::{Process, base};
use super::schedule::{End, Expected, Op, Step};
use super::simulate;
use crate::api::AdminPort;
use crate::config::{Config, OnMissing, RawConfig};
use realign_engine::adapter::generation::GenerationId;

/// Schedules that run with the other tests.
const FEW: u64 = 1000;
/// Schedules between two lines of progress.
const PROGRESS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

#[test]
fn schedules_of_faults_leave_nothing_in_doubt() {
    if let Some(seed) = number("REALIGN_SIMULATION_SEED") {
        let trace = simulate(seed).unwrap_or_else(|why| panic!("{why}"));
        return eprintln!("trace {trace:016x}");
    }
    let count = number("REALIGN_SIMULATIONS").unwrap_or(FEW);
    let (done, traces) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = |seed: u64| {
        let result = simulate(seed);
        // A sum, so that it is the same in whichever order schedules end.
        traces.fetch_add(*result.as_ref().unwrap_or(&0), Ordering::Relaxed);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(PROGRESS) {
            eprintln!("{done} of {count} schedules");
        }
        result.err()
    };
    if let Some(why) = (0..count).into_par_iter().find_map_first(run) {
        panic!("{why}");
    }
    eprintln!("{count} schedules, traces {:016x}", traces.into_inner());
}

fn holds(ops: &[(Op, Option<Fault>)]) {
    // What runs from the start on is for no policies.
    let first = (Op::End(End::NoConflict), None);
    let steps = [first].into_iter().chain(ops.iter().copied());
    let steps = steps.map(|(op, fault)| Step { op, fault });
    let steps: Vec<Step> = steps.collect();
    check(&steps).unwrap_or_else(|(why, at)| panic!("{why}, after step {at}"));
}

fn well(ops: &[Op]) {
    let ops: Vec<_> = ops.iter().map(|op| (*op, None)).collect();
    holds(&ops);
}

const POLICY: Op = Op::Write("one", Content::Policy("xyzzy"));
const OTHER: Op = Op::Write("one", Content::Policy("plugh"));
const IMPORTED: Op = Op::Activate(0, Expected::Anything);

#[test]
fn unpinning_while_a_realignment_runs_starts_no_second_one() {
    well(&[POLICY, Op::Reload, IMPORTED, Op::Unpin, Op::Deliver]);
    // Its swap was refused before the pin was released.
    let refused = [
        IMPORTED,
        Op::Swap,
        Op::Unpin,
        Op::Deliver,
        Op::End(End::Failed),
    ];
    well(&[&[POLICY, Op::Reload][..], &refused].concat());
}

#[test]
fn an_end_that_cannot_be_written_is_not_resumed() {
    let full = |on| Op::Set(Trouble::DiskFull, on);
    well(&[
        POLICY,
        Op::Reload,
        full(true),
        Op::End(End::Failed),
        full(false),
        Op::Begin,
        Op::Tick(10),
        Op::Swap,
        Op::End(End::Failed),
    ]);
}

#[test]
fn a_row_whose_process_was_killed_is_closed_while_another_generation_is_pinned() {
    well(&[POLICY, Op::Reload, IMPORTED, Op::Kill, Op::Tick(10)]);
}

#[test]
fn an_act_whose_pin_cannot_be_stored_is_refused() {
    // History, CURRENT, pin.
    let fault = |count| Fault::Fail {
        at: 2,
        count,
        late: false,
    };
    for count in 1..4 {
        holds(&[
            (POLICY, None),
            (Op::Reload, None),
            (IMPORTED, Some(fault(count))),
            (Op::Tick(10), None),
            (Op::Kill, None),
            (Op::Swap, None),
        ]);
    }
}

#[test]
fn a_change_that_cannot_be_taken_back_is_put_right_on_the_next_tick() {
    for (at, late) in [(0, false), (1, false), (1, true), (2, false)] {
        let fault = Fault::Fail { at, count: 3, late };
        holds(&[(IMPORTED, Some(fault)), (Op::Tick(10), None)]);
    }
}

#[test]
fn other_content_rests_although_a_retry_is_due() {
    well(&[
        Op::Set(Trouble::JudgeDown, true),
        Op::Write("one", Content::Judged("xyzzy")),
        Op::Reload,
        OTHER,
        Op::Tick(10_000),
        // It goes again before it rested: what was refused before is tried again.
        Op::Write("one", Content::Judged("xyzzy")),
        Op::Set(Trouble::JudgeDown, false),
        Op::Tick(400),
    ]);
}

#[test]
fn policies_that_come_back_after_a_clear_are_active() {
    well(&[
        POLICY,
        Op::Reload,
        Op::Remove("one"),
        Op::Clear,
        POLICY,
        Op::Tick(10),
    ]);
}

#[test]
fn policies_are_not_cleared_while_they_cannot_be_read() {
    well(&[
        POLICY,
        Op::Reload,
        Op::Set(Trouble::ReadError, true),
        Op::Clear,
    ]);
}

#[test]
fn nothing_is_trained_for_policies_that_are_not_loaded_yet() {
    well(&[
        Op::Write("one", Content::Judged("xyzzy")),
        Op::Reload,
        IMPORTED,
        Op::Set(Trouble::JudgeDown, true),
        Op::Kill,
        Op::Begin,
        Op::Unpin,
        Op::Deliver,
        Op::Begin,
    ]);
}

#[test]
fn what_was_unpinned_just_before_a_kill_is_replaced() {
    let trained = [POLICY, Op::Reload, Op::Swap, Op::End(End::Failed)];
    well(&[&trained[..], &[IMPORTED, Op::Unpin, Op::Kill]].concat());
}

#[test]
fn data_that_goes_back_after_a_realignment_read_it_is_a_change() {
    well(&[
        POLICY,
        Op::DataChanges,
        // Reads the data before the watch has seen that it changed.
        Op::Reload,
        Op::Swap,
        Op::End(End::Failed),
        // Three versions in all: this is what it was at the start.
        Op::DataChanges,
        Op::DataChanges,
        Op::Tick(7_000),
        Op::Tick(7_000),
    ]);
}

#[test]
fn data_of_a_realignment_that_could_not_begin_still_starts_one() {
    let full = |on| Op::Set(Trouble::DiskFull, on);
    well(&[
        POLICY,
        Op::Reload,
        Op::Swap,
        Op::End(End::Failed),
        full(true),
        Op::DataChanges,
        Op::Begin,
        full(false),
        Op::Tick(7_000),
    ]);
}

#[test]
fn what_failed_for_a_reason_that_may_pass_is_tried_again() {
    well(&[POLICY, Op::Reload, Op::End(End::Hindered), Op::Tick(7_000)]);
    // CURRENT cannot be written.
    let full = Fault::Fail {
        at: 1,
        count: 1,
        late: false,
    };
    holds(&[
        (POLICY, None),
        (Op::Reload, None),
        (Op::Swap, Some(full)),
        (Op::End(End::Failed), None),
        (Op::Kill, None),
    ]);
}

#[test]
fn what_is_pinned_and_cannot_be_loaded_stays_pinned() {
    well(&[IMPORTED, Op::Damage, Op::Kill, Op::Tick(10)]);
    well(&[
        POLICY,
        Op::Reload,
        IMPORTED,
        Op::Damage,
        Op::Kill,
        Op::Begin,
    ]);
    let back = [Op::Repair, Op::Restart, Op::Tick(10), Op::Unpin];
    well(
        &[
            &[POLICY, Op::Reload, IMPORTED, Op::Damage, Op::Kill][..],
            &back,
        ]
        .concat(),
    );

    let (id, hash) = base();
    let outside = Outside::new(id, hash);
    let process = Process::start(&outside);
    AdminPort::activate(&process.control, "aaaaaaaaaaaa", None).unwrap();
    assert!(!process.control.has_lost_pin());
    drop(process);
    outside.damage("aaaaaaaaaaaa", true);
    for _ in 0..2 {
        let mut process = Process::start(&outside);
        assert_eq!(process.serving(), outside.base.0);
        assert_eq!(process.pinned().as_deref(), Some("aaaaaaaaaaaa"));
        let reasons = process.control.alignment().reasons.join("; ");
        for part in [
            "aaaaaaaaaaaa is pinned by an operator and does not serve",
            "adapters unpin",
        ] {
            assert!(reasons.contains(part), "{reasons}");
        }
        assert!(process.control.has_lost_pin());
        let error = process.worker.start_on_request().unwrap_err();
        assert!(error.to_string().contains("aaaaaaaaaaaa"), "{error}");
    }
    outside.damage("", false);
    let process = Process::start(&outside);
    assert_eq!(process.serving(), "aaaaaaaaaaaa");
    assert_eq!(process.pinned().as_deref(), Some("aaaaaaaaaaaa"));
    assert!(!process.control.has_lost_pin());
}

#[test]
fn an_activation_that_fails_beside_a_lost_pin_leaves_it() {
    for at in 0..8 {
        let late = Fault::Fail {
            at,
            count: 1,
            late: true,
        };
        holds(&[
            (IMPORTED, None),
            (Op::Damage, None),
            (Op::Kill, None),
            (Op::Activate(2, Expected::Anything), Some(late)),
            (Op::Kill, None),
            (Op::Tick(10), None),
        ]);
    }
}

#[test]
fn a_change_to_what_serves_is_no_swap() {
    let (_outside, process) = process();
    for swaps in [1.0, 1.0] {
        AdminPort::activate(&process.control, "aaaaaaaaaaaa", None).unwrap();
        let text = process.context().telemetry.metrics().render();
        let line = text
            .lines()
            .find(|l| l.starts_with("realign_swaps_total{result=\"ok\"}"));
        assert_eq!(line.unwrap().rsplit(' ').next().unwrap().parse(), Ok(swaps));
    }
}

fn process() -> (std::sync::Arc<Outside>, Process) {
    let (base, base_hash) = base();
    let outside = Outside::new(base, base_hash);
    let process = Process::start(&outside);
    (outside, process)
}

#[test]
fn a_storm_of_reloads_is_one_reload() {
    let (_outside, mut process) = process();
    process.deliver();
    for _ in 0..2 {
        (0..1000).for_each(|_| process.control.request_reload());
        assert_eq!(process.deliver(), 1);
    }
}

#[test]
fn an_exam_that_came_to_nothing_is_sat_again() {
    let (outside, mut process) = process();
    outside.end_job();
    process.worker.running = None;
    process.worker.examine();
    let sat = |outside: &Outside, process: &mut Process, seconds: u64| {
        let before = outside.exams();
        outside.pass(Duration::from_secs(seconds));
        process.worker.reconcile(outside.now());
        outside.exams() - before
    };
    let exams = [0, 29, 1, 59, 1, 119, 1].map(|s| sat(&outside, &mut process, s));
    assert_eq!(exams, [0, 0, 1, 0, 1, 0, 1], "after 30 s, 60 s, 120 s");
}

#[test]
fn an_exam_that_was_put_off_follows_the_one_that_is_sat() {
    let (outside, mut process) = process();
    outside.end_job();
    process.worker.running = None;
    outside.sit_exams();
    let before = outside.exams();
    // The policies change while an exam is sat: the next one is for them.
    for _ in 0..3 {
        process.worker.examine();
    }
    assert_eq!(outside.exams() - before, 1);
    process.worker.handle(Event::Examined);
    process.worker.handle(Event::Examined);
    assert_eq!(outside.exams() - before, 2);
}

#[test]
fn where_it_is_not_wanted_the_base_stands_in_for_nothing() {
    let mut config = Config::resolve(RawConfig::default()).unwrap();
    config.on_missing = OnMissing::Refuse;
    let config = std::sync::Arc::new(config);
    let (id, hash) = base();
    let outside = Outside::new(id, hash);
    let withheld = |process: &Process| {
        let why = process.context().registry.withheld();
        why.map(|why| why.to_string()).unwrap_or_default()
    };
    let serve = |process: &Process| {
        AdminPort::activate(&process.control, "aaaaaaaaaaaa", None).unwrap();
        assert_eq!(withheld(process), "");
    };
    let mut process = Process::start_with(&outside, config.clone());
    serve(&process);
    // It computes no numbers, and only the base is left.
    let broken = GenerationId("aaaaaaaaaaaa".into());
    process.worker.handle(Event::Unhealthy(broken));
    assert_eq!(process.serving(), outside.base.0);
    assert!(withheld(&process).contains("taken out of service"));
    serve(&process);
    drop(process);
    outside.lose_current();
    let process = Process::start_with(&outside, config);
    assert_eq!(process.serving(), outside.base.0);
    assert!(withheld(&process).contains("there is no CURRENT"));
    serve(&process);
}
