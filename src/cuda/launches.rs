//! One function per kernel: its grid and its arguments, from sizes and addresses. Pure.

use super::gpu::{Arg, Element, Launch, Matrix, Product};

/// Threads of blocks that take a row or a stretch of one.
const ROW_THREADS: u32 = 256;
/// Warps of blocks whose warps work by themselves.
const WARPS: usize = 4;
const WARP_THREADS: u32 = 32 * WARPS as u32;
/// Threads of a block that draws a token; the kernel's THREADS.
const SAMPLE_THREADS: u32 = 512;
/// Tokens that a block of attention scores at a time; the kernel's CHUNK.
pub(crate) const CHUNK: usize = 32;
/// Most rows that [`few_rows`] takes.
pub(crate) const FEW_ROWS: usize = 8;

/// The instance of a kernel for an element type.
macro_rules! instance {
    ($element:expr, $($name:literal),+) => {
        match $element {
            Element::F32 => concat!($($name),+, "_f32"),
            Element::F16 => concat!($($name),+, "_f16"),
            Element::Bf16 => concat!($($name),+, "_bf16"),
        }
    };
}

mod attention;
mod integer;

pub use attention::{Attend, attention, attention_merge, attention_pairs};
pub use integer::unpack;

fn launch(kernel: &'static str, grid: [usize; 3], threads: u32, args: Vec<Arg>) -> Launch {
    Launch {
        kernel,
        grid: grid.map(|n| n as u32),
        threads,
        args,
    }
}

fn per_row(kernel: &'static str, rows: usize, args: Vec<Arg>) -> Launch {
    launch(kernel, [rows, 1, 1], ROW_THREADS, args)
}

/// Stretches of a row that a block takes.
fn stretches(width: usize) -> usize {
    width.div_ceil(ROW_THREADS as usize)
}

/// x (rows, width), f32, ← rows of a table, scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Embed {
    /// Token ids, u32.
    pub(crate) tokens: u64,
    /// (vocabulary, width).
    pub(crate) table: Matrix,
    /// Factor on every value.
    pub(crate) scale: f32,
    /// Rows to fetch.
    pub(crate) rows: usize,
    /// Columns.
    pub(crate) width: usize,
    /// The residual stream.
    pub(crate) x: u64,
}

/// See [`Embed`].
pub(crate) fn embed(element: Element, e: &Embed) -> Launch {
    let table = match &e.table {
        Matrix::Floats(at) => *at,
        Matrix::Integers(table) => return integer::embed(e, table),
    };
    let args = vec![
        Arg::address(e.tokens),
        Arg::address(table),
        Arg::float(e.scale),
        Arg::int(e.width),
        Arg::address(e.x),
    ];
    per_row(instance!(element, "embed"), e.rows, args)
}

/// x ← x + y, y normalised first where `y_weight` is not null; h ← norm(x) · weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddNorm {
    /// The residual stream, (…, width), f32.
    pub(crate) x: u64,
    /// What is added, like x; null for nothing.
    pub(crate) y: u64,
    /// Scale of y's own norm, (width), f32; null for none.
    pub(crate) y_weight: u64,
    /// Scale of the norm, (width), f32.
    pub(crate) weight: u64,
    /// u32 numbers of x's rows; null for the first `count`.
    pub(crate) rows: u64,
    /// Rows to do.
    pub(crate) count: usize,
    /// ε of both norms.
    pub(crate) eps: f32,
    /// Columns.
    pub(crate) width: usize,
    /// (count, width).
    pub(crate) h: u64,
}

/// See [`AddNorm`].
pub(crate) fn add_norm(element: Element, n: &AddNorm) -> Launch {
    let args = vec![
        Arg::address(n.x),
        Arg::address(n.y),
        Arg::address(n.y_weight),
        Arg::address(n.weight),
        Arg::address(n.rows),
        Arg::float(n.eps),
        Arg::int(n.width),
        Arg::address(n.h),
    ];
    per_row(instance!(element, "add_norm"), n.count, args)
}

/// Cosines and sines, (rows, half) f32 each, of `positions` (u32) times `frequencies` (half, f32).
pub(crate) fn rope_table(
    rows: usize,
    half: usize,
    [positions, frequencies]: [u64; 2],
    [cosines, sines]: [u64; 2],
) -> Launch {
    let args = vec![
        Arg::address(positions),
        Arg::address(frequencies),
        Arg::int(half),
        Arg::address(cosines),
        Arg::address(sines),
    ];
    launch("rope_table", [rows, 1, 1], 64, args)
}

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub(crate) queries: usize,
    /// Key/value heads.
    pub(crate) kv: usize,
    /// Columns of one.
    pub(crate) dim: usize,
}

impl Heads {
    /// Columns of q, k and v side by side.
    pub(crate) fn width(&self) -> usize {
        (self.queries + 2 * self.kv) * self.dim
    }
}

/// Biases, norms of heads and rotation, in place; keys and values to the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeWrite {
    /// (rows, [`Heads::width`]), f32.
    pub(crate) qkv: u64,
    /// As one row of qkv; null for none.
    pub(crate) biases: u64,
    /// Scales of the norms of each head of q and of k, (head_dim) f32; null for none.
    pub(crate) norms: [u64; 2],
    /// From [`rope_table`].
    pub(crate) angles: [u64; 2],
    /// Where in the cache each row goes, u32.
    pub(crate) slots: u64,
    /// ε of the heads' norms.
    pub(crate) eps: f32,
    /// Rows.
    pub(crate) rows: usize,
    /// The layer's keys and values, (slots, kv_heads · head_dim) each.
    pub(crate) cache: [u64; 2],
}

