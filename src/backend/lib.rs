//! The backends that there are, and which of them a choice of device opens. A new one is a crate of
//! its own, and a line in [`open`].

mod choice;

pub use realign_cpu::{InstructionSet, instruction_set};

pub use choice::{ALLOWED, DeviceChoice, DeviceError, check, open};
