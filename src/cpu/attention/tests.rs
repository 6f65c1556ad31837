//! The kernel beside a plain twin: every score, one softmax over the whole context, in f64.

use half::f16;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::lanes::Element;
use super::segment::SEGMENT;
use super::{Head, Line, Query, Work, combine, lines};
use crate::kernels::Isa;
use crate::kv::{KvCache, KvShape, OFFSET, Stored, round};
use realign_model::{AttentionShape, BLOCK_TOKENS, KvType};

/// A sequence in a cache of two layers and two heads, in blocks of no order; slots behind its end
/// hold NaN.
struct Sequence {
    kv: KvCache,
    blocks: Vec<u32>,
}

const AT: (usize, usize) = (1, 1);

fn floats(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.5..1.5)).collect()
}

impl Sequence {
    fn new(kind: KvType, head_dim: usize, tokens: usize, rng: &mut ChaCha8Rng) -> Self {
        let shape = KvShape {
            layers: 2,
            heads: 2,
            head_dim,
        };
        let count = tokens.div_ceil(BLOCK_TOKENS) as u32;
        let mut kv = KvCache::new(shape, kind, count as usize + 2).unwrap();
        let blocks: Vec<u32> = (0..count).map(|i| (i * 7 + 1) % (count + 1)).collect();
        let distinct: std::collections::HashSet<u32> = blocks.iter().copied().collect();
        let blocks = match distinct.len() == blocks.len() {
            true => blocks,
            false => (0..count).rev().collect(),
        };
        match kind {
            KvType::F32 => fill::<f32>(&mut kv, (&blocks, head_dim, tokens), rng),
            KvType::F16 => fill::<f16>(&mut kv, (&blocks, head_dim, tokens), rng),
            KvType::Q8 => fill::<u8>(&mut kv, (&blocks, head_dim, tokens), rng),
        }
        Self { kv, blocks }
    }

    fn head<'a>(&'a self, isa: Isa, shape: &'a AttentionShape) -> Head<'a> {
        Head {
            isa,
            kv: &self.kv,
            at: AT,
            shape,
            upcoming: None,
        }
    }

    fn attend(&self, isa: Isa, shape: &AttentionShape, queries: &[Query]) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len() * shape.head_dim];
        let places = crate::team::Shards::new(&mut out);
        let place = |i: usize| {
            // SAFETY: every query has its own place.
            unsafe { places.part(i * shape.head_dim, shape.head_dim) }
        };
        let head = self.head(isa, shape);
        head.attend(&self.blocks, queries, &mut Work::default(), place);
        out
    }

    /// The same by segments, as threads would share them.
    fn by_segments(&self, isa: Isa, shape: &AttentionShape, query: Query) -> Vec<f32> {
        let lines = lines(shape.head_dim);
        let segments = query.seen.0 / SEGMENT..query.seen.1.div_ceil(SEGMENT);
        let mut states = vec![Line::ZERO; segments.len() * lines];
        for index in segments.clone().rev() {
            let at = (index - segments.start) * lines;
            let place = crate::team::Shards::new(&mut states);
            let place = |_: usize| {
                // SAFETY: there is one query.
                unsafe { place.part(at, lines) }
            };
            let segment = (&self.blocks[..], index);
            let head = self.head(isa, shape);
            head.attend_to_segment(segment, &[query], &mut Work::default(), place);
        }
        let mut out = vec![f32::NAN; shape.head_dim];
        combine(isa, (&states, lines), &mut Work::default(), &mut out);
        out
    }

    /// What a query should find.
    fn twin(&self, shape: &AttentionShape, query: &Query) -> Vec<f32> {
        match self.kv.kind {
            KvType::F32 => softmax(shape, query, |at| self.row::<f32>(at, f64::from)),
            KvType::F16 => softmax(shape, query, |at| self.row::<f16>(at, f16::to_f64)),
            KvType::Q8 => {
                let mut bytes = vec![0u8; query.q.len()];
                let (size, _) = round(query.q, &mut bytes);
                let q: Vec<f32> = bytes.iter().map(|q| f32::from(*q as i8) * size).collect();
                let query = Query { q: &q, ..*query };
                softmax(shape, &query, |at| self.rounded_row(at))
            }
        }
    }

    /// Key and value of the token at a position.
    fn row<E: Element>(&self, position: usize, wide: impl Fn(E) -> f64) -> [Vec<f64>; 2] {
        let (d, columns) = (self.kv.head_dim, self.kv.columns());
        let slot = position % BLOCK_TOKENS;
        let block = self.blocks[position / BLOCK_TOKENS];
        let (keys, values) = self.kv.head::<E>(AT.0, block, AT.1);
        let key = (0..d).map(|i| wide(keys[i * BLOCK_TOKENS + slot]));
        let value = (0..d).map(|i| wide(values[slot * columns + i]));
        [key.collect(), value.collect()]
    }

    fn rounded_row(&self, position: usize) -> [Vec<f64>; 2] {
        let (d, vectors) = (self.kv.head_dim, self.kv.columns() / BLOCK_TOKENS);
        let slot = position % BLOCK_TOKENS;
        let block = self.blocks[position / BLOCK_TOKENS];
        let part = self.kv.eight(AT.0, block, AT.1);
        let steps = [part.key_scales()[slot], part.value_scales()[slot]].map(f64::from);
        let key = |i: usize| i32::from(part.keys[i / 4][4 * slot + i % 4]) - OFFSET;
        let value =
            |i: usize| part.values[slot / 4 * vectors + i / 16][i % 16 * 4 + slot % 4] as i8;
        [
            (0..d).map(|i| f64::from(key(i)) * steps[0]).collect(),
            (0..d).map(|i| f64::from(value(i)) * steps[1]).collect(),
        ]
    }
}

