//! Schedules: what happens, in order, from a seed.

use super::faults::Fault;
use super::outside::Trouble;
use super::policies::Content;

/// A generator of numbers: SplitMix64.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What an operator expects to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Anything,
    /// What serves.
    Right,
    /// What a rollback left.
    Left,
    Wrong,
}

/// How a realignment ends that has not swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Failed,
    /// For a reason that may pass.
    Hindered,
    Rejected,
    NoConflict,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// A policy file is written.
    Write(&'static str, Content),
    /// A policy file is removed or renamed away.
    Remove(&'static str),
    /// The policy directory goes away.
    Vanish,
    /// It comes back as it was.
    Appear,
    Set(Trouble, bool),
    DataChanges,
    /// The wall clock is set, to Unix seconds.
    Clock(u64),
    /// What serves becomes unreadable on disk.
    Damage,
    /// Damaged files are restored.
    Repair,
    /// An event says that the policies may have changed.
    Hint,
    Reload,
    /// So many milliseconds pass, then the loop compares what is wanted with what is.
    Tick(u64),
    /// The loop handles waiting events.
    Deliver,
    Clear,
    /// An operator activates the n-th published generation, or the base.
    Activate(usize, Expected),
    Rollback(Expected),
    Unpin,
    /// An operator starts a realignment.
    Begin,
    Cancel,
    /// The running realignment makes its result serve.
    Swap,
    /// The running realignment ends, as it stopped or swapped, or so.
    End(End),
    /// What serves computes no numbers.
    Unhealthy,
    /// The process ends as it was told to, and starts again.
    Restart,
    /// The process is killed, and starts again.
    Kill,
}

/// Something that happens, and what its writes meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) op: Op,
    pub(super) fault: Option<Fault>,
}

const NAMES: [&str; 2] = ["one", "two"];
const WORDS: [&str; 3] = ["xyzzy", "plugh", "frotz"];
const EXPECTED: [Expected; 5] = [
    Expected::Anything,
    Expected::Anything,
    Expected::Right,
    Expected::Left,
    Expected::Wrong,
];
const ENDS: [End; 4] = [End::Failed, End::Hindered, End::Rejected, End::NoConflict];
const TROUBLES: [Trouble; 5] = [
    Trouble::ReadError,
    Trouble::JudgeDown,
    Trouble::NoThreads,
    Trouble::NoData,
    Trouble::DiskFull,
];

/// The steps of a seed.
pub(super) fn schedule(seed: u64) -> Vec<Step> {
    let mut numbers = Numbers(seed);
    let steps = 12 + numbers.below(28);
    // Some schedules meet no fault: what they may not do is stricter.
    let faulty = numbers.below(4) > 0;
    let step = |_| Step {
        op: op(&mut numbers, faulty),
        fault: fault(&mut numbers).filter(|_| faulty),
    };
    (0..steps).map(step).collect()
}

fn fault(numbers: &mut Numbers) -> Option<Fault> {
    let at = numbers.below(5) as u32;
    match numbers.below(8) {
        0 => Some(Fault::Kill { at }),
        1 => Some(Fault::Fail {
            at,
            count: 1 + numbers.below(3) as u32,
            late: numbers.below(2) == 0,
        }),
        _ => None,
    }
}

fn op(numbers: &mut Numbers, faulty: bool) -> Op {
    match numbers.below(if faulty { 49 } else { 41 }) {
        0..=4 => Op::Write(numbers.of(&NAMES), content(numbers)),
        5..=6 => Op::Remove(numbers.of(&NAMES)),
        7 => Op::Vanish,
        8..=9 => Op::Appear,
        10 => Op::DataChanges,
        11 => Op::Hint,
        12 => Op::Reload,
        13..=17 => Op::Tick(numbers.of(&[10, 400, 1_600, 7_000, 130_000])),
        18..=19 => Op::Deliver,
        20 => Op::Clear,
        21..=24 => Op::Activate(numbers.below(6) as usize, numbers.of(&EXPECTED)),
        25..=27 => Op::Rollback(numbers.of(&EXPECTED)),
        28..=30 => Op::Unpin,
        31 => Op::Begin,
        32 => Op::Cancel,
        33..=35 => Op::Swap,
        36..=38 => Op::End(numbers.of(&ENDS)),
        39 => Op::Restart,
        40 => Op::Clock(1_700_000_000 + numbers.below(200_000_000)),
        41..=42 => Op::Kill,
        43 => Op::Unhealthy,
        44 => Op::Damage,
        45 => Op::Repair,
        _ => Op::Set(numbers.of(&TROUBLES), numbers.below(3) > 0),
    }
}

fn content(numbers: &mut Numbers) -> Content {
    let word = numbers.of(&WORDS);
    match numbers.below(6) {
        0 => Content::Cut(word),
        1 => Content::Broken,
        2 => Content::Judged(word),
        _ => Content::Policy(word),
    }
}
