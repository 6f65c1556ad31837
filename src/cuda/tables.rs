//! What a step tells the device about its rows, in one upload. Pure.

use super::launches::{CHUNK, Heads, attention_pairs};
use realign_model::BLOCK_TOKENS;
use realign_model::PagedSequence;
use realign_model::draw::DrawRequest;

/// Rows of one sequence that a block of attention takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// First row in the step.
    pub(crate) row: usize,
    /// How many.
    pub(crate) rows: usize,
    /// Position of the first.
    pub(crate) cached: usize,
    /// Where the sequence's blocks begin in the step's list.
    pub(crate) table: usize,
}

/// Query heads and rows that a block takes, given the heads that share keys.
pub(crate) fn block_shape(head_dim: usize, group: usize) -> Option<(usize, usize)> {
    let pairs = attention_pairs(head_dim)?;
    let part = group.min(pairs);
    Some((part, pairs / part))
}

/// Cuts sequences into tiles of up to `most` rows, and lists their blocks one after the other.
pub(crate) fn tiles(sequences: &[PagedSequence], most: usize) -> (Vec<Tile>, Vec<u32>) {
    let (mut tiles, mut blocks) = (Vec::new(), Vec::new());
    for s in sequences {
        let mut done = 0;
        while done < s.rows {
            let rows = most.min(s.rows - done);
            tiles.push(Tile {
                row: s.start + done,
                rows,
                cached: s.cached + done,
                table: blocks.len(),
            });
            done += rows;
        }
        let used = (s.cached + s.rows).div_ceil(BLOCK_TOKENS);
        blocks.extend_from_slice(&s.blocks[..used]);
    }
    (tiles, blocks)
}

/// Blocks of attention per split, and query heads that each takes.
pub(crate) fn attention_blocks(tiles: usize, heads: Heads) -> (usize, usize) {
    let group = heads.queries / heads.kv;
    // `weights::check` has refused heads without a kernel.
    let (part, _) = block_shape(heads.dim, group).unwrap_or((1, 1));
    (tiles * heads.kv * group.div_ceil(part), part)
}

/// Tokens, rounded up to one of eight sizes between powers of two: a sequence that grows by a token
/// would else cut attention, and with it a step's launches, differently every few steps.
fn coarse(tokens: usize) -> usize {
    let step = (1 << tokens.max(1).ilog2()) / 8;
    tokens.next_multiple_of(step.max(4 * CHUNK))
}

/// The most splits that [`splits`] gives for any window.
pub(crate) fn most_splits(tiles: &[Tile], blocks: usize, wanted: usize) -> usize {
    let tokens = coarse(tiles.iter().map(|t| t.cached + t.rows).max().unwrap_or(1));
    (wanted / blocks.max(1)).clamp(1, tokens.div_ceil(4 * CHUNK).max(1))
}

/// How tokens are split: (splits, tokens of each), so that `blocks` blocks without splits become
/// about `wanted`, and no split is shorter than four chunks. Those beyond a sequence's end are empty.
pub(crate) fn splits(
    tiles: &[Tile],
    window: Option<usize>,
    blocks: usize,
    wanted: usize,
) -> (usize, usize) {
    let seen = |t: &Tile| {
        let last = t.cached + t.rows;
        let begin = window.map_or(0, |w| (t.cached + 1).saturating_sub(w));
        last - begin / CHUNK * CHUNK
    };
    let tokens = coarse(tiles.iter().map(seen).max().unwrap_or(1));
    let most = tokens.div_ceil(4 * CHUNK).max(1);
    let splits = (wanted / blocks.max(1)).clamp(1, most);
    let each = tokens.div_ceil(splits).next_multiple_of(CHUNK);
    (tokens.div_ceil(each), each)
}

/// Where each row's keys and values go.
pub(crate) fn slots(sequences: &[PagedSequence], rows: usize) -> Vec<u32> {
    let mut slots = vec![0; rows];
    for s in sequences {
        for i in 0..s.rows {
            let position = s.cached + i;
            let block = s.blocks[position / BLOCK_TOKENS];
            slots[s.start + i] = block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32;
        }
    }
    slots
}

/// Bytes to upload, every part at a multiple of 16.
#[derive(Debug, Default)]
pub struct Upload {
    /// What to copy.
    pub bytes: Vec<u8>,
}

impl Upload {
    fn part(&mut self, bytes: impl IntoIterator<Item = u8>) -> u64 {
        let at = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(at, 0);
        self.bytes.extend(bytes);
        at as u64
    }

