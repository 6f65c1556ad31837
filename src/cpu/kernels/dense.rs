//! Unquantised panels: sixteen floats per input element, converted to f32 as they are read.

use half::f16;

use super::{Encoding, Isa, PANEL, PackedWeight, Rows};

/// One panel of floats times as many rows as `tile` has; the results are written to it or, with
/// `ADD`, added to what it holds.
pub(crate) fn panel<const ADD: bool>(
    isa: Isa,
    weight: &PackedWeight,
    bytes: &[u8],
    x: Rows,
    tile: &mut [[f32; PANEL]],
) {
    match isa {
        // SAFETY: the processor has what its `Isa` says.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::<ADD>(weight, bytes, x, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::<ADD>(weight, bytes, x, tile) },
        _ => by_encoding::<Half, 4, false, ADD>(weight, bytes, x, tile),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn avx512<const ADD: bool>(
    weight: &PackedWeight,
    bytes: &[u8],
    x: Rows,
    tile: &mut [[f32; PANEL]],
) {
    by_encoding::<HalfAvx512, 8, true, ADD>(weight, bytes, x, tile);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<const ADD: bool>(weight: &PackedWeight, bytes: &[u8], x: Rows, tile: &mut [[f32; PANEL]]) {
    by_encoding::<HalfAvx2, 4, true, ADD>(weight, bytes, x, tile);
}

/// Reads the weights of two input elements, sixteen each.
trait Read {
    /// Bytes they take.
    const BYTES: usize;
    /// # Safety
    /// [`Read::BYTES`] bytes can be read at `at`, and the processor has what the reader needs.
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2];
    /// The weights of a last element that has no companion.
    ///
    /// # Safety
    /// As [`Read::pair`], of so many bytes as a panel of one column has.
    unsafe fn last(at: *const u8) -> [f32; PANEL];
}

struct Single;

impl Read for Single {
    const BYTES: usize = 8 * PANEL;
    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2] {
        // SAFETY: by the contract; any bytes are floats.
        unsafe { at.cast::<[[f32; PANEL]; 2]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn last(at: *const u8) -> [f32; PANEL] {
        // SAFETY: as above.
        unsafe { at.cast::<[f32; PANEL]>().read_unaligned() }
    }
}

/// bfloat16: a pair's first half becomes f32 by a shift, its second by a mask.
struct Brain;

impl Read for Brain {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2] {
        // SAFETY: by the contract; any bytes are integers.
        let pairs = unsafe { at.cast::<[u32; PANEL]>().read_unaligned() };
        [
            pairs.map(|pair| f32::from_bits(pair << 16)),
            pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)),
        ]
    }
    #[inline(always)]
    unsafe fn last(at: *const u8) -> [f32; PANEL] {
        // SAFETY: passed on; the companion that a panel lacks is stored as zero.
        let [first, _] = unsafe { Self::pair(at) };
        first
    }
}

/// Half precision, read by any processor.
struct Half;

