//! Attention over the paged cache: one pass over keys and values with an online softmax.
//!
//! The context is cut at fixed positions into segments, which are merged in their order. A query's
//! arithmetic is a function of its position alone: neither the queries that it shares a pass with,
//! nor the thread that computes a segment, nor whether it is part of a prompt changes a bit.

mod ahead;
#[cfg(target_arch = "aarch64")]
mod arm;
mod eight;
mod lanes;
mod plan;
mod segment;
mod state;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::f16;

use self::ahead::Ahead;
#[cfg(target_arch = "aarch64")]
use self::arm::Neon;
use self::eight::Context8;
use self::lanes::{LANES, Lanes, Plain};
use self::segment::{Context, SEGMENT, finish, merge};
use self::state::clear;
#[cfg(target_arch = "x86_64")]
use self::x86::{Avx2, Avx512};
use super::kernels::Isa;
use super::kv::KvCache;
use realign_model::{AttentionShape, KvType};

pub(crate) use self::ahead::Upcoming;
pub(crate) use self::lanes::Element;
pub(crate) use self::plan::{Merge, Part, Plan, Plans};
pub(crate) use self::state::{Line, Work, lines};

/// One query: its head's columns and the tokens it sees.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    /// (head_dim).
    pub(crate) q: &'a [f32],
    /// First and one past the last visible position.
    pub(crate) seen: (usize, usize),
}

/// One KV head of a layer, and how it is read.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// The instructions to use.
    pub(crate) isa: Isa,
    /// All keys and values.
    pub(crate) kv: &'a KvCache,
    /// Layer and head.
    pub(crate) at: (usize, usize),
    /// How it scores.
    pub(crate) shape: &'a AttentionShape,
    /// What this thread will probably read after a segment.
    pub(crate) upcoming: Option<Upcoming<'a>>,
}

impl<'a> Head<'a> {
    /// Attends with any number of queries of one sequence: `out(i)` gives the place of query `i`'s
    /// result, (head_dim).
    pub(crate) fn attend<'o>(
        mut self,
        blocks: &'a [u32],
        queries: &[Query],
        work: &mut Work,
        out: impl Fn(usize) -> &'o mut [f32],
    ) {
        self.take(queries, work);
        let begin = queries.iter().map(|q| q.seen.0).min().unwrap_or(0);
        let end = queries.iter().map(|q| q.seen.1).max().unwrap_or(0);
        work.totals.chunks_exact_mut(work.stride).for_each(clear);
        for index in begin / SEGMENT..end.div_ceil(SEGMENT) {
            self.upcoming = Some(Upcoming {
                blocks,
                segment: index + 1,
                end,
                at: self.at,
            });
            self.segment(blocks, index, work);
            let totals = work.totals.chunks_exact_mut(work.stride);
            for (total, part) in totals.zip(work.states.chunks_exact(work.stride)) {
                add(self.isa, total, part);
            }
        }
        for (i, total) in work.totals.chunks_exact(work.stride).enumerate() {
            complete(self.isa, total, out(i));
        }
    }

    /// Attends to one segment, whose blocks all queries share: `out(i)` gives the place of query
    /// `i`'s state for [`combine`].
    pub(crate) fn attend_to_segment<'o>(
        self,
        (blocks, index): (&[u32], usize),
        queries: &[Query],
        work: &mut Work,
        out: impl Fn(usize) -> &'o mut [Line],
    ) {
        self.take(queries, work);
        self.segment(blocks, index, work);
        for (i, state) in work.states.chunks_exact(work.stride).enumerate() {
            out(i).copy_from_slice(state);
        }
    }

    fn take(self, queries: &[Query], work: &mut Work) {
        let columns = (self.kv.head_dim, self.shape.scale);
        let query = |i: usize| (queries[i].q, queries[i].seen);
        match self.kv.kind {
            KvType::F32 | KvType::F16 => work.take(queries.len(), columns, query),
            KvType::Q8 => work.take_rounded(queries.len(), columns, query),
        }
    }

    fn segment(self, blocks: &[u32], index: usize, work: &mut Work) {
        match self.kv.kind {
            KvType::F32 => self.segment_of::<f32>(blocks, index, work),
            KvType::F16 => self.segment_of::<f16>(blocks, index, work),
            KvType::Q8 => self.segment_of_eight(blocks, index, work),
        }
    }

    fn segment_of_eight(self, blocks: &[u32], index: usize, work: &mut Work) {
        let (layer, head) = self.at;
        let context = Context8 {
            block: &|i| self.kv.eight(layer, blocks[i], head),
            count: blocks.len(),
            vectors: self.kv.columns() / LANES,
            cap: self.shape.cap,
        };
        let mut ahead = Ahead::new(self.kv, self.upcoming);
        segment_of_eight(self.isa, &context, index, work, &mut ahead);
    }

    fn segment_of<E: Element>(self, blocks: &[u32], index: usize, work: &mut Work) {
        let (layer, head) = self.at;
        let context = Context::<E> {
            block: &|i| self.kv.head(layer, blocks[i], head),
            columns: self.kv.columns(),
            cap: self.shape.cap,
        };
        let mut ahead = Ahead::new(self.kv, self.upcoming);
        segment(self.isa, &context, index, work, &mut ahead);
    }
}

/// Defines a function that runs its body with an instruction set's lanes.
macro_rules! with_lanes {
    (fn $name:ident$(<$e:ident>)?($($arg:ident: $ty:ty),*) with $lanes:ident $body:block) => {
        fn $name$(<$e: Element>)?(isa: Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body<$lanes: Lanes $(, $e: Element)?>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
                fn avx512$(<$e: Element>)?($($arg: $ty),*) { body::<Avx512 $(, $e)?>($($arg),*) }

                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2$(<$e: Element>)?($($arg: $ty),*) { body::<Avx2 $(, $e)?>($($arg),*) }

                // SAFETY: an `Isa` comes from detection or, in tests, is below what was detected.
                match isa {
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    Isa::Avx2 | Isa::AvxVnni => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            match isa {
                Isa::Neon | Isa::Dotprod => return body::<Neon $(, $e)?>($($arg),*),
                Isa::Portable => {}
            }
            body::<Plain $(, $e)?>($($arg),*);
        }
    };
}

with_lanes! {
    fn segment<E>(context: &Context<E>, index: usize, work: &mut Work, ahead: &mut Ahead) with V {
        context.segment::<V>(index, work, ahead);
    }
}

with_lanes! {
    fn segment_of_eight(context: &Context8, index: usize, work: &mut Work, ahead: &mut Ahead) with V {
        context.segment::<V>(index, work, ahead);
    }
}

with_lanes! {
    fn add(total: &mut [Line], part: &[Line]) with V {
        merge::<V>(total, part);
    }
}

with_lanes! {
    fn complete(total: &[Line], out: &mut [f32]) with V {
        finish::<V>(total, out);
    }
}

/// Merges a query's states of so many lines, one for each segment that it sees, into its result.
pub(crate) fn combine(
    isa: Isa,
    (states, lines): (&[Line], usize),
    work: &mut Work,
    out: &mut [f32],
) {
    work.totals.resize(lines, Line::ZERO);
    clear(&mut work.totals);
    for part in states.chunks_exact(lines) {
        add(isa, &mut work.totals, part);
    }
    complete(isa, &work.totals, out);
}
