//! Files that are larger than they look, or are none.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::{Dataset, DatasetError, MAX_LINE_BYTES};
use super::{one, read};

fn line(i: usize) -> String {
    format!("{{\"prompt\":\"{i:04}\",\"chosen\":\"yes\",\"rejected\":\"not\"}}\n")
}

fn gzip(parts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    parts.for_each(|part| encoder.write_all(&part).unwrap());
    encoder.finish().unwrap()
}

fn load(name: &str, content: &[u8], max_bytes: u64) -> Result<Dataset, DatasetError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), content).unwrap();
    Dataset::load_dir_within(dir.path(), max_bytes)
}

#[test]
fn more_than_may_be_held_is_an_error_that_names_the_setting() {
    let text: String = (0..50).map(line).collect();
    // A pair takes some hundred bytes besides its text; copies are not held.
    let data = load("a.jsonl", text.repeat(3).as_bytes(), 50 << 10).unwrap();
    assert_eq!((data.pairs.len(), data.duplicates), (50, 100));
    let error = load("a.jsonl", text.as_bytes(), 25 << 10).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("paths.max_preferences_mb"), "{text}");
    assert!(text.contains("a.jsonl:3"), "the line: {text}");
    // Bad lines count too: they are kept to be reported.
    assert!(load("a.jsonl", "not json\n".repeat(200).as_bytes(), 20 << 10).is_err());
}

#[test]
fn a_small_file_that_unpacks_to_tiny_pairs_is_bounded() {
    let packed = gzip((0..100_000).map(|i| line(i).into_bytes()));
    let begun = Instant::now();
    let error = load("a.jsonl.gz", &packed, 1 << 20).unwrap_err();
    assert!(matches!(error, DatasetError::TooLarge { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_unpacks_without_end_is_bounded_though_nothing_of_it_is_kept() {
    let blank = || vec![b'\n'; 1 << 20];
    let zeros = || vec![0; 1 << 20];
    let copies = || line(1).repeat(20_000).into_bytes();
    let kinds: [&dyn Fn() -> Vec<u8>; 3] = [&blank, &zeros, &copies];
    for part in kinds {
        let packed = gzip((0..20).map(|_| part()));
        let error = load("a.jsonl.gz", &packed, 1 << 20).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DatasetError::Unpacked { .. }), "{text}");
        assert!(text.contains("a.jsonl.gz:"), "{text}");
        assert!(text.contains("paths.max_preferences_mb"), "{text}");
    }
}

#[test]
fn a_line_too_long_is_skipped_and_reported() {
    let long = "x".repeat(MAX_LINE_BYTES + 1);
    let text = format!("{}{long}\n{}", line(1), line(2));
    for (name, bytes) in [
        ("a.jsonl", text.clone().into_bytes()),
        ("a.jsonl.gz", gzip([text.clone().into_bytes()].into_iter())),
    ] {
        let data = load(name, &bytes, 64 << 20).unwrap();
        assert_eq!((data.pairs.len(), data.skipped.len()), (2, 1));
        let shown = data.skipped[0].to_string();
        assert!(
            shown.contains(&format!("{name}:2: the line is longer")),
            "{shown}"
        );
    }
}

#[test]
fn deep_and_wide_lines_are_errors_of_their_line() {
    let deep = format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let data = read(deep.as_bytes(), MAX_LINE_BYTES);
    assert!(
        data.skipped[0].reason.contains("recursion limit"),
        "{}",
        data.skipped[0]
    );
    // A name of megabytes is not repeated in the report.
    let role = "r".repeat(1 << 20);
    let text = format!(
        "{{\"prompt\":[{{\"role\":\"{role}\",\"content\":\"x\"}}],\"chosen\":\"a\",\"rejected\":\"b\"}}\n"
    );
    assert!(
        read(text.as_bytes(), MAX_LINE_BYTES).skipped[0]
            .reason
            .len()
            < 200
    );
}

#[test]
fn a_transcript_of_many_turns_takes_one_pass() {
    let turns = "\\n\\nHuman: a".repeat(200_000);
    let text = format!(
        "{{\"chosen\":\"{turns}\\n\\nAssistant: b\",\"rejected\":\"{turns}\\n\\nAssistant: c\"}}"
    );
    let begun = Instant::now();
    // Two copies are more than a line may have.
    assert!(text.len() > MAX_LINE_BYTES);
    assert_eq!(one_within(&text, 1 << 24), 200_000);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(
        one(r#"{"prompt":"p","chosen":"a","rejected":"b"}"#)
            .prompt
            .len(),
        1
    );
}

fn one_within(line: &str, max_line: usize) -> usize {
    let data = read(line.as_bytes(), max_line);
    data.pairs.first().map_or(0, |pair| pair.prompt.len())
}

#[test]
fn a_broken_archive_names_file_and_line() {
    let whole = gzip((0..1000).map(|i| line(i).into_bytes()));
    let error = load("cut.jsonl.gz", &whole[..whole.len() / 2], 1 << 30).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("cut.jsonl.gz") && text.contains("at line"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_at_once_and_never_left_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("good.jsonl"), line(1)).unwrap();
    let pipe = dir.path().join("pipe.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let refused = |kind: &str| {
        let begun = Instant::now();
        let error = Dataset::load_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains(".jsonl"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    };
    refused("a named pipe");
    fs::remove_file(&pipe).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &pipe).unwrap();
    refused("a character device");
    fs::remove_file(&pipe).unwrap();
    std::os::unix::fs::symlink(Path::new("good.jsonl"), &pipe).unwrap();
    assert_eq!(Dataset::load_dir(dir.path()).unwrap().duplicates, 1);
}