/// See [`RopeWrite`].
pub(crate) fn rope_write(element: Element, heads: Heads, r: &RopeWrite) -> Launch {
    let args = vec![
        Arg::address(r.qkv),
        Arg::address(r.biases),
        Arg::address(r.norms[0]),
        Arg::address(r.norms[1]),
        Arg::address(r.angles[0]),
        Arg::address(r.angles[1]),
        Arg::address(r.slots),
        Arg::float(r.eps),
        Arg::int(heads.queries),
        Arg::int(heads.kv),
        Arg::int(heads.dim),
        Arg::address(r.cache[0]),
        Arg::address(r.cache[1]),
    ];
    let blocks = (heads.queries + 2 * heads.kv).div_ceil(WARPS);
    launch(
        instance!(element, "rope_write"),
        [r.rows, blocks, 1],
        WARP_THREADS,
        args,
    )
}

/// m (rows, width) ← activation(gate) · up, both side by side in the rows of `both`, f32.
pub(crate) fn gated(
    element: Element,
    gelu: bool,
    [rows, width]: [usize; 2],
    [both, m]: [u64; 2],
) -> Launch {
    let args = vec![
        Arg::address(both),
        Arg::int(usize::from(gelu)),
        Arg::int(width),
        Arg::address(m),
    ];
    launch(
        instance!(element, "gated"),
        [rows, stretches(width), 1],
        ROW_THREADS,
        args,
    )
}

/// y (rows, width), f32, ← y + bias.
pub(crate) fn add_bias([rows, width]: [usize; 2], [y, bias]: [u64; 2]) -> Launch {
    let args = vec![Arg::address(y), Arg::address(bias), Arg::int(width)];
    launch("add_bias", [rows, stretches(width), 1], ROW_THREADS, args)
}

/// v ← cap · tanh(v / cap), `count` values.
pub(crate) fn soft_cap(v: u64, cap: f32, count: usize) -> Launch {
    let args = vec![Arg::address(v), Arg::float(cap), Arg::count(count)];
    launch("soft_cap", [stretches(count), 1, 1], ROW_THREADS, args)
}

/// [`Product`] of up to [`FEW_ROWS`] rows whose columns are a multiple of 8.
pub(crate) fn few_rows(p: &Product) -> Launch {
    let weight = match &p.weight {
        Matrix::Floats(at) => *at,
        Matrix::Integers(matrix) => return integer::few_rows(p, matrix),
    };
    let kernel = match p.rows {
        0..=1 => instance!(p.element, "few_rows_1"),
        2 => instance!(p.element, "few_rows_2"),
        3..=4 => instance!(p.element, "few_rows_4"),
        _ => instance!(p.element, "few_rows_8"),
    };
    let args = vec![
        Arg::address(weight),
        Arg::address(p.x),
        Arg::int(p.rows),
        Arg::int(p.inner),
        Arg::int(p.out),
        Arg::int(p.stride),
        Arg::address(p.y),
    ];
    launch(kernel, [p.out.div_ceil(WARPS), 1, 1], WARP_THREADS, args)
}

/// Adapters at up to three sites that read one input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lora<'a> {
    /// Each row's adapter, i32; negative for none.
    pub(crate) owners: u64,
    /// Factors, (adapters, `site_count`).
    pub(crate) sites: u64,
    /// Sites of an adapter in that table.
    pub(crate) site_count: usize,
    /// The first of the sites at hand.
    pub(crate) first: usize,
    /// Columns of y that each of them writes: the first, and how many.
    pub(crate) columns: &'a [(usize, usize)],
    /// Rows.
    pub(crate) rows: usize,
    /// Largest rank.
    pub(crate) places: usize,
    /// Scratch, (rows, sites at hand, places), f32.
    pub(crate) shrunk: u64,
}

/// shrunk ← A h for the rows of `h` (rows, inner) that carry an adapter.
pub(crate) fn lora_shrink(element: Element, l: &Lora, h: u64, inner: usize) -> Launch {
    let args = vec![
        Arg::address(h),
        Arg::address(l.owners),
        Arg::address(l.sites),
        Arg::int(l.site_count),
        Arg::int(l.first),
        Arg::int(inner),
        Arg::int(l.places),
        Arg::address(l.shrunk),
    ];
    let grid = [l.rows, l.places.div_ceil(WARPS), l.columns.len()];
    launch(instance!(element, "lora_shrink"), grid, WARP_THREADS, args)
}

/// y (rows, stride), f32, ← y + scale · B shrunk.
pub(crate) fn lora_expand(element: Element, l: &Lora, y: u64, stride: usize) -> Launch {
    let mut args = vec![
        Arg::address(l.shrunk),
        Arg::address(l.owners),
        Arg::address(l.sites),
        Arg::int(l.site_count),
        Arg::int(l.first),
    ];
    let column = |i: usize| l.columns.get(i).copied().unwrap_or((0, 0));
    args.extend((0..3).map(|i| Arg::int(column(i).0)));
    args.extend((0..3).map(|i| Arg::int(column(i).1)));
    args.extend([Arg::int(l.places), Arg::int(stride), Arg::address(y)]);
    let widest = l.columns.iter().map(|c| c.1).max().unwrap_or(0);
    let grid = [l.rows, stretches(widest), l.columns.len()];
    launch(instance!(element, "lora_expand"), grid, ROW_THREADS, args)
}

/// tokens (rows), u32, ← a draw from each row of `logits` (rows, vocab), as `draws` says.
pub fn sample([rows, vocab]: [usize; 2], [logits, draws, tokens]: [u64; 3]) -> Launch {
    let args = vec![
        Arg::address(logits),
        Arg::address(draws),
        Arg::int(vocab),
        Arg::address(tokens),
    ];
    launch("sample", [rows, 1, 1], SAMPLE_THREADS, args)
}
