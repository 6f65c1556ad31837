//! Panels in bfloat16 times activations that were rounded to bfloat16: two products and a sum in f32
//! per lane and instruction (AVX-512 BF16).

use super::{Isa, PANEL, Strided};

/// Bytes of the sixteen pairs of two input elements.
const LINE: usize = 4 * PANEL;

/// Whether the processor multiplies pairs.
pub(crate) fn is_fast(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

/// One panel times as many rows of pairs as `tile` has.
pub(super) fn panel(isa: Isa, bytes: &[u8], x: Strided<u32>, tile: &mut [[f32; PANEL]]) {
    match is_fast(isa) {
        // SAFETY: the processor has what was just asked for, and `Rows` promises the rows of the
        // tile, which have a pair for every line.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::panel(bytes, x, tile) },
        _ => portable(bytes, x, tile),
    }
}

/// The slow twin: even and odd lines are summed apart, as there.
fn portable(bytes: &[u8], x: Strided<u32>, tile: &mut [[f32; PANEL]]) {
    let low = |pair: u32| f32::from_bits(pair << 16);
    let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
    for (row, sums) in tile.iter_mut().enumerate() {
        let mut parts = [[0f32; PANEL]; 2];
        for (index, line) in bytes.as_chunks::<LINE>().0.iter().enumerate() {
            // SAFETY: a row has a pair for every line, by the contract of `panel`.
            let pair = unsafe { *x.row(row).add(index) };
            for (sum, w) in parts[index % 2].iter_mut().zip(line.as_chunks::<4>().0) {
                let w = u32::from_le_bytes(*w);
                *sum += low(w) * low(pair) + high(w) * high(pair);
            }
        }
        *sums = std::array::from_fn(|lane| parts[0][lane] + parts[1][lane]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LINE, PANEL, Strided};

    /// Rows at a time: with two sums each they leave registers for the weights.
    const ROWS: usize = 8;

    /// # Safety
    /// The processor has the features, and of `x` as many rows can be read as `tile` has, with a
    /// pair for every line of `bytes`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn panel(bytes: &[u8], x: Strided<u32>, tile: &mut [[f32; PANEL]]) {
        for (first, tile) in (0..).step_by(ROWS).zip(tile.chunks_mut(ROWS)) {
            let at = x.row(first);
            // SAFETY: passed on.
            unsafe {
                match tile.len() {
                    1 => block::<1>(bytes, Strided { at, ..x }, tile),
                    2 => block::<2>(bytes, Strided { at, ..x }, tile),
                    3..=4 => block::<4>(bytes, Strided { at, ..x }, tile),
                    _ => block::<ROWS>(bytes, Strided { at, ..x }, tile),
                }
            }
        }
    }

    /// # Safety
    /// As [`panel`]; the tile has a row, and at most N.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    #[allow(clippy::needless_range_loop)] // one index walks several register arrays
    unsafe fn block<const N: usize>(bytes: &[u8], x: Strided<u32>, tile: &mut [[f32; PANEL]]) {
        // Rows that the tile has not repeat its last one.
        let x: [*const u32; N] = std::array::from_fn(|r| x.row(r.min(tile.len() - 1)));
        let (twos, rest) = bytes.as_chunks::<LINE>().0.as_chunks::<2>();
        // Even and odd lines apart: a lone row would wait for each of its sums.
        let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
        // SAFETY: both types are 64 bytes of any content.
        let pairs = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
        for (index, [first, second]) in twos.iter().enumerate() {
            // SAFETY: a line is a vector, and rows have a pair for each; prefetching accesses
            // nothing.
            unsafe {
                let next = first.as_ptr().wrapping_add(AHEAD);
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(LINE).cast());
                let low = pairs(_mm512_loadu_si512(first.as_ptr().cast()));
                let high = pairs(_mm512_loadu_si512(second.as_ptr().cast()));
                for r in 0..N {
                    let at = x[r].add(2 * index).cast::<i32>();
                    even[r] = _mm512_dpbf16_ps(even[r], low, pairs(_mm512_set1_epi32(*at)));
                    odd[r] = _mm512_dpbf16_ps(odd[r], high, pairs(_mm512_set1_epi32(*at.add(1))));
                }
            }
        }
        if let [last] = rest {
            // SAFETY: as above.
            unsafe {
                let low = pairs(_mm512_loadu_si512(last.as_ptr().cast()));
                for r in 0..N {
                    let at = x[r].add(2 * twos.len()).cast::<i32>();
                    even[r] = _mm512_dpbf16_ps(even[r], low, pairs(_mm512_set1_epi32(*at)));
                }
            }
        }
        for (r, row) in tile.iter_mut().enumerate().take(N) {
            // SAFETY: a row of the tile holds sixteen floats.
            unsafe { _mm512_storeu_ps(row.as_mut_ptr(), _mm512_add_ps(even[r], odd[r])) };
        }
    }

    /// Bytes from what is read to what is fetched.
    const AHEAD: usize = 2048;
}
