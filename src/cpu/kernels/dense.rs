//! Unquantised panels: sixteen floats per input element, converted to f32 as they are read.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use half::f16;

use super::{Encoding, Isa, PANEL, PackedWeight, Rows, Strided};

/// The encodings as constants that kernels are generic over; anything else is f32.
const BF16: u8 = 1;
const F16: u8 = 2;
const F32: u8 = 4;

/// Bytes of two input elements' weights.
const fn pair_bytes(kind: u8) -> usize {
    match kind {
        BF16 | F16 => 4 * PANEL,
        _ => 8 * PANEL,
    }
}

/// One panel of floats times as many rows as `tile` has; the results are written to it or, with
/// `ADD`, added to what it holds.
pub(super) fn panel<const ADD: bool>(
    isa: Isa,
    weight: &PackedWeight,
    bytes: &[u8],
    x: Rows,
    tile: &mut [[f32; PANEL]],
) {
    let (weights, gain) = ((bytes, x.columns), weight.gain);
    match weight.encoding {
        Encoding::Bf16 => of_kind::<BF16, ADD>(isa, weights, x.floats, gain, tile),
        Encoding::F16 => of_kind::<F16, ADD>(isa, weights, x.floats, gain, tile),
        _ => of_kind::<F32, ADD>(isa, weights, x.floats, gain, tile),
    }
}

fn of_kind<const KIND: u8, const ADD: bool>(
    isa: Isa,
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    let needed = match KIND {
        BF16 => columns.div_ceil(2) * pair_bytes(KIND),
        _ => columns * pair_bytes(KIND) / 2,
    };
    assert!(bytes.len() >= needed);
    let weights = (bytes, columns);
    match isa {
        // SAFETY: the processor has what its `Isa` says; the panel's length was just checked, and
        // `Rows` promises the rows of the tile.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::panel::<KIND, ADD>(weights, x, gain, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { avx2::panel::<KIND, ADD>(weights, x, gain, tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::Dotprod => unsafe { neon::panel::<KIND, ADD>(weights, x, gain, tile) },
        Isa::Portable => portable::<KIND, ADD>(weights, x, gain, tile),
    }
}

/// The slow twin: even and odd columns are summed apart, as there.
fn portable<const KIND: u8, const ADD: bool>(
    (bytes, columns): (&[u8], usize),
    x: Strided<f32>,
    gain: f32,
    tile: &mut [[f32; PANEL]],
) {
    for (row, tile) in tile.iter_mut().enumerate() {
        // SAFETY: `Rows` promises that the rows of the tile can be read.
        let x = unsafe { std::slice::from_raw_parts(x.row(row), columns) };
        let mut sums = [[0f32; PANEL]; 2];
        for (two, weights) in x.chunks(2).zip(bytes.chunks(pair_bytes(KIND))) {
            for ((x, sum), weights) in two.iter().zip(&mut sums).zip(read::<KIND>(weights)) {
                for (sum, w) in sum.iter_mut().zip(weights) {
                    *sum += x * w;
                }
            }
        }
        for (y, (even, odd)) in tile.iter_mut().zip(sums[0].iter().zip(&sums[1])) {
            let sum = gain * (even + odd);
            *y = if ADD { *y + sum } else { sum };
        }
    }
}

/// The weights of two input elements; of one, where a panel ends with it.
fn read<const KIND: u8>(bytes: &[u8]) -> [[f32; PANEL]; 2] {
    let mut both = [[0f32; PANEL]; 2];
    match KIND {
        BF16 => {
            for (lane, pair) in bytes.as_chunks::<4>().0.iter().enumerate() {
                let pair = u32::from_le_bytes(*pair);
                both[0][lane] = f32::from_bits(pair << 16);
                both[1][lane] = f32::from_bits(pair & 0xffff_0000);
            }
        }
        F16 => {
            let values = bytes.as_chunks::<2>().0.iter();
            for (into, bits) in both.as_flattened_mut().iter_mut().zip(values) {
                *into = f16::from_le_bytes(*bits).to_f32();
            }
        }
        _ => {
            let values = bytes.as_chunks::<4>().0.iter();
            for (into, bits) in both.as_flattened_mut().iter_mut().zip(values) {
                *into = f32::from_le_bytes(*bits);
            }
        }
    }
    both
}
