//! Attention of a step's rows: pieces of work on the executor's threads.

use super::attention::{Head, Line, Merge, Part, Plan, Query, Upcoming, Work, combine, lines};
use super::executor::{CpuExecutor, Run};
use super::kernels::Isa;
use super::kv::KvCache;
use super::team::Shards;
use realign_model::{AttentionShape, PagedSequence};

/// Where a step's queries and results lie.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Queries, (rows, heads · head_dim).
    q: &'a [f32],
    shape: &'a AttentionShape,
    head_dim: usize,
    kv_heads: usize,
    /// Query heads of a KV head.
    group: usize,
}

impl<'a> Rows<'a> {
    /// Columns of a row.
    fn width(self) -> usize {
        self.kv_heads * self.group * self.head_dim
    }

    /// Where query head `i` of `head` in a row begins.
    fn place(self, row: usize, head: usize, i: usize) -> usize {
        row * self.width() + (head * self.group + i) * self.head_dim
    }

    /// Queries of `head` in a row, whose token is at `position`.
    fn queries(self, row: usize, position: usize, head: usize) -> impl Iterator<Item = Query<'a>> {
        (0..self.group).map(move |i| Query {
            q: &self.q[self.place(row, head, i)..][..self.head_dim],
            seen: (self.shape.first_visible(position), position + 1),
        })
    }
}

/// A layer's attention while it runs.
struct Attention<'a> {
    isa: Isa,
    kv: &'a KvCache,
    layer: usize,
    rows: Rows<'a>,
    runs: &'a [Run],
    sequences: &'a [PagedSequence],
    plan: &'a Plan,
    threads: usize,
    /// Results, (rows, heads · head_dim).
    out: Shards<'a, f32>,
    /// States of rows whose context is cut.
    states: Shards<'a, Line>,
    /// One for each thread.
    work: Shards<'a, Work>,
}

/// m ← attention(q) over the cache of a layer.
pub(super) fn attend(executor: &mut CpuExecutor, layer: usize, shape: &AttentionShape) {
    let spec = &executor.model.spec;
    let r = &mut executor.registers;
    let rows = Rows {
        q: &r.qkv[0],
        shape,
        head_dim: spec.head_dim,
        kv_heads: spec.kv_heads,
        group: spec.heads / spec.kv_heads,
    };
    r.m.reshape(r.rows, rows.width());
    let plan = r.plans.of((&r.runs, &r.sequences), shape, rows.group);
    let states = plan.states * spec.heads * lines(spec.head_dim);
    r.states.resize(states, Line::ZERO);
    let all = Attention {
        isa: executor.isa,
        kv: &executor.kv,
        layer,
        rows,
        runs: &r.runs,
        sequences: &r.sequences,
        plan,
        threads: executor.team.threads(),
        out: Shards::new(&mut r.m.values),
        states: Shards::new(&mut r.states),
        work: Shards::new(&mut r.work),
    };
    let pieces = (plan.whole.len() + plan.parts.len()) * rows.kv_heads;
    let team = &mut executor.team;
    team.run(pieces, |thread, piece| all.piece(thread, piece));
    let merges = plan.merges.len() * rows.kv_heads;
    team.run(merges, |thread, piece| all.merge(thread, piece));
}

