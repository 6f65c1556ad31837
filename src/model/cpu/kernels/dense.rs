//! Unquantised panels: sixteen floats per input element.

use half::{bf16, f16};

use super::{Encoding, Isa, PANEL, Rows, Tile};

/// Rows computed at once.
const BLOCK: usize = 4;
/// Running sums per output: two, so that one need not wait for the other's addition.
const CHAINS: usize = 2;

/// One panel of floats times some rows.
pub fn panel(isa: Isa, encoding: Encoding, bytes: &[u8], x: Rows, rows: usize, tile: &mut Tile) {
    for first in (0..rows).step_by(BLOCK) {
        let count = (rows - first).min(BLOCK);
        let target = &mut tile[first..first + count];
        let slices: [&[f32]; BLOCK] = std::array::from_fn(|r| {
            let row = first + r.min(count - 1);
            // SAFETY: `Rows` promises that sixteen rows can be read.
            unsafe { std::slice::from_raw_parts(x.values.add(row * x.columns), x.columns) }
        });
        match isa {
            // SAFETY: the processor has what its `Isa` says.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(encoding, bytes, &slices, target) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(encoding, bytes, &slices, target) },
            _ => by_encoding::<false>(encoding, bytes, &slices, target),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn avx512(encoding: Encoding, bytes: &[u8], x: &[&[f32]; BLOCK], tile: &mut [[f32; PANEL]]) {
    by_encoding::<true>(encoding, bytes, x, tile);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(encoding: Encoding, bytes: &[u8], x: &[&[f32]; BLOCK], tile: &mut [[f32; PANEL]]) {
    by_encoding::<true>(encoding, bytes, x, tile);
}

#[inline(always)]
fn by_encoding<const FMA: bool>(
    encoding: Encoding,
    bytes: &[u8],
    x: &[&[f32]; BLOCK],
    tile: &mut [[f32; PANEL]],
) {
    match encoding {
        Encoding::Bf16 => rows::<FMA, 2>(bytes, x, tile, |b| bf16::from_le_bytes(b).to_f32()),
        Encoding::F16 => rows::<FMA, 2>(bytes, x, tile, |b| f16::from_le_bytes(b).to_f32()),
        _ => rows::<FMA, 4>(bytes, x, tile, f32::from_le_bytes),
    }
}

#[inline(always)]
fn rows<const FMA: bool, const N: usize>(
    bytes: &[u8],
    x: &[&[f32]; BLOCK],
    tile: &mut [[f32; PANEL]],
    value: impl Fn([u8; N]) -> f32 + Copy,
) {
    match tile {
        [one] => {
            let [sum] = sums::<FMA, N, 1>(bytes, [x[0]], value);
            *one = sum;
        }
        some => {
            let all = sums::<FMA, N, BLOCK>(bytes, *x, value);
            some.copy_from_slice(&all[..some.len()]);
        }
    }
}

#[inline(always)]
fn sums<const FMA: bool, const N: usize, const ROWS: usize>(
    bytes: &[u8],
    x: [&[f32]; ROWS],
    value: impl Fn([u8; N]) -> f32 + Copy,
) -> [[f32; PANEL]; ROWS] {
    let mut sums = [[[0f32; PANEL]; CHAINS]; ROWS];
    let columns = x[0].len();
    let (elements, _) = bytes.as_chunks::<N>();
    let (vectors, _) = elements.as_chunks::<PANEL>();
    for (column, vector) in vectors.iter().enumerate().take(columns) {
        let weights: [f32; PANEL] = std::array::from_fn(|lane| value(vector[lane]));
        for r in 0..ROWS {
            let a = x[r][column];
            let sum = &mut sums[r][column % CHAINS];
            for lane in 0..PANEL {
                sum[lane] = match FMA {
                    true => a.mul_add(weights[lane], sum[lane]),
                    false => sum[lane] + a * weights[lane],
                };
            }
        }
    }
    sums.map(|[a, b]| std::array::from_fn(|lane| a[lane] + b[lane]))
}