/// Every score, one softmax over the whole context, and the mean of the values.
fn softmax(
    shape: &AttentionShape,
    query: &Query,
    row: impl Fn(usize) -> [Vec<f64>; 2],
) -> Vec<f32> {
    let rows: Vec<_> = (query.seen.0..query.seen.1).map(row).collect();
    let score = |[key, _]: &[Vec<f64>; 2]| {
        let products = key.iter().zip(query.q).map(|(k, q)| k * f64::from(*q));
        let score = products.sum::<f64>() * f64::from(shape.scale);
        shape.cap.map_or(score, |cap| {
            f64::from(cap) * (score / f64::from(cap)).tanh()
        })
    };
    let scores: Vec<f64> = rows.iter().map(score).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0f64; shape.head_dim];
    for (weight, [_, value]) in weights.iter().zip(&rows) {
        for (out, v) in out.iter_mut().zip(value) {
            *out += weight / total * v;
        }
    }
    out.iter().map(|x| *x as f32).collect()
}

fn fill<E: Stored>(
    kv: &mut KvCache,
    (blocks, head_dim, tokens): (&[u32], usize, usize),
    rng: &mut ChaCha8Rng,
) {
    let shards = kv.shards::<E>();
    for position in 0..blocks.len() * BLOCK_TOKENS {
        let block = blocks[position / BLOCK_TOKENS];
        // SAFETY: one part at a time.
        let part = unsafe { shards.head(AT.0, block, AT.1) };
        let (key, value) = match position < tokens {
            true => (floats(rng, head_dim), floats(rng, head_dim)),
            false => (vec![f32::NAN; head_dim], vec![f32::NAN; head_dim]),
        };
        E::write(part, position % BLOCK_TOKENS, &key, &value);
    }
}

fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::available()
}

/// Queries of the last rows, `group` for each, which score widely.
fn questions(
    (rows, group): (usize, usize),
    tokens: usize,
    shape: &AttentionShape,
    rng: &mut ChaCha8Rng,
) -> Vec<(Vec<f32>, (usize, usize))> {
    let first = tokens - rows.min(tokens);
    let positions = (first..tokens).flat_map(|p| std::iter::repeat_n(p, group));
    positions
        .map(|p| {
            let mut q = floats(rng, shape.head_dim);
            q.iter_mut().for_each(|q| *q *= 4.0);
            (q, (shape.first_visible(p), p + 1))
        })
        .collect()
}

