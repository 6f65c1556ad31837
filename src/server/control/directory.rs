//! When the content of the policy directory is acted upon: it is compared with what was acted upon
//! last, and has to rest first.
//!
//! This is level-triggered: events only say when to look. A file that is being written changes from
//! one look to the next; it is left alone until it has not changed for the time `settle`.

use std::io;
use std::time::{Duration, Instant, UNIX_EPOCH};

use realign_align::policy::Snapshot;
use realign_core::clock::since_1970;

/// How many times longer a file without a final line end has to rest.
const UNFINISHED: u32 = 4;
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What to do after a look.
pub(super) enum Look {
    /// It is what was acted upon already.
    Same,
    /// It may still be changing: look again later.
    Later,
    /// Act on it.
    Act(io::Result<Snapshot>),
}

/// What was seen of the directory.
pub(super) struct Directory {
    settle: Duration,
    /// What was acted upon last.
    acted: Option<Seen>,
    snapshot: Snapshot,
    /// What was seen last, since when it is so, and until when it has to rest.
    resting: Option<(Seen, Instant, Instant)>,
    /// When to act on the same content again, and how long the wait was.
    retry: Option<(Instant, Duration)>,
}

#[derive(Clone, PartialEq, Eq)]
enum Seen {
    Files([u8; 32]),
    Error(io::ErrorKind),
}

impl Directory {
    /// Content has to be the same for `settle` before it is acted upon.
    pub(super) fn new(settle: Duration) -> Self {
        Self {
            settle,
            acted: None,
            snapshot: Snapshot::default(),
            resting: None,
            retry: None,
        }
    }

    /// Judges what was found. With `at_once`, an operator asked: nothing has to rest, and the same
    /// content is acted upon again.
    pub(super) fn look(
        &mut self,
        found: io::Result<Snapshot>,
        now: Instant,
        at_once: bool,
    ) -> Look {
        let seen = match &found {
            Ok(snapshot) => Seen::Files(snapshot.digest()),
            Err(error) => Seen::Error(error.kind()),
        };
        let same = self.acted.as_ref() == Some(&seen);
        // Only what was tried is tried again; other content has to rest first.
        let again = same && self.retry.is_some_and(|(at, _)| at <= now);
        if same && !at_once && !again {
            self.resting = None;
            return Look::Same;
        }
        let since = match &self.resting {
            Some((resting, since, _)) if *resting == seen => *since,
            _ => now,
        };
        let due = self.due(&found, since, now);
        self.resting = Some((seen.clone(), since, due));
        if due > now && !at_once && !again {
            return Look::Later;
        }
        self.resting = None;
        if !same {
            self.retry = None;
        }
        self.acted = Some(seen);
        if let Ok(snapshot) = &found {
            self.snapshot = snapshot.clone();
        }
        Look::Act(found)
    }

    /// When this content, seen since `since`, has rested: at once if it was written long ago and
    /// nothing is gone.
    fn due(&self, found: &io::Result<Snapshot>, since: Instant, now: Instant) -> Instant {
        let Ok(snapshot) = found else {
            return since + self.settle;
        };
        let unfinished = snapshot.looks_unfinished();
        let wait = self.settle * if unfinished { UNFINISHED } else { 1 };
        // A clock that was set back makes files of the future; they rest from when they are seen.
        let age = snapshot
            .newest()
            .and_then(|at| (UNIX_EPOCH + since_1970()).duration_since(at).ok());
        match age {
            Some(age) if age >= wait && snapshot.keeps_files_of(&self.snapshot) => now,
            Some(age) => (since + wait).max(now + wait.saturating_sub(age)),
            None => since + wait,
        }
    }

    /// The content acted upon last was refused for a reason that may pass: it is tried again.
    pub(super) fn retry_later(&mut self, now: Instant) -> Duration {
        let wait = self
            .retry
            .map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LAST_RETRY));
        self.retry = Some((now + wait, wait));
        wait
    }

    /// The content acted upon last became active, or was refused for good.
    pub(super) fn settled(&mut self) {
        self.retry = None;
    }

    /// When to look again at the latest.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.resting {
            Some((_, _, due)) => Some(*due),
            None => self.retry.map(|(at, _)| at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    fn files(text: &str) -> io::Result<Snapshot> {
        Ok(Snapshot::from_json(text).unwrap())
    }

    fn acts(look: &Look) -> bool {
        matches!(look, Look::Act(_))
    }

    #[test]
    fn content_is_acted_upon_once_it_rests() {
        let (mut directory, start) = (Directory::new(SETTLE), Instant::now());
        assert!(!acts(&directory.look(
            files(r#"{"a.yaml":"x\n"}"#),
            start,
            false
        )));
        let later = start + SETTLE / 2;
        assert!(!acts(&directory.look(
            files(r#"{"a.yaml":"x\ny\n"}"#),
            later,
            false
        )));
        let rested = later + SETTLE;
        assert!(acts(&directory.look(
            files(r#"{"a.yaml":"x\ny\n"}"#),
            rested,
            false
        )));
        assert!(matches!(
            directory.look(files(r#"{"a.yaml":"x\ny\n"}"#), rested, false),
            Look::Same
        ));
    }

    #[test]
    fn a_file_without_a_final_line_end_rests_longer() {
        let (mut directory, start) = (Directory::new(SETTLE), Instant::now());
        let cut = || files(r#"{"a.yaml":"x\ny"}"#);
        assert!(!acts(&directory.look(cut(), start, false)));
        assert!(!acts(&directory.look(cut(), start + SETTLE * 2, false)));
        assert!(acts(&directory.look(cut(), start + SETTLE * 4, false)));
    }

    #[test]
    fn content_that_goes_and_comes_back_was_never_acted_upon() {
        let (mut directory, start) = (Directory::new(SETTLE), Instant::now());
        let full = || files(r#"{"a.yaml":"x\n"}"#);
        assert!(acts(&directory.look(full(), start, true)));
        assert!(!acts(&directory.look(files("{}"), start, false)));
        assert!(matches!(directory.look(full(), start, false), Look::Same));
        assert!(!acts(&directory.look(
            files("{}"),
            start + SETTLE * 2,
            false
        )));
    }

    #[test]
    fn a_passing_error_is_tried_again() {
        let (mut directory, start) = (Directory::new(SETTLE), Instant::now());
        let full = || files(r#"{"a.yaml":"x\n"}"#);
        assert!(acts(&directory.look(full(), start, true)));
        let wait = directory.retry_later(start);
        assert!(!acts(&directory.look(full(), start, false)));
        assert!(acts(&directory.look(full(), start + wait, false)));
        assert!(directory.retry_later(start) > wait);
        directory.settled();
        assert!(!acts(&directory.look(full(), start + wait * 9, false)));
    }

    #[test]
    fn a_retry_is_for_the_content_that_was_tried() {
        let (mut directory, start) = (Directory::new(SETTLE), Instant::now());
        let tried = || files(r#"{"a.yaml":"x\n"}"#);
        let other = || files(r#"{"a.yaml":"x\ny\n"}"#);
        assert!(acts(&directory.look(tried(), start, true)));
        let due = start + directory.retry_later(start);
        assert!(
            !acts(&directory.look(other(), due, false)),
            "it rests first"
        );
        assert_eq!(directory.next(), Some(due + SETTLE));
        assert!(acts(&directory.look(tried(), due, false)), "it is back");
    }
}