impl Read for Half {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2] {
        // SAFETY: by the contract.
        unsafe { [Self::last(at), Self::last(at.add(2 * PANEL))] }
    }
    #[inline(always)]
    unsafe fn last(at: *const u8) -> [f32; PANEL] {
        // SAFETY: by the contract; any bytes are integers.
        let bits = unsafe { at.cast::<[u16; PANEL]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
}

#[cfg(target_arch = "x86_64")]
struct HalfAvx2;

#[cfg(target_arch = "x86_64")]
impl Read for HalfAvx2 {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2] {
        // SAFETY: by the contract.
        unsafe { [Self::last(at), Self::last(at.add(2 * PANEL))] }
    }
    #[inline(always)]
    unsafe fn last(at: *const u8) -> [f32; PANEL] {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps};
        // SAFETY: by the contract; two vectors of eight floats are an array of sixteen.
        unsafe {
            let half = |i: usize| _mm256_cvtph_ps(_mm_loadu_si128(at.add(i * 16).cast()));
            std::mem::transmute([half(0), half(1)])
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct HalfAvx512;

#[cfg(target_arch = "x86_64")]
impl Read for HalfAvx512 {
    const BYTES: usize = 4 * PANEL;
    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [[f32; PANEL]; 2] {
        // SAFETY: by the contract.
        unsafe { [Self::last(at), Self::last(at.add(2 * PANEL))] }
    }
    #[inline(always)]
    unsafe fn last(at: *const u8) -> [f32; PANEL] {
        use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps};
        // SAFETY: by the contract; a vector of sixteen floats is an array of them.
        unsafe { std::mem::transmute(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
    }
}

/// `BLOCK` rows are computed at once, as many as the registers hold sums for.
#[inline(always)]
fn by_encoding<H: Read, const BLOCK: usize, const FMA: bool, const ADD: bool>(
    weight: &PackedWeight,
    bytes: &[u8],
    x: Rows,
    tile: &mut [[f32; PANEL]],
) {
    for (first, tile) in (0..).step_by(BLOCK).zip(tile.chunks_mut(BLOCK)) {
        let last = first + tile.len() - 1;
        let x: [&[f32]; BLOCK] = std::array::from_fn(|r| {
            let row = x.floats.row(last.min(first + r));
            // SAFETY: `Rows` promises that the rows of the tile can be read.
            unsafe { std::slice::from_raw_parts(row, x.columns) }
        });
        match weight.encoding {
            Encoding::Bf16 => rows::<Brain, BLOCK, FMA, ADD>(bytes, x, weight.gain, tile),
            Encoding::F16 => rows::<H, BLOCK, FMA, ADD>(bytes, x, weight.gain, tile),
            _ => rows::<Single, BLOCK, FMA, ADD>(bytes, x, weight.gain, tile),
        }
    }
}

#[inline(always)]
fn rows<R: Read, const BLOCK: usize, const FMA: bool, const ADD: bool>(
    bytes: &[u8],
    x: [&[f32]; BLOCK],
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    // Few rows are not padded to a block: decoding a few streams is then bound by memory.
    match tile.len() {
        1 => finish::<ADD, 1>(sums::<R, FMA, 1>(bytes, [x[0]]), gain, tile),
        2 => finish::<ADD, 2>(sums::<R, FMA, 2>(bytes, [x[0], x[1]]), gain, tile),
        3..=4 => {
            let x = [x[0], x[1], x[2], x[3]];
            finish::<ADD, 4>(sums::<R, FMA, 4>(bytes, x), gain, tile);
        }
        _ => finish::<ADD, BLOCK>(sums::<R, FMA, BLOCK>(bytes, x), gain, tile),
    }
}

#[inline(always)]
fn finish<const ADD: bool, const ROWS: usize>(
    sums: [[f32; PANEL]; ROWS],
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    for (y, sum) in tile.iter_mut().zip(&sums) {
        for (y, sum) in y.iter_mut().zip(sum) {
            *y = if ADD { *y + gain * sum } else { gain * sum };
        }
    }
}

#[inline(always)]
fn sums<R: Read, const FMA: bool, const ROWS: usize>(
    bytes: &[u8],
    x: [&[f32]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    // Even and odd columns in named sums, not in an array by parity: an index that is not a
    // constant would keep them in memory.
    let (mut even, mut odd) = ([[0f32; PANEL]; ROWS], [[0f32; PANEL]; ROWS]);
    let columns = x[0].len();
    let x = x.map(|x| x[..columns].as_chunks::<2>());
    let pairs = columns / 2;
    for (pair, weights) in bytes.chunks_exact(R::BYTES).take(pairs).enumerate() {
        // SAFETY: a chunk has the weights of a pair; the reader was chosen by the processor's
        // features.
        let [first, second] = unsafe { R::pair(weights.as_ptr()) };
        for r in 0..ROWS {
            let [a, b] = x[r].0[pair];
            multiply_add::<FMA>(a, &first, &mut even[r]);
            multiply_add::<FMA>(b, &second, &mut odd[r]);
        }
    }
    if !columns.is_multiple_of(2) {
        let last = &bytes[pairs * R::BYTES..];
        // SAFETY: as above; a panel ends with the weights of its last column.
        let weights = unsafe { R::last(last.as_ptr()) };
        for r in 0..ROWS {
            multiply_add::<FMA>(x[r].1[0], &weights, &mut even[r]);
        }
    }
    std::array::from_fn(|r| std::array::from_fn(|lane| even[r][lane] + odd[r][lane]))
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, weights: &[f32; PANEL], sum: &mut [f32; PANEL]) {
    for (sum, w) in sum.iter_mut().zip(weights) {
        *sum = if FMA {
            a.mul_add(*w, *sum)
        } else {
            *sum + a * w
        };
    }
}