fn shapes() -> Vec<AttentionShape> {
    let with = |head_dim, cap, window| AttentionShape {
        cap,
        window,
        ..AttentionShape::full(head_dim)
    };
    let mut all: Vec<_> = [8, 16, 20, 64, 80, 96, 128, 256]
        .map(|head_dim| with(head_dim, None, None))
        .into();
    all.extend([1, 17, 64, 100, 300].map(|window| with(32, None, Some(window))));
    all.extend([with(64, Some(5.0), None), with(256, Some(50.0), Some(90))]);
    all
}

const DEPTHS: [usize; 12] = [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 600];

#[test]
fn every_instruction_set_attends_as_the_twin_does() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sizes = [(1, 1), (1, 3), (1, 7), (3, 4), (16, 2)];
    for (n, shape) in shapes().iter().enumerate() {
        for (m, tokens) in DEPTHS.into_iter().enumerate() {
            let (kind, size) = (KvType::ALL[(n + m) % 3].1, sizes[(n + m) % sizes.len()]);
            // Weights beside 8 bits are rounded to 16.
            let tolerance = if kind == KvType::Q8 { 2e-4 } else { 2e-5 };
            let sequence = Sequence::new(kind, shape.head_dim, tokens, &mut rng);
            let asked = questions(size, tokens, shape, &mut rng);
            let queries: Vec<Query> = asked
                .iter()
                .map(|(q, seen)| Query { q, seen: *seen })
                .collect();
            for isa in instruction_sets() {
                let got = sequence.attend(isa, shape, &queries);
                for (query, got) in queries.iter().zip(got.chunks(shape.head_dim)) {
                    let expected = sequence.twin(shape, query);
                    for (a, b) in got.iter().zip(&expected) {
                        let what = || format!("{isa:?} {shape:?} {kind:?} {tokens} {size:?}");
                        assert!(
                            (a - b).abs() < tolerance,
                            "{}: {a}, the twin has {b}",
                            what()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_querys_bits_depend_on_nothing_but_its_context() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let kinds = [KvType::F16, KvType::Q8];
    for (shape, kind) in shapes()
        .into_iter()
        .flat_map(|s| kinds.map(|kind| (s, kind)))
    {
        let sequence = Sequence::new(kind, shape.head_dim, 601, &mut rng);
        let asked = questions((23, 3), 601, &shape, &mut rng);
        let queries: Vec<Query> = asked
            .iter()
            .map(|(q, seen)| Query { q, seen: *seen })
            .collect();
        for isa in instruction_sets() {
            let all = sequence.attend(isa, &shape, &queries);
            for (i, together) in all.chunks(shape.head_dim).enumerate().step_by(5) {
                let alone = sequence.attend(isa, &shape, &queries[i..=i]);
                assert_eq!(
                    together, alone,
                    "{isa:?} {shape:?} {kind:?}, query {i} alone"
                );
                let cut = sequence.by_segments(isa, &shape, queries[i]);
                assert_eq!(
                    together, cut,
                    "{isa:?} {shape:?} {kind:?}, query {i} by segments"
                );
            }
        }
        #[cfg(target_arch = "x86_64")]
        if Isa::detect() == Isa::Avx512 {
            let [a, b] = [Isa::Avx2, Isa::Avx512].map(|isa| sequence.attend(isa, &shape, &queries));
            assert_eq!(a, b, "{shape:?} {kind:?}: AVX2 and AVX-512 round alike");
        }
    }
}

#[test]
fn eight_bits_stay_near_what_32_say() {
    for (shape, tokens) in
        [(16, 40), (64, 700), (128, 300), (256, 700)].map(|(d, n)| (AttentionShape::full(d), n))
    {
        let [exact, rounded] = [KvType::F32, KvType::Q8].map(|kind| {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let sequence = Sequence::new(kind, shape.head_dim, tokens, &mut rng);
            let asked = questions((4, 3), tokens, &shape, &mut rng);
            let queries: Vec<Query> = asked
                .iter()
                .map(|(q, seen)| Query { q, seen: *seen })
                .collect();
            sequence.attend(Isa::detect(), &shape, &queries)
        });
        let distance = |a: &[f32], b: &[f32]| {
            let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let relative = distance(&exact, &rounded) / distance(&exact, &vec![0.0; exact.len()]);
        println!("{shape:?} {tokens}: {relative}");
        assert!(relative < 0.02, "{shape:?}: {relative}");
    }
}

/// The worst case of weights that share a scale: one token has nearly all of the weight and a tiny value.
#[test]
fn a_token_that_takes_all_weight_leaves_the_others_their_values() {
    let shape = AttentionShape::full(64);
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let q = floats(&mut rng, 64);
    let towards = |score: f32| -> Vec<f32> {
        let squares: f32 = q.iter().map(|q| q * q).sum();
        q.iter()
            .map(|q| q * score / squares / shape.scale)
            .collect()
    };
    let mut sequence = Sequence::new(KvType::Q8, 64, 256, &mut rng);
    let blocks = sequence.blocks.clone();
    for lead in [4.0, 8.0, 12.0] {
        let shards = sequence.kv.shards::<u8>();
        for position in 0..256 {
            // SAFETY: one part at a time.
            let part = unsafe { shards.head(AT.0, blocks[position / BLOCK_TOKENS], AT.1) };
            let (score, size) = if position == 0 {
                (lead, 0.001)
            } else {
                (0.0, 1.0)
            };
            let value: Vec<f32> = floats(&mut rng, 64).iter().map(|v| v * size).collect();
            u8::write(part, position % BLOCK_TOKENS, &towards(score), &value);
        }
        let query = Query {
            q: &q,
            seen: (0, 256),
        };
        let got = sequence.attend(Isa::detect(), &shape, &[query]);
        for (a, b) in got.iter().zip(&sequence.twin(&shape, &query)) {
            assert!(
                (a - b).abs() < 256.0 / 131_072.0 * 1.5,
                "{lead}: {a}, the twin has {b}"
            );
        }
    }
}

#[test]
fn what_is_not_finite_is_seen_and_only_by_those_who_look() {
    for isa in instruction_sets() {
        for (bad, in_key) in [f32::NAN, f32::INFINITY]
            .map(|bad| [(bad, true), (bad, false)])
            .as_flattened()
        {
            is_seen::<f32>(KvType::F32, isa, (*bad, *in_key));
            is_seen::<u8>(KvType::Q8, isa, (*bad, *in_key));
        }
    }
}

/// One token's key or value is not finite: queries that see it find that.
fn is_seen<E: Stored>(kind: KvType, isa: Isa, (bad, in_key): (f32, bool)) {
    let shape = AttentionShape::full(32);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut sequence = Sequence::new(kind, 32, 300, &mut rng);
    let q = floats(&mut rng, 32);
    let block = sequence.blocks[100 / BLOCK_TOKENS];
    let shards = sequence.kv.shards::<E>();
    // SAFETY: the only part.
    let part = unsafe { shards.head(AT.0, block, AT.1) };
    let (key, value) = if in_key { (bad, 0.0) } else { (0.0, bad) };
    E::write(part, 100 % BLOCK_TOKENS, &[key; 32], &[value; 32]);
    let ask = |to| {
        let query = Query {
            q: &q,
            seen: (0, to),
        };
        sequence.attend(isa, &shape, &[query])
    };
    let what = format!("{isa:?} {kind:?} {bad} {in_key}");
    assert!(ask(100).iter().all(|x| x.is_finite()), "{what}");
    for to in [101, 300] {
        assert!(!ask(to).iter().any(|x| x.is_finite()), "{what} {to}");
    }
}
