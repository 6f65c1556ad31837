//! Watches the preference data: what changed and then rested starts a realignment.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::worker::Worker;
use realign_core::{Trigger, files};

/// Name, size and modification time of every file, in order of names.
pub(super) type Listing = Vec<(String, u64, Option<SystemTime>)>;

/// What was seen of the data.
pub(super) struct DataWatch {
    settle: Duration,
    acted: Listing,
    /// What was seen last, and since when it is so.
    resting: Option<(Listing, Instant)>,
}

impl DataWatch {
    /// Begins with what is there now.
    pub(super) fn new(acted: Listing, settle: Duration) -> Self {
        Self {
            settle,
            acted,
            resting: None,
        }
    }

    /// A realignment read this: data that goes back to what it was before is a change.
    pub(super) fn acted_on(&mut self, listing: Listing) {
        self.acted = listing;
        self.resting = None;
    }

    /// Whether the data is other than it was, and has rested.
    fn changed(&mut self, listing: Listing, now: Instant) -> bool {
        if listing == self.acted {
            self.resting = None;
            return false;
        }
        match &self.resting {
            Some((seen, since)) if *seen == listing => {
                if now < *since + self.settle {
                    return false;
                }
                self.acted = listing;
                self.resting = None;
                true
            }
            _ => {
                self.resting = Some((listing, now));
                false
            }
        }
    }
}

/// An unreadable directory lists nothing: reading the data itself reports why.
pub(super) fn list(directory: &Path) -> Listing {
    let listed = directory.to_owned();
    let listing = files::within_deadline(directory, move || Ok(list_now(&listed)));
    listing.unwrap_or_default()
}

fn list_now(directory: &Path) -> Listing {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut listing: Listing = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Through links, as the data is read.
            let metadata = std::fs::metadata(entry.path()).ok()?;
            let shown = !name.starts_with('.') && metadata.is_file();
            shown.then(|| (name, metadata.len(), metadata.modified().ok()))
        })
        .collect();
    listing.sort();
    listing
}

impl Worker {
    /// Looks at the preference data; a change starts a realignment, or follows the running one.
    pub(super) fn look_at_data(&mut self, now: Instant) {
        let listing = self.surroundings.data(&self.context);
        if !self.data.changed(listing, now) {
            return;
        }
        let active = self.context.active();
        if !active.loaded || !active.set.policies().iter().any(|p| p.is_enforced()) {
            return;
        }
        let directory = self.context.config.paths.preferences.display();
        tracing::info!(%directory, "the preference data changed");
        if self.running.is_some() {
            self.pending.get_or_insert(Trigger::Data);
        } else {
            self.begin_or_owe(Trigger::Data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_it_rests() {
        let directory = tempfile::tempdir().unwrap();
        let settle = Duration::from_secs(1);
        let mut watch = DataWatch::new(list(directory.path()), settle);
        let start = Instant::now();
        assert!(!watch.changed(list(directory.path()), start));
        std::fs::write(directory.path().join("a.jsonl"), "{}\n").unwrap();
        assert!(!watch.changed(list(directory.path()), start));
        std::fs::write(directory.path().join("a.jsonl"), "{}\n{}\n").unwrap();
        assert!(!watch.changed(list(directory.path()), start + settle));
        assert!(watch.changed(list(directory.path()), start + settle * 2));
        assert!(!watch.changed(list(directory.path()), start + settle * 9));
    }
}
