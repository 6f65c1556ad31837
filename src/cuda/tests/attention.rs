//! Attention over the paged cache against sums written out.

use candle_core::{Device, Result, Tensor};

use super::{ELEMENTS, UnderTest, devices, random, rounded, tolerance};
use crate::gpu::Element;
use crate::launches::{self, Attend, Heads};
use crate::tables::{self, Upload};
use realign_model::{AttentionShape, PagedSequence};

const BLOCKS: usize = 64;

struct Case {
    heads: Heads,
    cap: Option<f32>,
    window: Option<usize>,
    /// (rows, tokens before them).
    sequences: &'static [(usize, usize)],
    /// Blocks that fill the imagined device: more make more splits.
    wanted: usize,
}

fn heads(queries: usize, kv: usize, dim: usize) -> Heads {
    Heads { queries, kv, dim }
}

#[test]
fn every_head_width_group_cap_window_and_split_agrees() -> Result<()> {
    let mixed: &[(usize, usize)] = &[(1, 0), (1, 300), (5, 40), (1, 31)];
    let plain = |heads| Case {
        heads,
        cap: None,
        window: None,
        sequences: mixed,
        wanted: 1,
    };
    let cases = [
        plain(heads(2, 2, 32)),
        plain(heads(4, 2, 64)),
        plain(heads(3, 1, 96)),
        plain(heads(7, 1, 128)),
        plain(heads(2, 1, 256)),
        // More query heads than a block takes.
        plain(heads(20, 1, 64)),
        plain(heads(9, 1, 256)),
        Case {
            wanted: 64,
            ..plain(heads(4, 2, 64))
        },
        Case {
            cap: Some(5.0),
            window: Some(33),
            wanted: 40,
            ..plain(heads(4, 2, 64))
        },
        Case {
            window: Some(1),
            ..plain(heads(2, 1, 32))
        },
        Case {
            window: Some(128),
            wanted: 100,
            ..plain(heads(7, 1, 128))
        },
    ];
    for test in devices() {
        for case in &cases {
            for element in ELEMENTS {
                agrees(&test, case, element)?;
            }
        }
    }
    Ok(())
}

/// Sequences whose blocks lie about the pool in no order.
fn sequences(case: &Case) -> Vec<PagedSequence> {
    let (mut start, mut next) = (0, 0);
    let sequence = |&(rows, cached): &(usize, usize)| {
        let count = (cached + rows).div_ceil(16);
        let blocks = (next..next + count)
            .map(|i| (i * 37 % BLOCKS) as u32)
            .collect();
        next += count;
        start += rows;
        PagedSequence {
            start: start - rows,
            rows,
            cached,
            blocks,
        }
    };
    case.sequences.iter().map(sequence).collect()
}

fn agrees(test: &UnderTest, case: &Case, element: Element) -> Result<()> {
    let (heads, sequences) = (case.heads, sequences(case));
    let rows: usize = sequences.iter().map(|s| s.rows).sum();
    let width = heads.kv * heads.dim;
    let qkv = random((rows, heads.width()))?;
    let (keys, values) = (random((BLOCKS * 16, width))?, random((BLOCKS * 16, width))?);
    let shape = AttentionShape {
        cap: case.cap,
        window: case.window,
        ..AttentionShape::full(heads.dim)
    };
    let most = tables::block_shape(heads.dim, heads.queries / heads.kv)
        .unwrap()
        .1;
    let (tiles, blocks) = tables::tiles(&sequences, most);
    let mut upload = Upload::default();
    let (tile_at, block_at) = (upload.tiles(&tiles), upload.numbers(&blocks));
    let table = test.bytes(&upload.bytes)?;
    let (count, part) = tables::attention_blocks(tiles.len(), heads);
    let (splits, split_tokens) = tables::splits(&tiles, case.window, count, case.wanted);
    let sums = test.room(
        rows * heads.queries * splits * (heads.dim + 2),
        Element::F32,
    )?;
    let m = test.room(rows * heads.queries * heads.dim, element)?;
    let at = [
        test.put(&qkv, Element::F32)?,
        test.put(&keys, element)?,
        test.put(&values, element)?,
    ];
    test.gpu.launch(&launches::attention(
        element,
        heads,
        &Attend {
            qkv: at[0].address,
            cache: [at[1].address, at[2].address],
            tiles: table.address + tile_at,
            tile_count: tiles.len(),
            blocks: table.address + block_at,
            scale: shape.scale,
            cap: case.cap.unwrap_or(0.0),
            window: case.window.unwrap_or(0),
            part,
            splits,
            split_tokens,
            partial: sums.address,
        },
    ))?;
    let merge = [sums.address, m.address];
    test.gpu.launch(&launches::attention_merge(
        element,
        heads,
        [rows, splits],
        merge,
    ))?;
    let (keys, values) = (rounded(&keys, element)?, rounded(&values, element)?);
    let expected = written_out(&qkv, (&keys, &values), &sequences, heads, shape)?;
    let got = test.get(&m, (rows, heads.queries * heads.dim), element)?;
    let what = format!("attention of {heads:?}, {splits} splits");
    test.same(&what, &got, &expected, tolerance(element).max(1e-4))
}

fn written_out(
    qkv: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    sequences: &[PagedSequence],
    heads: Heads,
    shape: AttentionShape,
) -> Result<Tensor> {
    let (qkv, keys) = (qkv.to_vec2::<f32>()?, keys.to_vec2::<f32>()?);
    let values = values.to_vec2::<f32>()?;
    let (d, group) = (heads.dim, heads.queries / heads.kv);
    let mut out = Vec::new();
    for s in sequences {
        for i in 0..s.rows {
            let position = s.cached + i;
            for head in 0..heads.queries {
                let (q, column) = (&qkv[s.start + i][head * d..][..d], head / group * d);
                let slot = |t: usize| s.blocks[t / 16] as usize * 16 + t % 16;
                let seen: Vec<usize> = (shape.first_visible(position)..=position).collect();
                let score = |t: &usize| {
                    let key = &keys[slot(*t)][column..][..d];
                    let dot: f32 = q.iter().zip(key).map(|(a, b)| a * b).sum();
                    let scaled = f64::from(dot * shape.scale);
                    shape.cap.map_or(scaled, |cap| {
                        f64::from(cap) * (scaled / f64::from(cap)).tanh()
                    })
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                let mixed = |c: usize| -> f32 {
                    let sum: f64 = seen
                        .iter()
                        .zip(&scores)
                        .map(|(t, s)| s.exp() * f64::from(values[slot(*t)][column + c]))
                        .sum();
                    (sum / total) as f32
                };
                out.extend((0..d).map(mixed));
            }
        }
    }
    Tensor::from_vec(out, (qkv.len(), heads.queries * d), &Device::Cpu)
}