impl Attention<'_> {
    /// A thread's buffers.
    ///
    /// # Safety
    /// At most once for each piece of work.
    #[allow(clippy::mut_from_ref)] // the contract above is what makes it sound
    unsafe fn work(&self, thread: usize) -> &mut Work {
        // SAFETY: a thread has one of them, and works on one piece at a time.
        unsafe { &mut self.work.part(thread, 1)[0] }
    }

    fn head(&self, head: usize) -> Head<'_> {
        Head {
            isa: self.isa,
            kv: self.kv,
            at: (self.layer, head),
            shape: self.rows.shape,
            upcoming: None,
        }
    }

    fn blocks(&self, run: &Run) -> &[u32] {
        &self.sequences[run.sequence].blocks
    }

    fn piece(&self, thread: usize, piece: usize) {
        // Segments of one head follow each other, as the kernel prefetches them.
        let (whole, parts) = (&self.plan.whole, &self.plan.parts);
        let runs = whole.len() * self.rows.kv_heads;
        // SAFETY: once for this piece.
        let work = unsafe { self.work(thread) };
        match piece.checked_sub(runs) {
            None => self.whole(
                &self.runs[whole[piece % whole.len()]],
                piece / whole.len(),
                work,
            ),
            Some(piece) => {
                let head = Head {
                    upcoming: self.upcoming(piece + self.threads),
                    ..self.head(piece / parts.len())
                };
                self.part(&parts[piece % parts.len()], head, work);
            }
        }
    }

    /// The segment of a piece that a thread may take soon.
    fn upcoming(&self, piece: usize) -> Option<Upcoming<'_>> {
        let parts = &self.plan.parts;
        let (part, head) = (&parts[piece % parts.len()], piece / parts.len());
        let run = &self.runs[self.plan.merges[*part.readers.first()?].run];
        (head < self.rows.kv_heads).then(|| Upcoming {
            blocks: self.blocks(run),
            segment: part.segment,
            end: run.position + run.rows,
            at: (self.layer, head),
        })
    }

    /// A run's rows over all that they see.
    fn whole(&self, run: &Run, head: usize, work: &mut Work) {
        let rows = self.rows;
        let queries: Vec<Query> = (0..run.rows)
            .flat_map(|i| rows.queries(run.row + i, run.position + i, head))
            .collect();
        let place = |i: usize| {
            let at = rows.place(run.row + i / rows.group, head, i % rows.group);
            // SAFETY: each (row, head) belongs to one piece.
            unsafe { self.out.part(at, rows.head_dim) }
        };
        self.head(head)
            .attend(self.blocks(run), &queries, work, place);
    }

    /// A segment, for the single rows that read it.
    fn part(&self, part: &Part, head: Head, work: &mut Work) {
        let rows = self.rows;
        let merge = |reader: usize| &self.plan.merges[part.readers[reader]];
        let run = |reader: usize| &self.runs[merge(reader).run];
        let queries: Vec<Query> = (0..part.readers.len())
            .map(run)
            .flat_map(|run| rows.queries(run.row, run.position, head.at.1))
            .collect();
        let place = |i: usize| {
            let merge = merge(i / rows.group);
            let skipped = part.segment - merge.segments.start;
            let (at, lines) = self.states(merge, head.at.1, i % rows.group);
            // SAFETY: each (row, head, segment) belongs to one piece.
            unsafe { self.states.part(at + skipped * lines, lines) }
        };
        let segment = (self.blocks(run(0)), part.segment);
        head.attend_to_segment(segment, &queries, work, place);
    }

    /// Puts a row's segments together.
    fn merge(&self, thread: usize, piece: usize) {
        let rows = self.rows;
        let (merge, head) = (
            &self.plan.merges[piece / rows.kv_heads],
            piece % rows.kv_heads,
        );
        // SAFETY: once for this piece.
        let work = unsafe { self.work(thread) };
        for i in 0..rows.group {
            let (at, lines) = self.states(merge, head, i);
            let out = rows.place(self.runs[merge.run].row, head, i);
            // SAFETY: each (row, head) belongs to one piece, and the parts are done.
            let (states, out) = unsafe {
                let states = self.states.part(at, merge.segments.len() * lines);
                (states, self.out.part(out, rows.head_dim))
            };
            combine(self.isa, (states, lines), work, out);
        }
    }

    /// Where the states of query head `i` of `head` begin for a row, and the lines of each.
    fn states(&self, merge: &Merge, head: usize, i: usize) -> (usize, usize) {
        let (rows, lines) = (self.rows, lines(self.rows.head_dim));
        let before = merge.first * rows.kv_heads * rows.group;
        let within = (head * rows.group + i) * merge.segments.len();
        ((before + within) * lines, lines)
    }
}
