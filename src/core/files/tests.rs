use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

const SMALL: Limit = Limit::bytes(8);

#[test]
fn regular_files_are_read_also_through_links() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, "12345678").unwrap();
    assert_eq!(read(&path, SMALL).unwrap(), b"12345678");
    assert_eq!(read_text(&path, SMALL).unwrap(), "12345678");
    let missing = dir.path().join("missing");
    assert_eq!(
        read(&missing, SMALL).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(read_text_if_there(&missing, SMALL).unwrap(), None);
    std::fs::write(&path, "123456789").unwrap();
    let error = read(&path, Limit::configured(8, "a.b")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    let text = error.to_string();
    for part in ["it has 9", "larger than 8 bytes", "`a.b`"] {
        assert!(text.contains(part), "{text}");
    }
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link, Limit::bytes(9)).unwrap().len(), 9);
    }
    assert_eq!(list(dir.path()).unwrap()[0], path);
}

#[test]
fn a_large_file_is_streamed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let content: Vec<u8> = (0..3 * PIECE + 5).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let mut bytes = Vec::new();
    open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == content);
    // A stream that is not read to its end leaves no thread behind.
    drop(open(&path).unwrap());
    let until = Instant::now() + Duration::from_secs(5);
    while reads().iter().any(|read| read.path == path) {
        assert!(Instant::now() < until, "the thread still runs");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn what_is_not_a_regular_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let cases = [
        (pipe.as_path(), "a named pipe"),
        (socket.as_path(), "a socket"),
        (Path::new("/dev/zero"), "a character device"),
        (dir.path(), "a directory"),
    ];
    for (path, kind) in cases {
        let begun = Instant::now();
        let errors = [
            read(path, SMALL).unwrap_err(),
            open(path).unwrap_err(),
            open_regular(path).unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(
                text.contains(kind) && text.contains("not a regular file"),
                "{text}"
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_hides_its_size_is_bounded_too() {
    let error = read(Path::new("/proc/self/maps"), SMALL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{error}");
}

#[test]
fn a_file_system_that_does_not_answer_costs_one_wait_and_one_thread() {
    let path = Path::new("hung/mount");
    let (release, released) = mpsc::channel::<()>();
    let answers = ask(path, move |sender: &SyncSender<()>| {
        let _ = released.recv();
        let _ = sender.send(());
    })
    .unwrap();
    let error = answers.next(Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("did not answer"), "{error}");
    // The next access to the same path is refused without waiting.
    let again = open(path).unwrap_err();
    assert!(again.to_string().contains("still waits"), "{again}");
    // Once the file system answers, the path is usable again.
    drop(release);
    let until = Instant::now() + Duration::from_secs(5);
    while reads().iter().any(|read| read.path == path) {
        assert!(Instant::now() < until, "the thread still runs");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(open(path).unwrap_err().kind(), ErrorKind::NotFound);
}
