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

/// A copy of the database in a directory of its own, with its log or without.
fn copied(path: &std::path::Path, with_log: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("realign.db");
    std::fs::copy(path, &copy).unwrap();
    if with_log {
        let log = |path: &std::path::Path| format!("{}-wal", path.display());
        std::fs::copy(log(path), log(&copy)).unwrap();
    }
    (dir, copy)
}

#[test]
fn a_copy_without_its_log_is_refused_until_an_operator_accepts_it() {
    let (_dir, path) = temp();
    for round in 0..3_u8 {
        let db = StateDb::open(&path).unwrap();
        let key = [round; 32];
        db.put_verdicts(&[(key, true)]).unwrap();
        let (_with, copy) = copied(&path, true);
        let whole = StateDb::open(&copy).unwrap();
        assert_eq!(whole.get_verdicts(&[key]).unwrap(), [Some(true)]);

        let (_without, copy) = copied(&path, false);
        for _ in 0..2 {
            let error = StateDb::open(&copy).unwrap_err();
            assert!(matches!(error, StateError::WithoutLog { .. }), "{error}");
        }
        assert!(StateDb::open_as_it_is(&copy).is_err());
        std::fs::write(copy.with_extension("db-wal"), "").unwrap();
        let older = StateDb::open(&copy).unwrap();
        assert_eq!(older.get_verdicts(&[key]).unwrap(), [None]);
        drop(older);
        StateDb::open(&copy).unwrap();

        let backup = path.with_extension("backup");
        let into = format!("VACUUM INTO '{}'", backup.display());
        db.lock().execute_batch(&into).unwrap();
        let backup = StateDb::open(&backup).unwrap();
        assert_eq!(backup.get_verdicts(&[key]).unwrap(), [Some(true)]);
        drop((backup, std::fs::remove_file(path.with_extension("backup"))));

        // Closed in order, the file holds everything.
        drop(db);
        let (_alone, copy) = copied(&path, false);
        let closed = StateDb::open(&copy).unwrap();
        assert_eq!(closed.get_verdicts(&[key]).unwrap(), [Some(true)]);
    }
}

#[test]
fn a_log_stays_small_and_the_file_still_says_that_it_belongs_to_it() {
    let (_dir, path) = temp();
    let db = StateDb::open(&path).unwrap();
    let log = path.with_extension("db-wal");
    let mut largest = 0;
    for round in 0..40_u64 {
        let key = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(n * 0x9e37_79b9 + round).to_be_bytes());
            (key, true)
        };
        let rows: Vec<_> = (0..2000).map(key).collect();
        db.put_verdicts(&rows).unwrap();
        for _ in 0..300 {
            db.pin().unwrap();
        }
        largest = std::fs::metadata(&log).unwrap().len().max(largest);
    }
    assert!(largest < 16 << 20, "{largest} bytes");
    let (_dir, copy) = copied(&path, false);
    let rolled = rusqlite::Connection::open(&copy).unwrap();
    let kept = "SELECT count(*) > 2000 FROM verdicts";
    let kept: bool = rolled.query_row(kept, [], |row| row.get(0)).unwrap();
    assert!(kept, "the log was brought into the file");
    drop(rolled);
    let error = StateDb::open(&copy).unwrap_err();
    assert!(matches!(error, StateError::WithoutLog { .. }), "{error}");
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
