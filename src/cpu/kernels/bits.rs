//! A unit's integers as bytes, eight vectors of four input elements of every row, unsigned; and its scales
//! and minima as floats.

use std::arch::x86_64::*;

use crate::packed::{PANEL, SCALE_BYTES};

/// A vector in memory, wherever it begins.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T: Copy>(T);

/// A function that unpacks, for one width of vectors. It has no features of its own, so that it is always
/// compiled into its callers, which have them: eight vectors do not leave registers.
macro_rules! integers {
    (
        $vector:ty, $zero:ident, $set:ident,
        $and:ident, $or:ident, $left:ident, $right:ident
    ) => {
        /// # Safety
        /// The caller was compiled for the instructions, and the processor has them. Lines of 64 bytes
        /// begin at `at`, `BITS` of them, of each of which a vector can be read.
        #[inline(always)]
        pub(crate) unsafe fn integers<const BITS: usize>(at: *const u8) -> [$vector; 8] {
            // SAFETY: passed on; what computes in registers accesses nothing.
            unsafe {
                // Volatile, so that lines are read in the order in which they lie: the processor reads
                // ahead only where it sees one, and the compiler would begin with the last.
                let lines: [$vector; BITS] = std::array::from_fn(|line| {
                    let at = at.add(64 * line).cast::<Unaligned<$vector>>();
                    at.read_volatile().0
                });
                let mut q = [$zero(); 8];
                if BITS == 8 {
                    q.copy_from_slice(&lines);
                    return q;
                }
                for j in 0..4 {
                    q[j] = $and(lines[j], $set(15));
                    q[j + 4] = $and($right::<4>(lines[j]), $set(15));
                }
                if BITS == 4 {
                    return q;
                }
                // What each step has above four bits, moved to where it belongs. Shifts are of words: what
                // crosses from byte to byte is masked.
                let (a, b) = (lines[4], lines[BITS - 1]);
                let (high, mask) = match BITS {
                    5 => {
                        let up = [$left::<4>(a), $left::<3>(a), $left::<2>(a), $left::<1>(a)];
                        let down = [a, $right::<1>(a), $right::<2>(a), $right::<3>(a)];
                        ([up, down], $set(16))
                    }
                    _ => {
                        let first = [$left::<4>(a), $left::<2>(a), a, $right::<2>(a)];
                        let second = [$left::<4>(b), $left::<2>(b), b, $right::<2>(b)];
                        ([first, second], $set(48))
                    }
                };
                for (j, q) in q.iter_mut().enumerate() {
                    *q = $or(*q, $and(high[j / 4][j % 4], mask));
                }
                q
            }
        }
    };
}

/// Functions that read scales and minima, for one width of vectors; as [`integers`].
macro_rules! numbers {
    ($vector:ty, $halves:ident, $load_halves:ident, $floats:ident, $widen:ident, $load_bytes:ident, $times:ident) => {
        /// Some f16 as floats.
        ///
        /// # Safety
        /// The caller was compiled for the instructions, and the processor has them. A vector of f16 can be
        /// read.
        #[inline(always)]
        pub(crate) unsafe fn halves(at: *const u8) -> $vector {
            // SAFETY: passed on.
            unsafe { $halves($load_halves(at.cast())) }
        }

        /// Vector `index` of the scales and minima at `head`: f16, or with factors bytes that are multiplied
        /// with `factor`. The rows are those from `row` on.
        ///
        /// # Safety
        /// As `halves`; the vector can be read.
        #[inline(always)]
        pub(crate) unsafe fn numbers<const FACTORED: bool>(
            head: *const u8,
            index: usize,
            row: usize,
            factor: $vector,
        ) -> $vector {
            // SAFETY: passed on; what computes in registers accesses nothing.
            unsafe {
                if !FACTORED {
                    return halves(head.add(SCALE_BYTES * index + 2 * row));
                }
                let levels = $load_bytes(head.add(PANEL * index + row).cast());
                $times($floats($widen(levels)), factor)
            }
        }
    };
}

/// All sixteen rows in a vector.
pub(crate) mod wide {
    use super::*;
    numbers!(
        __m512,
        _mm512_cvtph_ps,
        _mm256_loadu_si256,
        _mm512_cvtepi32_ps,
        _mm512_cvtepi8_epi32,
        _mm_loadu_si128,
        _mm512_mul_ps
    );
    integers!(
        __m512i,
        _mm512_setzero_si512,
        _mm512_set1_epi8,
        _mm512_and_si512,
        _mm512_or_si512,
        _mm512_slli_epi16,
        _mm512_srli_epi16
    );
}

/// Eight rows in a vector.
pub(crate) mod narrow {
    use super::*;
    numbers!(
        __m256,
        _mm256_cvtph_ps,
        _mm_loadu_si128,
        _mm256_cvtepi32_ps,
        _mm256_cvtepi8_epi32,
        _mm_loadl_epi64,
        _mm256_mul_ps
    );
    integers!(
        __m256i,
        _mm256_setzero_si256,
        _mm256_set1_epi8,
        _mm256_and_si256,
        _mm256_or_si256,
        _mm256_slli_epi16,
        _mm256_srli_epi16
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::element;
    use realign_model::blocks::UNIT;

    fn check<const BITS: usize>() {
        let stored: Vec<u8> = (0..64 * BITS)
            .map(|i| (i * 167 + i / 7 + 3) as u8)
            .collect();
        let has_wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        for (lane, i) in (0..PANEL).flat_map(|lane| (0..UNIT).map(move |i| (lane, i))) {
            let (step, column) = (i / 4, lane * 4 + i % 4);
            let expected = element(BITS, &stored, lane, i);
            if has_wide {
                // SAFETY: the processor has the features, and `stored` is BITS lines of 64 bytes.
                let q = unsafe { wide::integers::<BITS>(stored.as_ptr()) };
                // SAFETY: vectors are bytes of any content.
                let bytes = unsafe { std::mem::transmute::<__m512i, [u8; 64]>(q[step]) };
                assert_eq!(bytes[column], expected, "{BITS} bits, row {lane}, {i}");
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above; half a line can be read in each of its halves.
                let q = unsafe { narrow::integers::<BITS>(stored.as_ptr().add(column / 32 * 32)) };
                // SAFETY: as above.
                let bytes = unsafe { std::mem::transmute::<__m256i, [u8; 32]>(q[step]) };
                assert_eq!(bytes[column % 32], expected, "{BITS} bits, row {lane}, {i}");
            }
        }
    }

    #[test]
    fn vectors_hold_what_is_read_one_by_one() {
        check::<4>();
        check::<5>();
        check::<6>();
        check::<8>();
    }
}
