//! API keys, kept as digests so that no key can be read from memory, a log or a key file.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use realign_core::files::{self, Limit};
use sha2::{Digest, Sha256};

/// Distinguishes a digest from a key in plain text.
const DIGEST_PREFIX: &str = "sha256:";
/// Maximum length of a key's name, which is written to logs.
const NAME_LIMIT: usize = 64;
/// Maximum size of a key file: about ten thousand keys.
const FILE_LIMIT: Limit = Limit::mib(1);

/// Prefix of the keys that this program makes, by which scanners for leaked secrets recognise them.
const PREFIX: &str = "rk-";

/// A new random key of 192 bits.
pub fn generate() -> String {
    format!("{PREFIX}{}", hex::encode(rand::random::<[u8; 24]>()))
}

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key as a caller sends it.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads a key, or `sha256:` and 64 hex digits.
    ///
    /// # Errors
    /// A message that says what is allowed.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let Some(digits) = text.strip_prefix(DIGEST_PREFIX) else {
            if text.is_empty() {
                return Err("give a key, or sha256: and its digest");
            }
            return Ok(Self::of(text));
        };
        let mut digest = [0; 32];
        hex::decode_to_slice(digits, &mut digest)
            .map_err(|_| "after sha256: give 64 hex digits; `realign keys hash` prints them")?;
        Ok(Self(digest))
    }

    /// Compares in constant time, so that timing reveals nothing about the digest.
    pub fn matches(&self, other: &KeyDigest) -> bool {
        let pairs = self.0.iter().zip(other.0.iter());
        let difference = pairs.fold(0, |found, (a, b)| found | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// Formats the digest as it is written in a configuration.
impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DIGEST_PREFIX}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(..)")
    }
}

/// A caller's key and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The key's name, which is written to logs.
    pub name: Arc<str>,
    /// Digest of the key.
    pub digest: KeyDigest,
    /// Limit of requests per minute that replaces `limits.requests_per_minute`; 0 means no limit.
    pub requests_per_minute: Option<u32>,
    /// Limit of tokens per minute that replaces `limits.tokens_per_minute`; 0 means no limit.
    pub tokens_per_minute: Option<u32>,
}

impl ApiKey {
    /// A key without limits of its own.
    pub(crate) fn new(name: &str, digest: KeyDigest) -> Self {
        Self {
            name: name.into(),
            digest,
            requests_per_minute: None,
            tokens_per_minute: None,
        }
    }
}

/// Reads `name:key` or `name:sha256:<digest>`, then `requests_per_minute=N` and
/// `tokens_per_minute=N` in any order.
impl FromStr for ApiKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut words = text.split_whitespace();
        let (name, key) = words
            .next()
            .and_then(|word| word.split_once(':'))
            .ok_or("write name:key or name:sha256:<digest>")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(plain) {
            return Err("a key's name has 1 to 64 letters, digits or . _ - @");
        }
        let mut parsed = Self::new(name, KeyDigest::parse(key)?);
        for word in words {
            let (option, number) = word
                .split_once('=')
                .and_then(|(option, number)| Some((option, number.parse().ok()?)))
                .ok_or("after the key write requests_per_minute=N or tokens_per_minute=N")?;
            match option {
                "requests_per_minute" => parsed.requests_per_minute = Some(number),
                "tokens_per_minute" => parsed.tokens_per_minute = Some(number),
                _ => return Err("allowed options are requests_per_minute and tokens_per_minute"),
            }
        }
        Ok(parsed)
    }
}

/// Why a key file is not usable. Messages never quote a line, which may contain a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Path of the key file.
        file: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A line is malformed.
    #[error("{file}:{line}: {what}")]
    Line {
        /// Path of the key file.
        file: String,
        /// Line number, from 1.
        line: usize,
        /// What is wrong, and what is allowed.
        what: &'static str,
    },
}

/// Reads a file of keys, one per line; `#` begins a comment.
///
/// # Errors
/// [`KeyFileError`]; one malformed line makes the whole file unusable.
pub(crate) fn read_file(path: &Path) -> Result<Vec<ApiKey>, KeyFileError> {
    let file = path.display().to_string();
    let read = |source| KeyFileError::Read {
        file: file.clone(),
        source,
    };
    let text = files::read_text(path, FILE_LIMIT).map_err(read)?;
    let mut keys: Vec<ApiKey> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what| KeyFileError::Line {
            file: file.clone(),
            line: index + 1,
            what,
        };
        let key: ApiKey = line.parse().map_err(wrong)?;
        if keys.iter().any(|k| k.name == key.name) {
            return Err(wrong(
                "this name stands in an earlier line; names are unique",
            ));
        }
        keys.push(key);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_stands_for_its_key() {
        let digest = KeyDigest::of("secret");
        assert_eq!(KeyDigest::parse(&digest.to_string()), Ok(digest));
        assert!(KeyDigest::parse(" secret ").unwrap().matches(&digest));
        assert!(!KeyDigest::of("secreT").matches(&digest));
        assert!(KeyDigest::parse("sha256:12").is_err());
        assert!(!format!("{:?}", ApiKey::new("a", digest)).contains(&digest.to_string()[10..]));
    }

    #[test]
    fn lines_hold_a_name_a_key_and_limits() {
        let key: ApiKey = "team-a:se:cret requests_per_minute=5".parse().unwrap();
        assert_eq!(&*key.name, "team-a");
        assert_eq!(key.digest, KeyDigest::of("se:cret"));
        assert_eq!(
            (key.requests_per_minute, key.tokens_per_minute),
            (Some(5), None)
        );
        for wrong in [
            "",
            "name",
            ":key",
            "a b:c",
            "a:",
            "a:k x=1",
            "a:k rpm=1",
            "a:sha256:0",
        ] {
            assert!(wrong.parse::<ApiKey>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn files_name_the_wrong_line_but_not_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# ours\nalice:one # her\n\nbob:two\n").unwrap();
        let names: Vec<_> = read_file(&path)
            .unwrap()
            .iter()
            .map(|k| k.name.to_string())
            .collect();
        assert_eq!(names, ["alice", "bob"]);
        std::fs::write(&path, "alice:one\nalice:topsecret\n").unwrap();
        let error = read_file(&path).unwrap_err().to_string();
        assert!(
            error.contains("keys:2") && !error.contains("topsecret"),
            "{error}"
        );
        assert!(read_file(&dir.path().join("none")).is_err());
        let error = read_file(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("not a regular file but a directory"),
            "{error}"
        );
    }
}
