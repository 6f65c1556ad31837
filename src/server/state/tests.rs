use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::telemetry::{Outcome, Stage};

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/realign.db");
    (dir, path)
}

#[test]
fn an_interrupted_realignment_is_found_again() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    db.begin_realignment("r1", "inputs", "policy", 10).unwrap();
    db.begin_realignment("r2", "other", "policy", 11).unwrap();
    db.advance_realignment("r1", Stage::Train, 0.5, 12).unwrap();
    db.put_report("r1", Report::Triage, &json!({"invert": 3}))
        .unwrap();
    db.finish_realignment("r2", Outcome::Rejected, (Some("gen"), Some("gate")), 13)
        .unwrap();
    drop(db);
    let db = StateDb::open(&path).unwrap();
    let unfinished = db.unfinished_realignments().unwrap();
    assert_eq!(unfinished.len(), 1);
    let row = &unfinished[0];
    assert_eq!(
        (row.id.as_str(), row.stage, row.progress),
        ("r1", Stage::Train, 0.5)
    );
    assert_eq!(row.triage, Some(json!({"invert": 3})));
    let ended = db.realignment("r2").unwrap().unwrap();
    assert_eq!(
        (ended.outcome, ended.finished_at),
        (Some(Outcome::Rejected), Some(13))
    );
    assert_eq!(db.realignments(1).unwrap()[0].id, "r2");
    assert_eq!(db.next_realignment().unwrap(), 3);
    assert!(
        db.advance_realignment("r2", Stage::Gate, 0.9, 14).is_err(),
        "it has ended"
    );
    assert!(
        db.finish_realignment("none", Outcome::Failed, (None, None), 14)
            .is_err()
    );
}

#[test]
fn a_transaction_that_was_dropped_left_nothing() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    db.put_verdicts(&[([1; 32], true)]).unwrap();
    {
        let mut connection = db.lock();
        let transaction = connection.transaction().unwrap();
        transaction.execute("DELETE FROM verdicts", []).unwrap();
    }
    drop(db);
    let db = StateDb::open(&path).unwrap();
    assert_eq!(db.get_verdicts(&[[1; 32]]).unwrap(), [Some(true)]);
}

#[test]
fn verdicts_and_scores_survive_a_restart() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    db.put_verdicts(&[([1; 32], true), ([2; 32], false)])
        .unwrap();
    let scores = vec![
        ScoreRow {
            pair_id: "a".into(),
            raw: -1.5,
            weight: 0.0,
        },
        ScoreRow {
            pair_id: "b".into(),
            raw: 2.5,
            weight: 1.0,
        },
    ];
    db.put_scores("inputs", &scores).unwrap();
    assert!(
        db.put_scores(
            "inputs",
            &[ScoreRow {
                pair_id: "c".into(),
                raw: f64::NAN,
                weight: 0.0
            }]
        )
        .is_err()
    );
    drop(db);
    let db = StateDb::open(&path).unwrap();
    let keys = [[2; 32], [3; 32], [1; 32]];
    assert_eq!(
        db.get_verdicts(&keys).unwrap(),
        [Some(false), None, Some(true)]
    );
    assert_eq!(
        db.scores("inputs").unwrap(),
        scores,
        "the refused batch changed nothing"
    );
}

#[test]
fn a_revert_finds_its_generation() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    let row = GenerationRow {
        id: "0123456789ab".into(),
        inputs_hash: "inputs".into(),
        policy_revision: "policy".into(),
        created_at: 7,
        status: GenerationStatus::Promoted,
        path: "adapters/0123456789ab".into(),
    };
    db.put_generation(&row).unwrap();
    assert_eq!(
        db.generation_by_inputs("inputs").unwrap(),
        Some(row.clone())
    );
    assert_eq!(db.generation_by_inputs("none").unwrap(), None);
    let again = GenerationRow {
        status: GenerationStatus::Rejected,
        ..row
    };
    db.put_generation(&again).unwrap();
    assert_eq!(
        db.generation_by_inputs("inputs").unwrap(),
        Some(again.clone())
    );
    let other_inputs = GenerationRow {
        inputs_hash: "other".into(),
        ..again.clone()
    };
    db.put_generation(&other_inputs).unwrap();
    assert_eq!(
        db.generation_by_inputs("inputs").unwrap(),
        Some(again),
        "two inputs may lead to one generation"
    );
    assert_eq!(
        db.generation_by_inputs("other").unwrap(),
        Some(other_inputs)
    );
}

