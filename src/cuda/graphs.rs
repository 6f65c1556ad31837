//! Steps that run again as they were recorded: one call to the device instead of one per kernel.
//!
//! A step's launches are a function of its [`Shape`] and of what never moves while an executor lives
//! (weights, cache, frequencies): whatever else changes from step to step is read from the step's
//! tables. So two steps of equal shapes have equal launches, and one may run as the other's recording.
//!
//! Recorded are steps of up to eight rows whose products all take our own kernels. Larger ones call
//! cuBLAS, which wants a workspace of its own while it is recorded, and their kernels are long enough
//! to hide the launches. A shape is recorded when it comes for the second time: most shapes of short
//! prompts never do, and by then every kernel has run once, so that recording loads nothing.

use super::adapters::AdapterShape;
use super::gpu::Graph;
use super::registers::Places;

/// What a step's launches depend on. Two steps of one shape differ in their tables' contents only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows.
    pub(crate) rows: usize,
    /// Tiles of attention.
    pub(crate) tiles: usize,
    /// Per layer: splits of attention and the tokens of each.
    pub(crate) splits: Vec<(usize, usize)>,
    /// Which rows carry adapters is in the tables; this is which sites have any.
    pub(crate) adapters: AdapterShape,
    /// Rows whose logits are wanted.
    pub(crate) outputs: usize,
    /// How many of them the device draws from.
    pub(crate) drawn: usize,
    /// Registers.
    pub(crate) at: Places,
    /// Tables.
    pub(crate) tables: StepTables,
}

/// Addresses of a step's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepTables {
    /// Token ids of the rows.
    pub(crate) tokens: u64,
    /// Their positions.
    pub(crate) positions: u64,
    /// Their slots.
    pub(crate) slots: u64,
    /// Their adapters.
    pub(crate) owners: u64,
    /// Tiles.
    pub(crate) tiles: u64,
    /// Rows of the outputs.
    pub(crate) out_rows: u64,
    /// How tokens are drawn.
    pub(crate) draws: u64,
    /// Block numbers. They come last, as their number grows with the sequences.
    pub(crate) blocks: u64,
}

/// Recorded steps, and those that were seen once. Bounded: the one that was not used for longest goes.
#[derive(Debug)]
pub(crate) struct Graphs {
    most: usize,
    /// The most recently used last.
    known: Vec<(Shape, Option<Graph>)>,
    counts: Counts,
}

/// What became of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Shapes that were recorded.
    pub(crate) captured: usize,
    /// Steps that ran as they were recorded.
    pub(crate) replayed: usize,
}

/// What is known of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing; it is remembered now.
    First,
    /// It came before, and is worth recording.
    Again,
    /// It is recorded.
    Recorded,
}

impl Graphs {
    /// At most so many; none for 0.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            known: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Whether steps are recorded at all.
    pub(crate) fn are_on(&self) -> bool {
        self.most > 0
    }

    /// Records nothing any more and forgets what was recorded.
    pub(crate) fn turn_off(&mut self) {
        self.most = 0;
        self.known.clear();
    }

    /// What is known of a shape, which becomes the most recently used.
    pub(crate) fn look(&mut self, shape: &Shape) -> Seen {
        if let Some(index) = self.known.iter().position(|(known, _)| known == shape) {
            let entry = self.known.remove(index);
            let seen = match entry.1 {
                Some(_) => Seen::Recorded,
                None => Seen::Again,
            };
            self.known.push(entry);
            return seen;
        }
        if self.known.len() >= self.most {
            self.known.remove(0);
        }
        self.known.push((shape.clone(), None));
        Seen::First
    }

    /// Keeps the recording of the shape that was looked up last.
    pub(crate) fn keep(&mut self, graph: Graph) {
        if let Some(last) = self.known.last_mut() {
            last.1 = Some(graph);
            self.counts.captured += 1;
        }
    }

    /// The recording of the shape that was looked up last, to be run.
    pub(crate) fn take(&mut self) -> Option<&Graph> {
        self.counts.replayed += 1;
        self.known.last().and_then(|(_, graph)| graph.as_ref())
    }

    /// What became of steps so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize) -> Shape {
        Shape {
            rows,
            tiles: 1,
            splits: vec![(1, 32)],
            adapters: AdapterShape::default(),
            outputs: 1,
            drawn: 0,
            at: Places::default(),
            tables: StepTables::default(),
        }
    }

    #[test]
    fn a_shape_is_worth_recording_when_it_comes_again_and_the_oldest_goes() {
        let mut graphs = Graphs::new(2);
        assert_eq!(graphs.look(&shape(1)), Seen::First);
        assert_eq!(graphs.look(&shape(1)), Seen::Again);
        graphs.keep(Graph::new(Box::new(())));
        assert_eq!(graphs.look(&shape(2)), Seen::First);
        assert_eq!(graphs.look(&shape(1)), Seen::Recorded);
        assert!(graphs.take().is_some());
        // Two are kept: the third takes the place of rows 2, which was not used since.
        assert_eq!(graphs.look(&shape(3)), Seen::First);
        assert_eq!(graphs.look(&shape(1)), Seen::Recorded);
        assert_eq!(graphs.look(&shape(2)), Seen::First);
        let counts = Counts {
            captured: 1,
            replayed: 1,
        };
        assert_eq!(graphs.counts(), counts);
        graphs.turn_off();
        assert!(!graphs.are_on());
    }

    #[test]
    fn every_part_of_a_shape_makes_it_another() {
        let one = shape(1);
        let changed: [fn(&mut Shape); 7] = [
            |s| s.tiles = 2,
            |s| s.splits[0].0 = 2,
            |s| s.adapters.places = 4,
            |s| s.outputs = 2,
            |s| s.drawn = 1,
            |s| s.at.logits = 256,
            |s| s.tables.blocks = 16,
        ];
        for change in changed {
            let mut other = one.clone();
            change(&mut other);
            assert_ne!(one, other);
        }
    }
}
