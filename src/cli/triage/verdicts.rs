//! Files of verdicts: what one shard of a triage found, for the machine that merges the shards.
//!
//! A header says by what was judged, then one line for each verdict of a rule on a response, under the key of the cache. The
//! last line has the number of verdicts and a hash of all before, so a file that was cut is told from a whole one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use realign_align::oracle::{Oracle, RuleOracle, VerdictKey};
use realign_align::triage::Shard;

/// What the files' names end with.
pub(super) const EXTENSION: &str = "verdicts";
const FORMAT: &str = "realign verdicts 1";
/// The longest file that is read.
const LONGEST: u64 = 16 << 30;

/// By what verdicts were judged. Two that are equal judge alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JudgedBy {
    policy_revision: String,
    /// Content hash of the base model that probes read; `None` where no rule has one.
    model: Option<String>,
    /// By `policy:rule`, what else its verdicts depend on.
    rules: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    shard: String,
    /// Pairs of the shard.
    pairs: usize,
    #[serde(flatten)]
    by: JudgedBy,
}

/// A file of verdicts.
#[derive(Debug)]
pub(super) struct Verdicts {
    pub(super) shard: Shard,
    pub(super) pairs: usize,
    by: JudgedBy,
    pub(super) all: Vec<(VerdictKey, bool)>,
}

/// Why verdicts cannot be merged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerdictsError {
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is none, or not whole.
    #[error("{path}: {why}; run this shard again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was judged by something else than would judge here.
    #[error("{path}: {why}; nothing was merged", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// Some are missing.
    #[error("{0}; nothing was merged")]
    Incomplete(String),
}

impl JudgedBy {
    /// What this oracle judges by.
    pub(super) fn of(oracle: &RuleOracle) -> Self {
        Self {
            policy_revision: oracle.revision().to_owned(),
            model: oracle.base().map(str::to_owned),
            rules: oracle.identities(),
        }
    }

    /// How verdicts that were judged by `self` differ from those that `here` judges.
    fn difference(&self, here: &Self) -> Option<String> {
        if self.policy_revision != here.policy_revision {
            return Some(format!(
                "its verdicts are of policy revision {}, and the policies here are revision {}: use the same \
                 files in policies/, and the same --include-dryrun, on every machine",
                self.policy_revision, here.policy_revision
            ));
        }
        if self.model != here.model {
            let name = |model: &Option<String>| model.clone().unwrap_or_else(|| "no model".into());
            return Some(format!(
                "its probes read the base model {}, and those here {}",
                name(&self.model),
                name(&here.model)
            ));
        }
        if self.rules == here.rules {
            return None;
        }
        let other =
            |(name, identity): &(&String, &String)| here.rules.get(*name) != Some(*identity);
        let rule = self.rules.iter().find(other).map(|(name, _)| name.as_str());
        Some(format!(
            "the rule {} judges otherwise there: another release of realign, another fit of its probe, or another \
             threshold of its judge",
            rule.unwrap_or("of one of the policies")
        ))
    }
}

impl Verdicts {
    pub(super) fn new(
        shard: Shard,
        pairs: usize,
        oracle: &RuleOracle,
        all: Vec<(VerdictKey, bool)>,
    ) -> Self {
        Self {
            shard,
            pairs,
            by: JudgedBy::of(oracle),
            all,
        }
    }

    /// The name of the file of a shard: a job that runs again replaces what it wrote.
    fn name(&self) -> String {
        format!(
            "{}-of-{}.{EXTENSION}",
            self.shard.index(),
            self.shard.count()
        )
    }

    /// Writes them into a directory, whole or not at all, and returns the file.
    pub(super) fn write(&self, dir: &Path) -> Result<PathBuf, VerdictsError> {
        let path = dir.join(self.name());
        let staged = dir.join(format!(".{}.{}", self.name(), std::process::id()));
        let io = |source| VerdictsError::Io {
            path: path.clone(),
            source,
        };
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let mut file = std::fs::File::create(&staged)?;
            file.write_all(self.text()?.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&staged, &path)
        };
        let written = write();
        if written.is_err() {
            // It may not even be there.
            let _removed = std::fs::remove_file(&staged);
        }
        written.map_err(io)?;
        Ok(path)
    }

    fn text(&self) -> std::io::Result<String> {
        let header = Header {
            format: FORMAT.into(),
            shard: self.shard.to_string(),
            pairs: self.pairs,
            by: self.by.clone(),
        };
        let mut text = serde_json::to_string(&header)?;
        text.push('\n');
        for (key, violates) in &self.all {
            text.push_str(&key.to_hex());
            text.push_str(if *violates { " 1\n" } else { " 0\n" });
        }
        let hash = hex::encode(Sha256::digest(&text));
        text.push_str(&format!("end {} {hash}\n", self.all.len()));
        Ok(text)
    }

    /// Reads a file whose verdicts `here` would judge alike.
    pub(super) fn read(path: &Path, here: &JudgedBy) -> Result<Self, VerdictsError> {
        let io = |source| VerdictsError::Io {
            path: path.to_owned(),
            source,
        };
        let damaged = |why: &str| VerdictsError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        if std::fs::metadata(path).map_err(io)?.len() > LONGEST {
            return Err(damaged("it is too long"));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let (header, _) = text.split_once('\n').unwrap_or((text.as_str(), ""));
        let header: Header =
            serde_json::from_str(header).map_err(|_| damaged("it is no file of verdicts"))?;
        if header.format != FORMAT {
            return Err(damaged(&format!(
                "its format is {:?}, and this release reads {FORMAT:?}",
                header.format
            )));
        }
        let shard: Shard = header.shard.parse().map_err(|why: String| damaged(&why))?;
        if let Some(why) = header.by.difference(here) {
            return Err(VerdictsError::Foreign {
                path: path.to_owned(),
                why,
            });
        }
        let all = body(&text, here).map_err(damaged)?;
        Ok(Self {
            shard,
            pairs: header.pairs,
            by: header.by,
            all,
        })
    }
}

/// The verdicts of a whole file.
fn body(text: &str, here: &JudgedBy) -> Result<Vec<(VerdictKey, bool)>, &'static str> {
    const CUT: &str = "it ends too early";
    let whole = text.strip_suffix('\n').ok_or(CUT)?;
    let (before, last) = whole.rsplit_once('\n').ok_or(CUT)?;
    let end = last.strip_prefix("end ").ok_or(CUT)?;
    let (count, hash) = end.split_once(' ').ok_or(CUT)?;
    // With the line feed that splitting took.
    if hash != hex::encode(Sha256::digest(&text[..before.len() + 1])) {
        return Err("its last line does not belong to the others");
    }
    let of_rules: Vec<&str> = here.rules.values().map(String::as_str).collect();
    let mut all = Vec::new();
    for line in before.lines().skip(1) {
        let verdict = line.split_once(' ').and_then(|(key, violates)| {
            let known = of_rules.iter().any(|rule| key.starts_with(rule));
            let violates = match violates {
                "0" => false,
                "1" => true,
                _ => return None,
            };
            Some((VerdictKey::from_hex(key).filter(|_| known)?, violates))
        });
        all.push(verdict.ok_or("it has a line that is no verdict of these rules")?);
    }
    match count.parse() == Ok(all.len()) {
        true => Ok(all),
        false => Err("it has another number of verdicts than it says"),
    }
}
