//! Why work stops early.

/// Why a realignment should stop early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// An operator cancelled it.
    Cancelled,
    /// There is a newer policy set.
    Superseded,
    /// The server is shutting down; the next start resumes the work.
    Shutdown,
}

impl StopReason {
    /// All reasons.
    pub const ALL: [StopReason; 3] = [Self::Cancelled, Self::Superseded, Self::Shutdown];
}
