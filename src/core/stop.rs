//! Why work stops early.

/// Why a realignment is to stop before its end.
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
    /// Every reason.
    pub const ALL: [StopReason; 3] = [Self::Cancelled, Self::Superseded, Self::Shutdown];
}
