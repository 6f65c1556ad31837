//! The small objects of a store, as JSON.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// The version of what is written here.
pub(crate) const FORMAT: u32 = 1;

/// What every server of a store should serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// The version of this format.
    pub(crate) format: u32,
    /// Counts publications; 0 before the first.
    pub epoch: u64,
    /// The generation's id, or the base model's own id; `None` before the first publication.
    pub generation: Option<String>,
    /// Whether it is the base model.
    pub is_base: bool,
    /// Hash of the base model.
    pub base_hash: Option<String>,
    /// Revision of the policy set that led to it.
    pub policy_revision: Option<String>,
    /// Whether an operator chose it, so that no realignment may replace it.
    pub pinned: bool,
    /// The controller that published it.
    pub writer: String,
    /// The token of the lease under which this was written. It never goes down.
    pub fencing: u64,
    /// When, in Unix seconds, by the writer's clock. For people to read.
    pub at: u64,
}

impl Current {
    /// What it says before the first publication: nothing.
    pub fn nothing() -> Self {
        Self {
            format: FORMAT,
            epoch: 0,
            generation: None,
            is_base: false,
            base_hash: None,
            policy_revision: None,
            pinned: false,
            writer: String::new(),
            fencing: 0,
            at: 0,
        }
    }

    /// Whether both make the same generation serve, for the same policies, pinned or not.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let of = |c: &Self| {
            let Self {
                generation,
                policy_revision,
                ..
            } = c.clone();
            (generation, policy_revision, c.is_base, c.pinned)
        };
        of(self) == of(other)
    }
}

/// Who may publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The version of this format.
    pub(crate) format: u32,
    /// The controller, with something that tells its runs apart.
    pub holder: String,
    /// Goes up whenever another run of a controller takes the lease.
    pub fencing: u64,
    /// Goes up with every renewal, so that a live lease changes.
    pub(crate) beat: u64,
    /// How long others wait for a change before they take it over, in milliseconds.
    pub(crate) term_ms: u64,
    /// Whether the holder gave it back.
    pub(crate) released: bool,
}

/// What a server says of itself. Others may believe it until `until`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// `controller` or `follower`.
    pub role: String,
    /// The epoch that it serves; `None` if it serves none of the store's.
    pub epoch: Option<u64>,
    /// The generation that it serves.
    pub generation: String,
    /// Whether it takes requests.
    pub ready: bool,
    /// Why it is not what it should be, if so.
    pub reason: Option<String>,
    /// When it wrote this, in Unix seconds.
    pub at: u64,
    /// When this stops being true unless it is written again, in Unix seconds.
    pub until: u64,
    /// The version of realign.
    pub version: String,
}

pub(crate) fn encode(record: &impl Serialize) -> Bytes {
    // Records are plain data, which always serialises.
    serde_json::to_vec_pretty(record).unwrap_or_default().into()
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    #[derive(Deserialize)]
    struct Format {
        format: Option<u32>,
    }
    let broken = |error: serde_json::Error| {
        StoreError::damaged(
            key,
            format!("is not what realign writes ({error}); restore it"),
        )
    };
    let Format { format } = serde_json::from_slice(bytes).map_err(broken)?;
    if let Some(format) = format.filter(|format| *format != FORMAT) {
        return Err(StoreError::damaged(
            key,
            format!("has format {format}, and this version of realign knows {FORMAT}; update it"),
        ));
    }
    serde_json::from_slice(bytes).map_err(broken)
}