#[test]
fn unusable_files_say_what_to_do() {
    let (_dir, path) = temp();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(
        &path,
        "not a database, and long enough to be read as a header".repeat(40),
    )
    .unwrap();
    let error = StateDb::open(&path).unwrap_err();
    assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("aside"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let db = StateDb::open(&path).unwrap();
    db.lock().pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    assert!(matches!(
        StateDb::open(&path),
        Err(StateError::Newer { found: 99, .. })
    ));
    let error = StateDb::open(path.parent().unwrap()).unwrap_err();
    assert!(matches!(error, StateError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("must be writable"), "{error}");
}

#[test]
fn a_file_that_was_removed_records_nothing() {
    let (dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    db.check_place().unwrap();
    let away = dir.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    assert!(matches!(db.check_place(), Err(StateError::Gone { .. })));
    std::fs::write(&path, "another").unwrap();
    let error = db.check_place().unwrap_err().to_string();
    assert!(error.contains("restart the server"), "{error}");
    std::fs::rename(&away, &path).unwrap();
    db.check_place().unwrap();
    StateDb::in_memory().unwrap().check_place().unwrap();
}

#[test]
fn a_file_of_an_earlier_release_opens_and_keeps_what_it_holds() {
    let (_dir, path) = temp();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let old = rusqlite::Connection::open(&path).unwrap();
    for step in &schema::MIGRATIONS[..3] {
        old.execute_batch(step).unwrap();
    }
    old.pragma_update(None, "user_version", 3).unwrap();
    let rows = "INSERT INTO checkpoints VALUES ('inputs', 8, 'step-8');
                INSERT INTO verdicts VALUES (zeroblob(32), 1);";
    old.execute_batch(rows).unwrap();
    drop(old);
    let db = StateDb::open(&path).unwrap();
    assert_eq!(db.get_verdicts(&[[0; 32]]).unwrap(), [Some(true)]);
    drop(db);
    StateDb::open(&path).unwrap();
}

#[test]
fn the_oracle_finds_its_verdicts_and_survives_a_broken_database() {
    use realign_align::oracle::{VerdictCache, VerdictKey};
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    let (known, unknown) = (VerdictKey([7; 32]), VerdictKey([8; 32]));
    db.put_many(&[(known, true)]);
    assert_eq!(db.get_many(&[unknown, known]), [None, Some(true)]);
    db.lock().execute_batch("DROP TABLE verdicts").unwrap();
    db.put_many(&[(known, true)]);
    assert_eq!(db.get_many(&[unknown, known]), [None, None]);
}

#[test]
fn deaths_are_counted_by_stage_and_forgotten_on_request() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    let count = || {
        db.deaths("a")
            .unwrap()
            .map(|deaths| (deaths.stage, deaths.count))
    };
    let die = |stage| {
        db.open_attempt("a", "2 MiB of 3").unwrap();
        db.count_death("a", (stage, 0.3)).unwrap();
    };
    db.count_death("a", (Stage::Impact, 0.3)).unwrap();
    assert_eq!(count(), None, "no attempt was open");
    die(Stage::Impact);
    die(Stage::Impact);
    db.count_death("a", (Stage::Impact, 0.3)).unwrap();
    assert_eq!(count(), Some(("impact".into(), 2)), "one for each attempt");
    assert_eq!(db.deaths("a").unwrap().unwrap().room, "2 MiB of 3");
    die(Stage::Train);
    assert_eq!(count(), Some(("train".into(), 1)), "in another stage");
    die(Stage::Train);
    assert_eq!(count(), Some(("train".into(), 2)));
    db.open_attempt("a", "").unwrap();
    db.count_death("a", (Stage::Train, 0.4)).unwrap();
    assert_eq!(count(), Some(("train".into(), 1)), "it came further");
    for closed in [Some("a"), None] {
        db.open_attempt("a", "").unwrap();
        db.close_attempts(closed).unwrap();
        db.count_death("a", (Stage::Train, 0.3)).unwrap();
        assert_eq!(count(), Some(("train".into(), 1)), "the attempt was closed");
    }
    db.forget_deaths("a").unwrap();
    assert_eq!(count(), None);
}
