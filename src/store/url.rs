//! Where a store is.

use std::fmt;
use std::str::FromStr;

/// What is allowed, for error messages.
const ALLOWED: &str = "`file://DIRECTORY`, `s3://BUCKET` or `s3://BUCKET/PREFIX`";

/// An S3 bucket and a prefix of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    pub(crate) bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub(crate) prefix: String,
}

/// Text that names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no store: allowed is {ALLOWED}{hint}")]
pub struct UrlError {
    text: String,
    hint: &'static str,
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let refused = |hint| UrlError {
            // A password must not get into a log with it.
            text: text.split('@').next_back().unwrap_or_default().into(),
            hint,
        };
        let place = text.strip_prefix("s3://").ok_or_else(|| refused(""))?;
        if place.contains(['@', '?', '#']) {
            return Err(refused(
                "; credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT)",
            ));
        }
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed)
        };
        if !plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(plain)) {
            return Err(refused(
                ", of letters, digits, `-`, `_` and `.` between the slashes",
            ));
        }
        Ok(Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
        })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, prefix } = self;
        match prefix.as_str() {
            "" => write!(f, "s3://{bucket}"),
            prefix => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}
