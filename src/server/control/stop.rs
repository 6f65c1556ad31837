//! The flag that tells a running realignment to stop.

use std::sync::atomic::{AtomicU8, Ordering};

use realign_core::StopReason;

/// Set by the control loop, read by the realignment's thread. Empty while the realignment should
/// continue.
#[derive(Debug, Default)]
pub(crate) struct StopFlag(AtomicU8);

impl StopFlag {
    /// Asks to stop; a later reason replaces an earlier one.
    pub(crate) fn set(&self, reason: StopReason) {
        // 0 means that no reason is set.
        self.0.store(reason as u8 + 1, Ordering::Release);
    }

    /// The reason to stop, if one is set.
    pub(crate) fn get(&self) -> Option<StopReason> {
        let index = self.0.load(Ordering::Acquire).checked_sub(1)?;
        StopReason::ALL.get(usize::from(index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_comes_back_and_the_last_one_counts() {
        let flag = StopFlag::default();
        assert_eq!(flag.get(), None);
        for reason in StopReason::ALL {
            flag.set(reason);
            assert_eq!(flag.get(), Some(reason));
        }
    }
}
