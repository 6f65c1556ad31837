//! Writes that fail, and kills between them.

/// What happens to the writes of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// From this write on, so many fail. `CURRENT` is renamed all the same if `late`.
    Fail { at: u32, count: u32, late: bool },
    /// The process is killed before this write.
    Kill { at: u32 },
}

/// The writes of the operation in progress.
#[derive(Default)]
pub(super) struct Faults {
    fault: Option<Fault>,
    writes: u32,
    /// Whether the disk is full: all writes fail.
    pub(super) full: bool,
    /// The process is dead: nothing that it does reaches the disk.
    pub(super) dead: bool,
    /// Whether a write failed.
    pub(super) failed: bool,
}

/// What becomes of a write.
pub(super) enum Write {
    Done,
    Refused,
    /// It is done, and an error is returned.
    Late,
}

impl Faults {
    /// Begins an operation.
    pub(super) fn arm(&mut self, fault: Option<Fault>) {
        *self = Self {
            fault,
            full: self.full,
            ..Self::default()
        };
    }

    pub(super) fn write(&mut self) -> Write {
        let number = self.writes;
        self.writes += 1;
        let write = match self.fault {
            _ if self.dead => Write::Refused,
            Some(Fault::Kill { at }) if number >= at => {
                self.dead = true;
                Write::Refused
            }
            Some(Fault::Fail { at, count, late }) if (at..at + count).contains(&number) => {
                if late {
                    Write::Late
                } else {
                    Write::Refused
                }
            }
            _ if self.full => Write::Refused,
            _ => Write::Done,
        };
        self.failed |= !matches!(write, Write::Done);
        write
    }
}