    /// Adds unsigned numbers; where they begin.
    pub fn numbers(&mut self, numbers: &[u32]) -> u64 {
        self.part(numbers.iter().flat_map(|n| n.to_le_bytes()))
    }

    /// Adds signed numbers.
    pub(crate) fn signed(&mut self, numbers: &[i32]) -> u64 {
        self.part(numbers.iter().flat_map(|n| n.to_le_bytes()))
    }

    /// Adds tiles as the kernel's `Tile`.
    pub(crate) fn tiles(&mut self, tiles: &[Tile]) -> u64 {
        let fields = |t: &Tile| [t.row, t.rows, t.cached, t.table];
        self.part(
            tiles
                .iter()
                .flat_map(fields)
                .flat_map(|n| (n as u32).to_le_bytes()),
        )
    }

    /// Adds draws as the kernel's `Draw`.
    pub fn draws(&mut self, draws: &[DrawRequest]) -> u64 {
        self.part(draws.iter().flat_map(|d| {
            let mut bytes = d.uniform.to_le_bytes().to_vec();
            for v in [d.temperature, d.top_p, d.min_p] {
                bytes.extend(v.to_le_bytes());
            }
            bytes.extend((d.top_k.min(i32::MAX as usize) as u32).to_le_bytes());
            bytes
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(start: usize, rows: usize, cached: usize, blocks: &[u32]) -> PagedSequence {
        PagedSequence {
            start,
            rows,
            cached,
            blocks: blocks.into(),
        }
    }

    #[test]
    fn tiles_cover_every_row_once_and_point_to_their_blocks() {
        let sequences = [sequence(0, 1, 20, &[7, 3]), sequence(1, 5, 0, &[9, 4])];
        let (tiles, blocks) = tiles(&sequences, 4);
        let tile = |row, rows, cached, table| Tile {
            row,
            rows,
            cached,
            table,
        };
        assert_eq!(
            tiles,
            [tile(0, 1, 20, 0), tile(1, 4, 0, 2), tile(5, 1, 4, 2)]
        );
        // The second sequence has not reached its second block.
        assert_eq!(blocks, [7, 3, 9]);
        assert_eq!(slots(&sequences, 6), [3 * 16 + 4, 144, 145, 146, 147, 148]);
    }

    #[test]
    fn splits_cover_all_tokens_and_fill_the_device() {
        let long = |cached| Tile {
            row: 0,
            rows: 1,
            cached,
            table: 0,
        };
        for cached in [0, 31, 127, 128, 1000, 4095, 4096, 9000] {
            for (blocks, wanted) in [(1, 1), (4, 264), (300, 264)] {
                let (n, each) = splits(&[long(cached)], None, blocks, wanted);
                assert!(
                    n * each > cached && n * each <= 2 * cached.max(64),
                    "{cached}"
                );
                assert!(n * blocks <= wanted.max(blocks) && each.is_multiple_of(CHUNK));
                assert!(n <= most_splits(&[long(cached)], blocks, wanted));
            }
        }
        assert_eq!(splits(&[long(4095)], Some(64), 1, 100).0, 1);
    }

    #[test]
    fn a_sequence_that_grows_is_cut_in_few_ways() {
        let tile = |cached| Tile {
            row: 0,
            rows: 1,
            cached,
            table: 0,
        };
        let mut ways: Vec<(usize, usize)> = Vec::new();
        for cached in 0..8192 {
            let cut = splits(&[tile(cached)], None, 8, 264);
            if ways.last() != Some(&cut) {
                ways.push(cut);
            }
        }
        // Every 128 tokens up to 1024, then eight times until they have doubled.
        assert_eq!(ways.len(), 8 + 3 * 8, "{ways:?}");
    }

    #[test]
    fn parts_of_an_upload_are_aligned() {
        let mut upload = Upload::default();
        assert_eq!(upload.numbers(&[1, 2, 3]), 0);
        assert_eq!(upload.signed(&[-1]), 16);
        let draw = DrawRequest {
            uniform: 0.5,
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            top_k: 0,
        };
        assert_eq!(upload.draws(&[draw, draw]), 32);
        assert_eq!(upload.bytes.len(), 32 + 2 * 24);
    }

    #[test]
    fn blocks_take_whole_groups_where_they_fit() {
        assert_eq!(block_shape(128, 7), Some((7, 2)));
        assert_eq!(block_shape(128, 4), Some((4, 4)));
        assert_eq!(block_shape(256, 2), Some((2, 4)));
        assert_eq!(block_shape(256, 16), Some((8, 1)));
        assert_eq!(block_shape(80, 1), None);
    }
}
