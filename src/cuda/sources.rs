//! The kernels' sources, compiled for the device that is there when the server starts.

/// A translation unit: [`COMMON`] and one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// File name, for messages.
    pub name: &'static str,
    /// Its text.
    pub(crate) text: &'static str,
}

/// What every unit begins with.
pub(crate) const COMMON: &str = include_str!("kernels/common.cuh");

/// What training needs of them, too.
pub(crate) const INTEGER: Unit = Unit {
    name: "integer.cu",
    text: include_str!("kernels/integer.cu"),
};

/// All units.
pub(crate) const UNITS: [Unit; 6] = [
    Unit {
        name: "layer.cu",
        text: include_str!("kernels/layer.cu"),
    },
    Unit {
        name: "linear.cu",
        text: include_str!("kernels/linear.cu"),
    },
    INTEGER,
    Unit {
        name: "attention.cu",
        text: include_str!("kernels/attention.cu"),
    },
    Unit {
        name: "sampling.cu",
        text: include_str!("kernels/sampling.cu"),
    },
    TRAINING,
];

/// What training differentiates. It runs on candle's stream too, as a module of its own there.
pub(crate) const TRAINING: Unit = Unit {
    name: "training.cu",
    text: include_str!("kernels/training.cu"),
};

impl Unit {
    /// The whole text that a compiler gets.
    pub(crate) fn source(&self) -> String {
        format!("{COMMON}\n{}", self.text)
    }
}
